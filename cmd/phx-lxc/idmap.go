package main

import (
	"fmt"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
)

// mappedOwner returns the host's ids of an owner and a group in the container:
// by its maps of ids, or else shifted by 100000 if it is unprivileged, as it
// is unless the configuration says otherwise.
func mappedOwner(c *config.Container, uid, gid int) (hostUID, hostGID int, err error) {
	var maps []string
	for _, l := range wantedRaw(c) {
		if l.Key == idMapKey {
			maps = append(maps, l.Value)
		}
	}
	if maps == nil {
		if c.Unprivileged != nil && !*c.Unprivileged {
			return uid, gid, nil
		}
		maps = []string{"u 0 100000 65536", "g 0 100000 65536"}
	}
	if hostUID, err = mapped(maps, "u", uid); err != nil {
		return 0, 0, err
	}
	if hostGID, err = mapped(maps, "g", gid); err != nil {
		return 0, 0, err
	}
	return hostUID, hostGID, nil
}

func mapped(maps []string, kind string, id int) (int, error) {
	if id == -1 {
		return id, nil
	}
	for _, m := range maps {
		var first, host, count int
		if _, err := fmt.Sscanf(m, kind+" %d %d %d", &first, &host, &count); err == nil && first <= id && id < first+count {
			return host + id - first, nil
		}
	}
	what := map[string]string{"u": "user", "g": "group"}[kind]
	return 0, fmt.Errorf("%s %d of the container is in none of its maps of ids (%s): nothing on the host can belong to it", what, id, strings.Join(maps, "; "))
}
