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

// LXC names its sockets by the path that it is given. By any other form of it, all
// containers would seem to be stopped.
func TestLXCPath(t *testing.T) {
	h := converged(t, nil).with("PHX_ATTACH=direct")
	for _, suffix := range []string{"", "/", "/.", "//"} {
		path := h.path("host/lxc") + suffix
		if _, calls, status, stderr := h.with("PHX_LXC_PATH=" + path).run(); status != 0 || len(calls) > 0 {
			t.Errorf("%s: status %d, calls\n%s\n%s", path, status, join(calls), stderr)
		}
	}
	for _, path := range []string{"host/lxc", "./", "/a b", "/a\nb", " /var/lib/lxc"} {
		events, calls, status, stderr := h.with("PHX_LXC_PATH=" + path).run()
		if status != 2 || len(calls) > 0 || len(events) > 0 || !strings.Contains(stderr, "phx-lxc: --lxc-path ") {
			t.Errorf("%q: status %d, calls\n%s\n%s", path, status, join(calls), stderr)
		}
	}
}
