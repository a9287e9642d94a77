package pve

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGuests(t *testing.T) {
	h := &Host{PVERoot: t.TempDir()}
	for name, text := range map[string]string{
		"nodes/a/lxc/101.conf": "hostname: web\n" +
			"net0: name=eth0,bridge=vmbr0,hwaddr=bc:24:11:00:00:01,ip=10.0.0.1/24,ip6=auto\n" +
			"[pve:pending]\nnet0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:02,ip=dhcp,ip6=fd00::1/64\n" +
			"[snap]\nnet0: name=eth0,hwaddr=BC:24:11:00:00:09,ip=10.0.0.9/24\n",
		"nodes/b/qemu-server/900.conf": "name: db\nnet0: virtio=BC:24:11:00:00:03,bridge=vmbr0,firewall=1\n" +
			"net1: model=e1000,macaddr=BC:24:11:00:00:04,bridge=vmbr0\nipconfig0: ip=10.0.0.3/24,gw=10.0.0.254\n",
		"nodes/b/qemu-server/901.conf": "template: 1\nnet0: virtio=BC:24:11:00:00:05,bridge=vmbr0\n",
		"lxc/102.conf":                 "net0: name=eth0,bridge=vmbr0,ip=manual\n",
		"lxc/notes.conf":               "net0: name=eth0,ip=10.0.0.8/24\n",
	} {
		path := filepath.Join(h.PVERoot, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nodes/c", filepath.Join(h.PVERoot, "local")); err != nil {
		t.Fatal(err)
	}
	guests, err := h.Guests()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, g := range guests {
		have = append(have, fmt.Sprintf("%s on %s: %v %v", g, g.Node, g.Addresses, g.MACs))
	}
	want := []string{
		"container 101 web on a: [10.0.0.1 fd00::1] [BC:24:11:00:00:01 BC:24:11:00:00:02]",
		"container 102 on c: [] []",
		"virtual machine 900 db on b: [10.0.0.3] [BC:24:11:00:00:03 BC:24:11:00:00:04]",
	}
	if strings.Join(have, "\n") != strings.Join(want, "\n") {
		t.Errorf("have\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

func TestStorageStatus(t *testing.T) {
	have, err := parseStorageStatus(`
Name           Type     Status     Total (KiB)      Used (KiB) Available (KiB)        %
local           dir     active        98497780        13509768        79938464   13.72%
nas             nfs   inactive               0               0               0    0.00%
old             dir   disabled               0               0               0      N/A
`)
	if err != nil || len(have) != 3 || have["local"] != (StorageStatus{"active", 98497780 << 10, 79938464 << 10}) ||
		have["nas"].State != "inactive" || have["old"].State != "disabled" {
		t.Errorf("%v, %v", have, err)
	}
	for _, text := range []string{"local dir active\n", "local dir active a b c 1%\n"} {
		if have, err := parseStorageStatus(text); err == nil {
			t.Errorf("%q is read as %v", text, have)
		}
	}
}
