package main

import (
	"os"
	"path/filepath"
	"strconv"
)

// Called as lxc-attach, this program stands in for that, too: only for the fake's containers, and
// only with the options that Proxmox and phx give it. PHX_LAB_DELAY is Perl's time, which it does
// not take. Its calls have a log of their own, log/attach.log.

// attach is a command line of lxc-attach.
func (l *lab) attach(args []string) error {
	path, name, keepEnv := "/var/lib/lxc", "", true
	rest := args
	for ; len(rest) > 0 && rest[0] != "--"; rest = rest[1:] {
		switch option := rest[0]; {
		case option == "--clear-env", option == "--keep-env":
			keepEnv = option == "--keep-env"
		case (option == "-n" || option == "-P") && len(rest) > 1:
			if option == "-n" {
				name = rest[1]
			} else {
				path = rest[1]
			}
			rest = rest[1:]
		default:
			return die(1, "lxc-attach: the lab does not know this option: %s", option)
		}
	}
	vmid, err := strconv.Atoi(name)
	if err != nil || len(rest) < 2 {
		return die(1, "lxc-attach: want [-P DIR] -n CTID [--clear-env|--keep-env] -- COMMAND, got: %s", quote(args))
	}
	if err := l.setBackend(); err != nil {
		return err
	}
	b, ok := l.backend.(*fakeBackend)
	if !ok {
		return die(1, "lxc-attach: only the fake's; with PHX_LAB_BACKEND=lxc call LXC's own")
	}
	if os.Getenv("PHX_LAB_READONLY") == "1" {
		return die(99, "lxc-attach: refused by PHX_LAB_READONLY: %s", quote(args))
	}
	// LXC knows nothing of conf files: a container is what answers at its socket.
	if filepath.Clean(path) != filepath.Join(b.lab.dir, "lxc") || !b.running(vmid) {
		reason := "lxc-attach: " + name + ": ../src/lxc/attach.c: "
		return die(1, "%s", reason+"get_attach_context: 406 Connection refused - Failed to get init pid\n"+
			reason+"lxc_attach: 1470 Connection refused - Failed to get attach context")
	}
	c := &call{lab: l, cmd: table().Commands["exec"], p: params{"vmid": name}}
	if err := c.fault(); err != nil {
		return outside(err)
	}
	return b.exec(vmid, keepEnv, rest[1:])
}
