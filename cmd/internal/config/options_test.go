package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// with returns the base file with further keys in container 103.
func with(keys string) string { return strings.Replace(base, `"extra": 0`, keys, 1) }

// TestMappedIDs: ids that are cut out of the standard map leave a whole map of
// both kinds.
func TestMappedIDs(t *testing.T) {
	const standardUsers, standardGroups = "u 0 100000 65536", "g 0 100000 65536"
	for _, tt := range []struct {
		maps string
		want []string
	}{
		{`{"type": "gid", "host_id": 33, "container_id": 33, "size": 1}`,
			[]string{standardUsers, "g 0 100000 33", "g 33 33 1", "g 34 100034 65502"}},
		{`{"type": "both", "host_id": 1000, "container_id": 0, "size": 2}`,
			[]string{"u 0 1000 2", "u 2 100002 65534", "g 0 1000 2", "g 2 100002 65534"}},
		{`{"type": "uid", "host_id": 1000, "container_id": 1001},
			{"type": "uid", "host_id": 1001, "container_id": 1000},
			{"type": "gid", "host_id": 44, "container_id": 65535}`,
			[]string{"u 0 100000 1000", "u 1000 1001 1", "u 1001 1000 1", "u 1002 101002 64534",
				"g 0 100000 65535", "g 65535 44 1"}},
		{`{"type": "uid", "host_id": 200000, "container_id": 0, "size": 65536}`,
			[]string{"u 0 200000 65536", standardGroups}},
		// The standard place of ids that are cut out is free.
		{`{"type": "uid", "host_id": 100033, "container_id": 34},
			{"type": "uid", "host_id": 100034, "container_id": 33}`,
			[]string{"u 0 100000 33", "u 33 100034 1", "u 34 100033 1", "u 35 100035 65501", standardGroups}},
	} {
		c := parse(t, with(`"id_maps": [`+tt.maps+`]`)).Containers[103]
		if !slices.Equal(c.IDMaps, tt.want) || len(c.MappedIDs) == 0 {
			t.Errorf("%s:\n%q, want\n%q", tt.maps, c.IDMaps, tt.want)
		}
	}
	c := parse(t, with(`"id_maps": []`)).Containers[103]
	if c.IDMaps == nil || len(c.IDMaps) > 0 || c.MappedIDs != nil {
		t.Errorf("%q, %v", c.IDMaps, c.MappedIDs)
	}
}

// TestVersionOfPct: what the host's pct does not know is a mistake at its place,
// and nothing is one where the version is not known.
func TestVersionOfPct(t *testing.T) {
	for _, tt := range []struct{ keys, since, before, what string }{
		{`"devices": ¦[{"path": "/dev/kvm"}]`, "5.0.7", "5.0.6",
			"devices needs pve-container 5.0.7, and this host has 5.0.6"},
		{`"devices": [{"path": "/dev/kvm", "deny_write": ¦false}]`, "5.2.0", "5.1.12", "deny_write needs"},
		{`"volumes": [{"pool": "p1", "size_gb": 1, "mount_point": "/v", "mountoptions": ["noatime", ¦"discard"]}]`,
			"5.2.1", "5.2.0", `"discard" needs`},
		{`"volumes": [{"pool": "p1", "size_gb": 1, "mount_point": "/v", "keepattrs": ¦true}]`, "6.1.2", "6.0.18",
			"keepattrs needs"},
		{`"rootfs_options": {"mountoptions": [¦"lazytime"]}`, "4.1-3", "4.1-2", `"lazytime" needs`},
		{`"ostype": ¦"nixos"`, "4.1-5", "4.1-4", `"nixos" needs`},
		{`"arch": ¦"riscv64"`, "4.4-3", "4.4-2", `"riscv64" needs`},
		{`"timezone": ¦"host"`, "3.1-9", "3.1-8", "timezone needs"},
		{`"tags": ¦["a"]`, "3.0-12", "3.0-11", "tags needs"},
	} {
		text := with(tt.keys)
		at := strings.Index(text, "¦")
		text = strings.Replace(text, "¦", "", 1)
		_, err := newParser(text, &Host{PCT: tt.before}).file("f.json", false)
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Mistakes) != 1 || !strings.Contains(wrong.Mistakes[0].Msg, tt.what) {
			t.Errorf("%s: %v, want %s", tt.keys, err, tt.what)
		} else if m := wrong.Mistakes[0]; m.Line != 27 || m.Col != at-strings.LastIndex(text[:at], "\n") {
			t.Errorf("%s: at %d:%d", tt.keys, m.Line, m.Col)
		}
		for _, version := range []string{tt.since, ""} {
			if _, err := newParser(text, &Host{PCT: version}).file("f.json", false); err != nil {
				t.Errorf("%s with %q: %v", tt.keys, version, err)
			}
		}
	}
}

// TestPublicKeys: what pct would refuse is refused here.
func TestPublicKeys(t *testing.T) {
	read := func(keys string) (*Container, error) {
		text := strings.Replace(base, `"template": "local:vztmpl/debian.tar.zst"`,
			`"template": "local:vztmpl/debian.tar.zst", "ssh_public_keys": `+keys, 1)
		f, err := Parse("f.json", []byte(text))
		if err != nil {
			return nil, err
		}
		return f.Containers[900], nil
	}
	const key = "ssh-ed25519 " + goodKey + " somebody@example.org"
	if c, err := read(`["` + key + `"]`); err != nil || !slices.Equal(c.SSHKeys, []string{key}) {
		t.Errorf("%v", err)
	}
	if c, err := read(`"/root/.ssh/authorized_keys"`); err != nil || c.SSHKeysFile != "/root/.ssh/authorized_keys" {
		t.Errorf("%v", err)
	}
	for _, wrong := range []string{"", "x", goodKey, "ssh-ed25519", "ssh-ed25519 ?", "# " + key,
		"-----BEGIN OPENSSH PRIVATE KEY-----", "ssh-ed25519 " + goodKey[:40]} {
		if _, err := read(`["` + wrong + `"]`); err == nil {
			t.Errorf("%q is accepted", wrong)
		}
	}
}

// TestMapsOfAnyIDs: of any ids that are cut out, either a whole map comes, in
// which each id of the container and of the host is there once, or a mistake,
// where one would be there twice.
func TestMapsOfAnyIDs(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const low = 40 // ids beyond need no look: they are all alike
	accepted := 0
	for range 2000 {
		var objects []string
		inside, host := map[string]int{}, map[string]int{} // how often each id is asked for
		for range 1 + random.IntN(4) {
			kind := []string{"uid", "gid", "both"}[random.IntN(3)]
			first, to, size := random.IntN(low), random.IntN(2*low), 1+random.IntN(6)
			if random.IntN(2) == 0 {
				to += standardHost
			}
			objects = append(objects, fmt.Sprintf(`{"type": %q, "container_id": %d, "host_id": %d, "size": %d}`,
				kind, first, to, size))
			for i := range size {
				for _, k := range []string{"uid", "gid"} {
					if kind == k || kind == "both" {
						inside[fmt.Sprint(k[:1], " ", first+i)]++
						host[fmt.Sprint(k[:1], " ", to+i)]++
					}
				}
			}
		}
		twice := false
		for _, k := range []string{"u", "g"} {
			for id := range standardSize {
				if key := fmt.Sprint(k, " ", id); inside[key] > 1 {
					twice = true
				} else if inside[key] == 0 {
					host[fmt.Sprint(k, " ", standardHost+id)]++
				}
				if id > 4*low {
					break
				}
			}
		}
		for _, n := range host {
			twice = twice || n > 1
		}
		f, err := Parse("f.json", []byte(with(`"id_maps": [`+strings.Join(objects, ", ")+`]`)))
		if (err != nil) != twice {
			t.Fatalf("%v: mapped twice %t, %v", objects, twice, err)
		}
		if err != nil {
			continue
		}
		accepted++
		for _, k := range []string{"u", "g"} {
			next := 0
			for _, line := range f.Containers[103].IDMaps {
				var first, to, size int
				if n, _ := fmt.Sscanf(line, k+" %d %d %d", &first, &to, &size); n < 3 {
					continue
				}
				if first != next {
					t.Fatalf("%v: %q", objects, f.Containers[103].IDMaps)
				}
				next += size
			}
			if next != standardSize {
				t.Fatalf("%v: %q", objects, f.Containers[103].IDMaps)
			}
		}
	}
	if accepted < 100 {
		t.Errorf("only %d were accepted", accepted)
	}
}
