package main

import (
	"context"

	"thinkheads.ai/phx/cmd/internal/event"
)

// What is done on a container before all is ready that it needs.

// inPreview returns a job for the same container that finds out what is to be done,
// and neither does it nor says so.
func (j *job) inPreview() *job {
	p := *j
	p.quiet = true
	p.options.dryRun, p.options.lockWait = true, 0
	p.cloned = func() {}
	p.once = func(_ string, _ func(), do func() error) error { return do() } // the work itself is still to be done
	return &p
}

// isUnchanged reports whether the container runs and nothing is to be done on it.
func (j *job) isUnchanged(ctx context.Context) bool {
	p := j.inPreview()
	if p.look() != nil || !p.ct.Running || p.converge(ctx) != nil {
		return false
	}
	return len(p.changes) == 0 && len(p.due) == 0 && !p.previewed().Changed
}

// canMake reports whether the container does not exist, and nothing is foreseen to
// keep it from being made.
func (j *job) canMake(ctx context.Context) bool {
	p := j.inPreview()
	return p.look() == nil && p.ct.Conf == nil && p.converge(ctx) == nil
}

func (j *job) hasHealthChecks() bool { return j.c.HealthCheck != nil || len(j.c.HealthChecks) > 0 }

// isHealthyAtOnce runs the health checks, each once, and reports whether all succeed.
// Why not is not said: what they look at may need what is not ready yet.
func (j *job) isHealthyAtOnce(ctx context.Context) bool {
	early := *j
	early.quiet, early.stage = true, event.StageHealthCheck
	early.host = early.ownHost()
	err := early.probe(ctx, 1)
	j.stages = early.stages
	j.stages.End() // it may wait for others now
	return err == nil
}
