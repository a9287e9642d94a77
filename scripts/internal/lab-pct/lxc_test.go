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

func TestLXCNetwork(t *testing.T) {
	dir := t.TempDir()
	b := &lxcBackend{&lab{dir: dir, node: "node", ctx: context.Background(), stdout: os.Stdout, stderr: os.Stderr,
		warned: make(map[int][]byte)}}
	const conf = "hostname: x\nrootfs: lab:105/vm-105-disk-0.raw,size=8G\n" +
		"net3: name=eth3,bridge=lo,gw6=fe80::1,hwaddr=BC:24:11:00:00:01,ip=dhcp,ip6=fd00::5/64,mtu=1400,type=veth\n"
	if err := b.writeConfig(parseConfig(105, []byte(conf), new(bytes.Buffer))); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "lxc", "105", "config"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"type = veth", "veth.pair = veth105i3", "link = lo", "flags = up", "name = eth3",
		"hwaddr = BC:24:11:00:00:01", "mtu = 1400", "ipv6.address = fd00::5/64", "ipv6.gateway = fe80::1"} {
		if !strings.Contains(string(got), "\nlxc.net.3."+want+"\n") {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(string(got), "ipv4") {
		t.Errorf("an address of DHCP:\n%s", got)
	}
	for _, vlan := range []string{"tag=5", "trunks=5;6"} {
		text := strings.Replace(conf, "type=veth", vlan+",type=veth", 1)
		err := b.writeConfig(parseConfig(105, []byte(text), new(bytes.Buffer)))
		if err == nil || !strings.Contains(err.Error(), "tag and trunks of an interface are not part of the lab") {
			t.Errorf("%s: %v", vlan, err)
		}
	}
}
