package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"thinkheads.ai/phx/cmd/internal/process"
)

// haPatience is how long HA may take to do what it was asked for: its manager
// looks every ten seconds, and a shutdown may take a minute.
const haPatience = 3 * time.Minute

// bring runs a command of pct that starts or stops the container. Of one that
// HA manages, Proxmox only requests that from HA and exits 0: it is waited for.
func (j *job) bring(ctx context.Context, running bool, args ...string) error {
	out, err := j.host.Pct(ctx, args...)
	switch {
	case err != nil && j.hasState(ctx, running): // others have brought it there
		if stillRuns := (*process.StillRuns)(nil); errors.As(err, &stillRuns) {
			j.logf("%v", err) // no run can work on the container before its end
		}
		return nil
	case err != nil, !bytes.Contains(out, []byte("Requesting HA ")):
		return err
	}
	wanted := "stopped"
	if running {
		wanted = "started"
	}
	j.logf("HA manages the container and was asked for it: waiting until it is %s", wanted)
	patience := haPatience
	if limit := j.host.Timeout; limit > 0 {
		patience = min(patience, limit)
	}
	for deadline := time.Now().Add(patience); !j.hasState(ctx, running); {
		if time.Now().After(deadline) {
			return j.haRefusal(wanted, patience)
		}
		if err := sleep(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	return nil
}

// haRefusal says what to do when HA has not done what it was asked for.
func (j *job) haRefusal(wanted string, patience time.Duration) error {
	state, _, err := j.host.HAState(j.ctid)
	if err != nil {
		return err
	}
	set := fmt.Sprintf("ha-manager set ct:%d --state ", j.ctid)
	if state != wanted {
		return fmt.Errorf("HA, which manages the container, was asked to have it %s, and its configuration has it %s: run: %s%s", wanted, state, set, wanted)
	}
	return fmt.Errorf("HA, which manages the container, was asked to have it %s, and has not in %s: see why with: ha-manager status; from an error it comes back with %sdisabled, and, once it is disabled, %s%s",
		wanted, patience, set, set, wanted)
}
