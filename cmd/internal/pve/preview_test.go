package pve

import (
	"strings"
	"testing"
)

func TestUnifiedDiff(t *testing.T) {
	if d := unifiedDiff("/etc/pve/lxc/1.conf", []byte("a\n"), []byte("a\n")); d != "" {
		t.Errorf("%q", d)
	}
	want := "diff f f\n--- f\n+++ f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
	if d := unifiedDiff("f", []byte("a\nb\n"), []byte("a\nc\n")); d != want {
		t.Errorf("%q", d)
	}
	if d := unifiedDiff("f", nil, []byte("a\n")); !strings.Contains(d, "--- /dev/null\n+++ f\n") ||
		!strings.Contains(d, "+a\n") {
		t.Errorf("%q", d)
	}
}
