package pipetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestWays runs the table of cmd/internal/pve/ways_test.go, as far as it needs no real container.
func TestWays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "pve.test")
	build := exec.Command("go", "test", "-c", "-o", program, "./cmd/internal/pve")
	build.Dir = repo
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h := newHost(t)
	if out, status := h.bash("phoenix 2>&1 >events"); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	h.write("inside", "#!/bin/sh\nshift\nexec \"$@\"\n")
	if err := os.Chmod(h.path("inside"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, status := h.with("PHX_TEST_WAYS=fake").bash(program + " -test.v -test.run '^TestWays' 2>&1")
	if status != 0 || strings.Count(out, "\n--- PASS: TestWays") != 3 {
		t.Errorf("status %d\n%s", status, out)
	}
}
