package labtest

import (
	"os"
	"strings"
	"testing"
)

// testInit starts a container whose systemd ends at once, because no inotify instance is left to it: to LXC it has
// run. The lab's pct says that the start has failed, and nothing of it once there are some again.
func (l lab) testInit(t *testing.T) {
	const ctid = "999"
	l.inside(t, "pct", "clone", base, ctid, "--snapname", "final-form")
	defer l.try(t, "scripts/lab", "run", "pct", "destroy", ctid, "--force")
	hook := l.path("storage", "lab", "images", ctid, "vm-"+ctid+"-disk-0", "limit")
	conf := l.path("pve", "lxc", ctid+".conf")
	write(t, conf, l.read(t, "pve", "lxc", ctid+".conf")+"lxc.mount.auto: proc:rw\nlxc.hook.start: /limit\n", 0o640)
	limit := func(n string) {
		write(t, hook, "#!/bin/sh\necho "+n+" >/proc/sys/user/max_inotify_instances\n", 0o755)
		if err := os.Chmod(hook, 0o755); err != nil {
			t.Fatal(err)
		}
	}

	limit("0")
	r := l.try(t, "scripts/lab", "run", "pct", "start", ctid)
	if r.status != 255 || !strings.Contains(r.stdout, "its init ended") ||
		!strings.Contains(r.stderr, "startup for container '"+ctid+"' failed") {
		t.Errorf("start without inotify instances: status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
	}
	if out := l.inside(t, "pct", "status", ctid); out != "status: stopped\n" {
		t.Errorf("after that: %q", out)
	}
	limit("100")
	l.inside(t, "pct", "start", ctid)
	if out := l.inside(t, "pct", "status", ctid); out != "status: running\n" {
		t.Errorf("after a good start: %q", out)
	}
}
