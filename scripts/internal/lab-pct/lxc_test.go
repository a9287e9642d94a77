package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLXCConfig(t *testing.T) {
	dir := t.TempDir()
	l := &lab{dir: dir, node: "node", ctx: context.Background(), stdout: os.Stdout, stderr: os.Stderr,
		warned: make(map[int][]byte)}
	b := &lxcBackend{l}
	conf := parseConfig(103, []byte(`hostname: granite-3.3
unprivileged: 1
rootfs: lab:103/vm-103-disk-0.raw,size=8G
mp0: /srv/two words,mp=/mnt/two words,ro=1
mp1: lab:103/vm-103-disk-1.raw,mp=/data,mountoptions=noatime;discard
lxc.mount.auto: sys:rw
lxc.cap.drop: sys_time
`), new(bytes.Buffer))
	if err := b.writeConfig(conf); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "lxc", "103", "config"))
	if err != nil {
		t.Fatal(err)
	}
	got := string(data)
	images := filepath.Join(dir, "storage", "lab", "images", "103")
	for _, want := range []string{
		"lxc.include = /usr/share/lxc/config/userns.conf\n",
		"lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\nlxc.rootfs.options = idmap=container\n",
		"lxc.rootfs.path = dir:" + images + "/vm-103-disk-0\n",
		"lxc.uts.name = granite-3\n",
		`lxc.mount.entry = /srv/two\040words mnt/two\040words none rbind,ro,create=dir 0 0` + "\n",
		"lxc.mount.entry = " + images + "/vm-103-disk-1 data none bind,idmap=container,noatime,create=dir 0 0\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if raw := "lxc.mount.auto = sys:rw\nlxc.cap.drop = sys_time\n"; !strings.HasSuffix(got, raw) {
		t.Errorf("the raw lines %q are not last", raw)
	}
	// A map of its own takes the place of the usual one.
	own := parseConfig(104, []byte("hostname: x\nrootfs: lab:104/vm-104-disk-0.raw,size=8G\n"+
		"lxc.idmap: u 0 100000 65536\nlxc.idmap: g 0 100000 33\nlxc.idmap: g 33 33 1\n"), new(bytes.Buffer))
	if err := b.writeConfig(own); err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile(filepath.Join(dir, "lxc", "104", "config"))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(data); strings.Count(got, "lxc.idmap") != 3 || !strings.Contains(got, "userns.conf\n") {
		t.Errorf("with a map of its own:\n%s", got)
	}
	conf.values["net0"] = "name=eth0,bridge=nosuchbridge"
	if err := b.writeConfig(conf); err == nil || err.Error() != "bridge 'nosuchbridge' does not exist" {
		t.Errorf("with a missing bridge: %v", err)
	}
}
