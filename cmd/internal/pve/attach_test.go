package pve

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// directHost returns a host with the containers 101 and 103, of which 103 runs.
func directHost(t *testing.T) *Host {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const socket = "0000000000000000: 00000002 00000000 00010000 0001 01 "
	write("proc/net/unix", "Num       RefCount Protocol Flags    Type St Inode Path\n"+
		socket+"1 /run/a\n"+
		socket+"2\n"+
		socket+"3 @/lxc/103/command\n"+
		socket+"4 @/lxc/103/command\n"+ // somebody talks to it
		socket+"5 @/lxc/900/command\n"+ // on no conf file: of somebody else
		socket+"6 @/var/lib/lxc/101/command\n"+ // of another directory
		socket+"7 /tmp/x @/lxc/101/command\n"+ // a name with a blank
		socket+"8 @/lxc/101/command/command\n"+
		socket+"9 @/lxc/0101/command\n"+
		socket+"9 @/lxc/+101/command\n"+
		socket+"9 @/lxc//command\n")
	write("pve/lxc/101.conf", "memory: 512\n")
	write("pve/lxc/103.conf", "memory: 512\n")
	write("pve/lxc/103.conf.tmp.1", "")
	for _, name := range []string{"x", "0102", "+104", "-105", "106.conf", "107.conf/108"} {
		write("pve/lxc/"+name+".conf", "")
	}
	if err := os.Symlink("nodes/alpha", filepath.Join(dir, "pve/local")); err != nil {
		t.Fatal(err)
	}
	return &Host{
		PCT: "pct", PVERoot: filepath.Join(dir, "pve"), Proc: filepath.Join(dir, "proc"), Direct: true, LXCPath: "/lxc",
	}
}

func TestStatesWithoutPct(t *testing.T) {
	h := directHost(t)
	h.PCT = "/nonexistent"
	states, err := h.List(context.Background())
	if want := map[int]string{101: "stopped", 103: "running"}; err != nil || !maps.Equal(states, want) {
		t.Errorf("%v, %v", states, err)
	}
	c := h.Container(103, nil, 0, t.Logf)
	if err := c.askState(context.Background()); err != nil || !c.Running {
		t.Errorf("%v, %v", c.Running, err)
	}
	c = h.Container(102, nil, 0, t.Logf)
	const want = "nonexistent status 102: Configuration file 'nodes/alpha/lxc/102.conf' does not exist"
	if err := c.askState(context.Background()); err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	h.PVERoot += "/missing" // as when pmxcfs is down
	if states, err := h.List(context.Background()); err == nil ||
		!strings.HasSuffix(err.Error(), ": systemctl status pve-cluster") {
		t.Errorf("states without Proxmox's files: %v, %v", states, err)
	}
	h = directHost(t)
	h.Proc += "/missing"
	if states, err := h.List(context.Background()); err == nil || !strings.HasSuffix(err.Error(), "PHX_ATTACH=pct") {
		t.Errorf("states without the kernel's: %v, %v", states, err)
	}
}

// What runs is lxc-attach, with SIGPIPE ignored, and what is told is pct exec.
func TestAttach(t *testing.T) {
	h := directHost(t)
	bin := t.TempDir()
	program := "#!/bin/sh\nkill -PIPE $$\nprintf '%s|' \"$@\"; env | sort >&2; exit 7\n"
	if err := os.WriteFile(filepath.Join(bin, "lxc-attach"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("SSL_CERT_FILE", "/x")
	_, err := h.Run(context.Background(), h.Exec(103, "/bin/sh", "-c", "a b", ""))
	if err == nil || !strings.HasPrefix(err.Error(), "pct exec --keep-env 0 103 -- /bin/sh -c 'a b' '': "+
		"exit status 7\n| -P|/lxc|-n|103|--clear-env|--|/bin/sh|-c|a b||") ||
		strings.Contains(err.Error(), "SSL_CERT_FILE") {
		t.Errorf("%v", err)
	}
	h.LXCPath = ""
	if err := os.WriteFile(filepath.Join(h.Proc, "net/unix"),
		[]byte("0: 2 0 10000 1 1 1 @/var/lib/lxc/101/command\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = h.Run(context.Background(), h.Exec(101, "true"))
	if err == nil || !strings.Contains(err.Error(), "\n| -n|101|--clear-env|--|true|") {
		t.Errorf("%v", err)
	}
	for ctid, want := range map[int]string{
		103: "pct exec --keep-env 0 103 -- true: exit status 255\n| container '103' not running!",
		104: "pct exec --keep-env 0 104 -- true: exit status 2\n" +
			"| Configuration file 'nodes/alpha/lxc/104.conf' does not exist",
	} {
		if _, err := h.Run(context.Background(), h.Exec(ctid, "true")); err == nil || err.Error() != want {
			t.Errorf("%d: %v", ctid, err)
		}
	}
	if err := os.Remove(filepath.Join(bin, "lxc-attach")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/bin/env", filepath.Join(bin, "env")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	_, err = h.Run(context.Background(), h.Exec(101, "true"))
	if err == nil || !strings.Contains(err.Error(), "PHX_ATTACH=pct") {
		t.Errorf("%v", err)
	}
}

// Without being told, phx leaves pct out only where it is that of Proxmox VE.
func TestIsProxmox(t *testing.T) {
	root := t.TempDir()
	files := []string{"usr/sbin/pct", "usr/share/perl5/PVE/CLI/pct.pm", "usr/bin/lxc-attach"}
	for i, file := range files {
		if isProxmox(root, filepath.Join(root, files[0])) {
			t.Errorf("with %q", files[:i])
		}
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/sbin", filepath.Join(root, "sbin")); err != nil { // as on every Debian of today
		t.Fatal(err)
	}
	wrapper := filepath.Join(t.TempDir(), "pct")
	if err := os.WriteFile(wrapper, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for pct, want := range map[string]bool{
		root + "/usr/sbin/pct": true, root + "/sbin/pct": true, wrapper: false, "no-such-pct": false,
	} {
		if got := isProxmox(root, pct); got != want {
			t.Errorf("%s: %t", pct, got)
		}
	}
}
