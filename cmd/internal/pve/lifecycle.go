package pve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Start starts the container unless it runs, and reports whether it has.
func (c *Container) Start(ctx context.Context) (started bool, err error) {
	if c.Running {
		return false, nil
	}
	if err := c.AwaitUnlocked(ctx); err != nil || c.Running {
		return false, err
	}
	if c.IsTemplate() {
		return false, errors.New("it is a template, which never runs: start a clone of it")
	}
	if err := c.switchTo(ctx, true, "start", c.ID()); err != nil {
		return false, err
	}
	return true, c.haveStarted(ctx)
}

// Restart restarts the container, or starts it when it does not run. It returns
// what it has done: "restarted", "started", or "" with an error.
func (c *Container) Restart(ctx context.Context) (done string, err error) {
	// pct reboot does not look at the lock: it shuts the container down, and
	// only the start is refused then.
	if err := c.AwaitUnlocked(ctx); err != nil {
		return "", err
	}
	down := ""
	if c.Running {
		_, err := c.host.pct(ctx, "reboot", c.ID(), "--timeout", "60")
		if err == nil {
			return "restarted", c.haveStarted(ctx)
		}
		if ctx.Err() != nil || !c.hasState(ctx, false) {
			return "", err
		}
		c.warnf("%v\nand it is down now: it is started again", err)
		down = "it was shut down for the restart and is down now: "
	}
	started, err := c.Start(ctx)
	if err != nil && down != "" {
		err = fmt.Errorf("%s%w", down, err)
	}
	if started {
		done = "started"
	}
	return done, err
}

// haveStarted brings Conf up to date after a start: values that waited for it
// count now, and no restart is needed any more.
func (c *Container) haveStarted(ctx context.Context) error {
	err := c.Reread(func(conf *Conf) {
		conf.Values = conf.Next()
		conf.Pending, conf.Deleted = nil, nil
	})
	if err != nil {
		return err
	}
	return c.forgetRestart(ctx)
}

// Shutdown stops the container if it runs, in order or else by force, and
// reports whether it has.
func (c *Container) Shutdown(ctx context.Context) (stopped bool, err error) {
	if !c.Running {
		return false, nil
	}
	if err := c.AwaitUnlocked(ctx); err != nil || !c.Running {
		return false, err
	}
	if err := c.switchTo(ctx, false, "shutdown", c.ID(), "--timeout", "60", "--forceStop", "1"); err != nil {
		return false, err
	}
	return true, c.Reread(func(*Conf) {})
}

// CheckDestroy returns why Proxmox would not destroy the container, nil if it
// would: it refuses only once the container is down. before are those that are
// destroyed before it.
func (c *Container) CheckDestroy(before ...int) error {
	if ParseBool(c.Conf.Values["protection"]) {
		return fmt.Errorf("the container is protected: to delete it anyway, run: pct set %d --protection 0", c.CTID)
	}
	if c.Conf.HasBaseVolumes() {
		clones, err := c.host.LinkedClones(c.CTID)
		if err != nil {
			return err
		}
		clones = slices.DeleteFunc(clones, func(id int) bool { return slices.Contains(before, id) })
		if len(clones) > 0 {
			return fmt.Errorf("it is a template with linked clones, which have their disks on top of its own: %s: "+
				"they have to be deleted with it", joinIDs(clones))
		}
	}
	_, managed, err := c.host.haState(c.CTID)
	if managed && err == nil {
		err = fmt.Errorf("HA manages the container: to delete it, take it out there with: ha-manager remove ct:%d",
			c.CTID)
	}
	if err != nil {
		return err
	}
	job, err := c.host.replication(c.CTID)
	if job != "" {
		err = fmt.Errorf("the container is replicated: to delete it, end that first, with: pvesr delete %s", job)
	}
	return err
}

// forgetRestart forgets that a restart is needed.
func (c *Container) forgetRestart(ctx context.Context) error {
	if c.Conf.mark(restartMark) == "" {
		return nil
	}
	_, err := c.rewrite(ctx, func(text []byte) []byte { return setMark(text, restartMark, "") })
	return err
}

// ClearRestartIfDone forgets that a restart is needed if others have restarted
// the container since.
func (c *Container) ClearRestartIfDone(ctx context.Context) error {
	since, _ := restartOf(c.Conf)
	if since == 0 || !c.Running {
		return nil
	}
	at, found := c.host.startedAt(c.CTID)
	switch {
	case found && at.Before(time.Unix(since, 0)):
		return nil
	case c.host.Direct:
		if !found || at.Before(time.Unix(since+1, 0)) { // since is rounded down
			return nil
		}
		return c.forgetRestart(ctx)
	}
	out, err := c.host.Run(ctx, Command{Argv: []string{c.host.PCT, "status", c.ID(), "--verbose"}, Reads: true})
	if err != nil {
		return err
	}
	now := time.Now().Unix()
	for line := range strings.Lines(string(out)) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "uptime: ")
		uptime, err := strconv.ParseInt(text, 10, 64)
		// It is rounded down: the start may be a second earlier.
		if ok && err == nil && uptime > 0 && now-uptime-1 >= since {
			return c.forgetRestart(ctx)
		}
	}
	return nil
}

// RestartRequired returns the options whose values wait, in whole or in part, for a
// restart of the running container, and "lxc" for its raw lines.
func (c *Container) RestartRequired() []string {
	waiting := []string{}
	if c.Conf == nil || !c.Running {
		return waiting
	}
	waiting = append(waiting, c.Conf.Deleted...)
	waiting = append(waiting, slices.Collect(maps.Keys(c.Conf.Pending))...)
	_, marked := restartOf(c.Conf)
	waiting = append(waiting, marked...)
	slices.Sort(waiting)
	return slices.Compact(waiting)
}
