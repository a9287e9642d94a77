package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProfileFile(t *testing.T) {
	source, dest := t.TempDir(), t.TempDir()
	if _, _, _, err := profileFile(source, dest, "phx"); err == nil ||
		!strings.Contains(err.Error(), filepath.Join(source, "phx")) || !strings.Contains(err.Error(), "--apparmor") {
		t.Errorf("no profile: %v", err)
	}
	if err := os.WriteFile(filepath.Join(source, "phx"), []byte("profile phx {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	path, want, have, err := profileFile(source, dest, "phx")
	if err != nil || path != filepath.Join(dest, "phx") || string(want) != "profile phx {}\n" || have != nil {
		t.Errorf("new: %s %q %q, %v", path, want, have, err)
	}
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, want, have, err := profileFile(source, dest, "phx"); err != nil || string(want) != "profile phx {}\n" ||
		string(have) != "old" {
		t.Errorf("there already: %q %q, %v", want, have, err)
	}
}
