package main

import (
	"errors"
	"fmt"
	"time"
)

// daemons does until a signal comes, twice a second, what Proxmox's daemons do every ten seconds:
// pve-firewall, the HA manager, and the cluster's file system with its locks. Every call of pct does
// the same; but to see what runs, and to get into a container, nobody needs to call it.
func (l *lab) daemons() error {
	for said := ""; ; {
		l.freeClusterLocks(staleAfter)
		err := errors.Join(l.applyFirewall(), l.manage())
		if err != nil && err.Error() != said {
			said = err.Error()
			fmt.Fprintln(l.stderr, said)
		}
		if err := l.sleep(time.Second / 2); err != nil {
			return err
		}
	}
}
