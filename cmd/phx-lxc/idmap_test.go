package main

import (
	"strings"
	"testing"
)

func TestHostOwner(t *testing.T) {
	const maps = `"id_maps": ["u 0 200000 1000", "u 1000 1000 1", "g 0 300000 1000", "g 5000 7 10"]`
	for _, tt := range []struct {
		name, keys       string
		uid, gid         int
		hostUID, hostGID int
		err              string
	}{
		{"unprivileged", `"unprivileged": true`, 33, 0, 100033, 100000, ""},
		{"unprivileged unless it says otherwise", `"start_at_boot": true`, 0, 65535, 100000, 165535, ""},
		{"privileged", `"unprivileged": false`, 33, 34, 33, 34, ""},
		{"the configured maps, not 100000 whatever they say", maps, 33, 34, 200033, 300034, ""},
		{"further maps", maps, 1000, 5009, 1000, 16, ""},
		{"maps among lxc_options", `"lxc_options": ["lxc.idmap=u 0 9 9", "lxc.idmap: g 0 8 8"]`, 1, 1, 10, 9, ""},
		{"maps of a privileged container", `"unprivileged": false, ` + maps, 0, 0, 200000, 300000, ""},
		{"left as it is", maps, -1, 0, -1, 300000, ""},
		{"user in no map", maps, 1001, 0, 0, 0,
			"user 1001 of the container is in none of its maps of ids (u 0 200000 1000; u 1000 1000 1; g 0"},
		{"group in no map", maps, 0, 1000, 0, 0, "group 1000 of the container is in none of its maps"},
		{"beyond the default map", `"unprivileged": true`, 0, 65536, 0, 0,
			"group 65536 of the container is in none of its maps"},
		{"no map for groups", `"id_maps": ["u 0 200000 1000"]`, 0, 0, 0, 0,
			"group 0 of the container is in none of its maps"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			uid, gid, err := hostOwner(containerWith(t, tt.keys), nil, tt.uid, tt.gid)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v", err)
				}
			} else if err != nil || uid != tt.hostUID || gid != tt.hostGID {
				t.Errorf("%d:%d, %v", uid, gid, err)
			}
		})
	}
}
