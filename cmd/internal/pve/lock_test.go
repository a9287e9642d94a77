package pve

import "testing"

// Whatever a task that was killed leaves beside its lock is put right as well.
func TestReleaseLock(t *testing.T) {
	const snapshots = "\n[a]\nmemory: 1\n\n[b]\nmemory: 1\n\n[c]\nsnapstate: prepare\n"
	for text, want := range map[string]string{
		"lock: backup\n":               "pct unlock 7",
		"lock: backup\n" + snapshots:   "pct unlock 7 && pct delsnapshot 7 c --force 1",
		"lock: snapshot\n" + snapshots: "pct unlock 7 && pct delsnapshot 7 c --force 1",
		"lock: snapshot-delete\n":      "pct unlock 7",
		"lock: rollback\n" + snapshots: "pct unlock 7 && pct rollback 7 SNAPSHOT, with the one that it was to " +
			"become again: a, b",
		"lock: rollback\n\n[a]\nmemory: 1": "pct unlock 7 && pct rollback 7 a",
		"lock: create\n" + snapshots:       "pct unlock 7 && pct destroy 7 --destroy-unreferenced-disks 1",
		"lock: mounted\n":                  "pct unmount 7",
	} {
		if have := ParseConf([]byte(text)).releaseLock(7); have != want {
			t.Errorf("%q: %s, want: %s", text, have, want)
		}
	}
}
