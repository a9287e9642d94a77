package labtest

import (
	"strings"
	"testing"
)

// testWays runs the table of cmd/internal/pve/ways_test.go: through pct exec and lxc-attach into a real container.
func (l lab) testWays(t *testing.T) {
	program := l.path("bin", "pve.test")
	l.do(t, "go", "test", "-c", "-o", program, "./cmd/internal/pve")
	r := l.try(t, "scripts/lab", "run", "env", "PHX_TEST_WAYS=lab", program, "-test.v", "-test.run", "^TestWays")
	t.Log(r.stdout)
	if r.status != 0 || strings.Count(r.stdout, "\n--- PASS: TestWays") != 3 || strings.Contains(r.stdout, "SKIP") {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}
