package pve

import (
	"os"
	"path/filepath"
	"testing"
)

// TestContainerVersion: only a package that is installed counts, wherever it
// stands in the list.
func TestContainerVersion(t *testing.T) {
	defer func(old string) { packageStatus = old }(packageStatus)
	packageStatus = filepath.Join(t.TempDir(), "status")
	if v := ContainerVersion(); v != "" {
		t.Errorf("no list: %q", v)
	}
	const (
		other   = "Package: pve-container-doc\nStatus: install ok installed\nVersion: 1.2\n\n"
		removed = "Package: pve-container\nStatus: deinstall ok config-files\nVersion: 5.2.6\n\n"
		ours    = "Package: pve-container\nStatus: install ok installed\nPriority: optional\nVersion: 6.1.10\n" +
			"Description: Proxmox VE Container management tool\n Version: 1\n"
	)
	for text, want := range map[string]string{
		"": "", other: "", other + removed: "", other + ours: "6.1.10", ours + "\n" + other: "6.1.10",
		removed + ours: "6.1.10",
	} {
		if err := os.WriteFile(packageStatus, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if v := ContainerVersion(); v != want {
			t.Errorf("%q, want %q, in\n%s", v, want, text)
		}
	}
}
