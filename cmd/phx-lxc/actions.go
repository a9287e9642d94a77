package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"thinkheads.ai/phx/cmd/internal/pve"
)

// action is what a plan can ask for.
type action struct {
	run     func(*job, context.Context) error
	changes bool   // it can change something: a dry run previews it
	done    string // the message when it has changed something
	event   string // the event that tells of its success
	fields  func(*job, time.Duration) any
}

var actions = map[string]action{
	"create":  {(*job).converge, true, "ready", "ct.ready", (*job).readyFields},
	"start":   {(*job).startAction, true, "is up", "ct.started", (*job).changedFields},
	"restart": {(*job).restartAction, true, "is up", "ct.started", (*job).changedFields},
	"stop":    {(*job).stopAction, true, "is down", "ct.stopped", (*job).changedFields},
	"delete":  {(*job).deleteAction, true, "is gone", "ct.removed", (*job).changedFields},
	"status":  {(*job).statusAction, false, "", "ct.status", (*job).statusFields},
}

func (j *job) readyFields(elapsed time.Duration) any {
	return struct {
		Name              string   `json:"name"`
		IP                string   `json:"ip"`
		Changed           bool     `json:"changed"`
		Changes           []string `json:"changes"`
		RestartRequired   []string `json:"restart_required"`
		ApplicationScript string   `json:"application_script"`
		NotInForce        bool     `json:"firewall_not_in_force,omitempty"`
		ElapsedMS         int64    `json:"elapsed_ms"`
	}{
		j.c.Name, address(j.c), len(j.changes) > 0, j.changes, j.restartRequired(),
		j.c.ApplicationScript, j.notInForce, elapsed.Milliseconds(),
	}
}

func (j *job) changedFields(time.Duration) any {
	return struct {
		Name    string `json:"name"`
		Changed bool   `json:"changed"`
	}{j.c.Name, len(j.changes) > 0}
}

func (j *job) statusFields(time.Duration) any {
	fields := struct {
		Name            string     `json:"name"`
		State           string     `json:"state"`
		Lock            string     `json:"lock,omitempty"`
		IP              string     `json:"ip"`
		Applied         pve.Record `json:"applied"`
		RestartRequired []string   `json:"restart_required"`
	}{j.c.Name, j.state(), j.lock(), address(j.c), pve.Record{}, []string{}}
	if j.conf != nil {
		fields.Applied, fields.RestartRequired = j.record, j.restartRequired()
	}
	return fields
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
