package pve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/process"
)

var (
	haResource = regexp.MustCompile(`^(\S+?):\s*(\S+)\s*$`)
	haWanted   = regexp.MustCompile(`^\s+state\s+(\S+)\s*$`)
)

// haState returns the state that a container is to have according to HA's
// configuration: started, stopped, disabled or ignored. managed reports
// whether it is there at all.
func (h *Host) haState(ctid int) (state string, managed bool, err error) {
	text, err := readIfThere(filepath.Join(h.PVERoot, "ha/resources.cfg"))
	if err != nil {
		return "", false, fmt.Errorf("read HA's configuration: %w", err)
	}
	ours := false
	for line := range strings.Lines(string(text)) {
		if m := haResource.FindStringSubmatch(line); m != nil {
			if ours = m[1] == "ct" && m[2] == fmt.Sprint(ctid); ours {
				state, managed = "started", true
			}
			continue
		}
		m := haWanted.FindStringSubmatch(line)
		if m != nil && ours && m[1] != "enabled" { // an old name of started
			state = m[1]
		}
	}
	return state, managed, nil
}

// haPatience is how long HA may take to do what it was asked for: its manager
// looks every ten seconds, and a shutdown may take a minute.
const haPatience = 3 * time.Minute

// switchTo runs a command of pct that starts or stops the container. Of one that
// HA manages, Proxmox only requests that from HA and exits 0: it is waited for.
func (c *Container) switchTo(ctx context.Context, running bool, args ...string) error {
	out, err := c.host.pct(ctx, args...)
	switch {
	case err != nil && c.hasState(ctx, running): // others have brought it there
		if stillRuns := (*process.StillRuns)(nil); errors.As(err, &stillRuns) {
			c.warnf("%v", err) // no run can work on the container before its end
		}
		return nil
	case err != nil:
		return err
	case !bytes.Contains(out, []byte("Requesting HA ")):
		c.Running = running
		return nil
	}
	wanted := "stopped"
	if running {
		wanted = "started"
	}
	c.logf("HA manages the container and was asked for it: waiting until it is %s", wanted)
	c.host.begins("waiting for HA, until it is " + wanted)
	patience := min(haPatience, c.host.limit())
	for deadline := time.Now().Add(patience); !c.hasState(ctx, running); {
		if time.Now().After(deadline) {
			return c.haRefusal(wanted, patience)
		}
		if err := Sleep(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	c.host.begins("")
	return nil
}

// haRefusal says what to do when HA has not done what it was asked for.
func (c *Container) haRefusal(wanted string, patience time.Duration) error {
	state, _, err := c.host.haState(c.CTID)
	if err != nil {
		return err
	}
	set := fmt.Sprintf("ha-manager set ct:%d --state ", c.CTID)
	if state != wanted {
		return fmt.Errorf("HA, which manages the container, was asked to have it %s, "+
			"and its configuration has it %s: run: %s%s", wanted, state, set, wanted)
	}
	return fmt.Errorf("HA, which manages the container, was asked to have it %s, and has not in %s: "+
		"see why with: ha-manager status; from an error it comes back with %sdisabled, "+
		"and, once it is disabled, %s%s", wanted, patience, set, set, wanted)
}
