package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// action is what a plan can ask for.
type action struct {
	run     func(*job, context.Context) error
	changes bool   // it can change something: a dry run previews it
	done    string // the message when it has changed something
	success func(*job, time.Duration) event.Body
}

var actions = map[string]action{
	"create":  {(*job).converge, true, "ready", (*job).isReady},
	"start":   {(*job).startAction, true, "is up", (*job).isStarted},
	"restart": {(*job).restartAction, true, "is up", (*job).isStarted},
	"stop":    {(*job).stopAction, true, "is down", (*job).isStopped},
	"delete":  {(*job).deleteAction, true, "is gone", (*job).isRemoved},
	"status":  {(*job).statusAction, false, "", (*job).hasStatus},
}

func (j *job) isReady(elapsed time.Duration) event.Body {
	return event.ContainerReady{
		CTID: j.ctid, Name: j.c.Name, IP: address(j.c), Changed: len(j.changes) > 0, Changes: j.changes,
		RestartRequired: j.restartRequired(), ApplicationScript: j.c.ApplicationScript, NotInForce: j.notInForce,
		ElapsedMS: elapsed.Milliseconds(),
	}
}

func (j *job) isStarted(time.Duration) event.Body { return event.ContainerStarted(j.hasChanged()) }
func (j *job) isStopped(time.Duration) event.Body { return event.ContainerStopped(j.hasChanged()) }
func (j *job) isRemoved(time.Duration) event.Body { return event.ContainerRemoved(j.hasChanged()) }

func (j *job) hasChanged() event.ContainerChanged {
	return event.ContainerChanged{CTID: j.ctid, Name: j.c.Name, Changed: len(j.changes) > 0}
}

func (j *job) hasStatus(time.Duration) event.Body {
	status := event.ContainerStatus{
		CTID: j.ctid, Name: j.c.Name, State: j.state(), Lock: j.lock(), IP: address(j.c),
		Applied: pve.Record{}, RestartRequired: []string{},
	}
	if j.conf != nil {
		status.Applied, status.RestartRequired = j.record, j.restartRequired()
	}
	return status
}

// state is running, stopped or missing.
func (j *job) state() string {
	switch {
	case j.conf == nil:
		return "missing"
	case j.running:
		return "running"
	}
	return "stopped"
}

// lock is what Proxmox has locked the container for, "" when it has not.
func (j *job) lock() string {
	if j.conf == nil {
		return ""
	}
	return j.conf.Values["lock"]
}

func (j *job) statusAction(context.Context) error {
	if lock := j.lock(); lock != "" {
		j.logf("%s, locked (%s)", j.state(), lock)
	} else {
		j.logf("%s", j.state())
	}
	return nil
}

// mustExist returns an error for a container that has not been created.
func (j *job) mustExist(what string) error {
	j.stage = what
	if j.conf == nil {
		return fmt.Errorf("the container does not exist: create it with: phoenix %d", j.ctid)
	}
	return nil
}

func (j *job) startAction(ctx context.Context) error {
	if err := j.mustExist("start"); err != nil {
		return err
	}
	return j.start(ctx)
}

// restartAction restarts a running container, and starts a stopped one.
func (j *job) restartAction(ctx context.Context) error {
	if err := j.mustExist("restart"); err != nil {
		return err
	}
	return j.reboot(ctx)
}

func (j *job) stopAction(ctx context.Context) error {
	if err := j.mustExist("stop"); err != nil {
		return err
	}
	return j.shutdown(ctx)
}

// deleteAction destroys a container, which was named for it.
func (j *job) deleteAction(ctx context.Context) error {
	j.stage = "delete"
	if j.conf == nil {
		return nil
	}
	switch err := j.awaitUnlocked(ctx); {
	case errors.Is(err, fs.ErrNotExist): // others have destroyed it
		j.conf = nil
		return nil
	case err != nil:
		return err
	}
	if pve.ParseBool(j.conf.Values["protection"]) {
		return fmt.Errorf("the container is protected: to delete it anyway, run: pct set %d --protection 0", j.ctid)
	}
	switch _, managed, err := j.host.HAState(j.ctid); {
	case err != nil:
		return err
	case managed: // Proxmox would refuse it, but only once it is down
		return fmt.Errorf("HA manages the container: to delete it, take it out there with: ha-manager remove ct:%d", j.ctid)
	}
	ran := j.running
	if err := j.shutdown(ctx); err != nil {
		return err
	}
	start := time.Now()
	if err := j.pct(ctx, "destroy", j.id()); err != nil {
		if ran {
			err = fmt.Errorf("%w\nit was shut down for it, and is down now: to have it back, run: phoenix --action start %d", err, j.ctid)
		}
		return err
	}
	j.changed(start, "destroyed")
	j.conf = nil
	return nil
}
