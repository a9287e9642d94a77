package pve

import (
	"reflect"
	"testing"
)

const conf = `#the gateway: 100%25 ours%3A yes
#phx%3A base_setup=0123456789ab step_ca=ba9876543210
#%C3%BC
arch: amd64
cores: 2
hostname: Step-CA
memory: 512
mp0: /srv/ssl,mp=/etc/nginx/ssl,ro=1
net0: name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:AA:BB:CC,ip=10.0.0.10/24,type=veth
rootfs: lab:103/vm-103-disk-0.raw,size=8G
swap: 0
lxc.apparmor.profile: unconfined
lxc.cgroup2.devices.allow = c 195:* rwm

[pve:pending]
delete: swap,mp0
features: nesting=1

[pre-configured]
#of the snapshot
memory: 256
lxc.apparmor.profile: generated
snaptime: 1763892000

[final-form]
memory: 512
parent: pre-configured
`

func TestParseConf(t *testing.T) {
	c := ParseConf([]byte(conf))
	if want := "the gateway: 100% ours: yes\nphx: base_setup=0123456789ab " +
		"step_ca=ba9876543210\nü"; c.Description != want {
		t.Errorf("description %q", c.Description)
	}
	if c.Values["memory"] != "512" || c.Values["snaptime"] != "" || c.Next()["features"] != "nesting=1" ||
		c.Next()["swap"] != "" || c.Next()["memory"] != "512" || c.Values["features"] != "" {
		t.Errorf("values %v, pending %v", c.Values, c.Pending)
	}
	if want := []RawLine{{"lxc.apparmor.profile", "unconfined"},
		{"lxc.cgroup2.devices.allow", "c 195:* rwm"}}; !reflect.DeepEqual(c.Raw, want) {
		t.Errorf("raw lines %v", c.Raw)
	}
	if len(c.Snapshots) != 2 || c.Snapshots[1].Name != "final-form" || c.Snapshot("none") != nil {
		t.Errorf("snapshots %+v", c.Snapshots)
	}
	s := c.Snapshot("pre-configured")
	if s == nil || s.Description != "of the snapshot" || s.Values["memory"] != "256" || s.Raw[0].Value != "generated" {
		t.Errorf("snapshot %+v", s)
	}
}

func TestHashDependsOnParts(t *testing.T) {
	seen := map[string]bool{}
	for _, parts := range [][][]byte{{[]byte("ab")}, {[]byte("a"), []byte("b")}, {[]byte("b"), []byte("a")},
		{[]byte("ab"), nil}} {
		seen[Hash(parts...)] = true
	}
	if len(seen) != 4 {
		t.Errorf("hashes %v", seen)
	}
}

func TestProperties(t *testing.T) {
	text := "/srv/with blank,mp=/etc/x,ro=1"
	ps := ParseProperties(text)
	if ps.Get("") != "/srv/with blank" || ps.Get("mp") != "/etc/x" || ps.Get("none") != "" || ps.String() != text {
		t.Errorf("properties %v", ps)
	}
	ps.Set("ro", "0")
	ps.Set("backup", "1")
	if got := ps.String(); got != "/srv/with blank,mp=/etc/x,ro=0,backup=1" {
		t.Errorf("properties %s", got)
	}
}

func TestGigabytes(t *testing.T) {
	for text, want := range map[string]int{"8G": 8, "8192M": 8, "1T": 1024, "8388608K": 8, "8589934592": 8, "8.5G": 8} {
		if got, err := Gigabytes(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "G", "8GB", "x"} {
		if got, err := Gigabytes(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// A snapshot that is being taken or deleted, or never was to the end, is none.
func TestUnfinishedSnapshot(t *testing.T) {
	c := ParseConf([]byte("memory: 512\n\n[done]\nmemory: 1\n\n[taking]\nmemory: 2\nsnapstate: " +
		"prepare\n\n[deleting]\nsnapstate: delete\n"))
	for name, want := range map[string]bool{"done": true, "taking": false, "deleting": false, "none": false} {
		if have := c.Snapshot(name) != nil; have != want {
			t.Errorf("%s: %v", name, have)
		}
	}
	if len(c.Snapshots) != 3 || c.Snapshots[0].unfinished() || !c.Snapshots[1].unfinished() ||
		!c.Snapshots[2].unfinished() {
		t.Errorf("%+v", c.Snapshots)
	}
}
