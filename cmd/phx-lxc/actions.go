package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// action is what a plan can ask for.
type action struct {
	run       func(*job, context.Context) error
	stage     string // what is being done, for errors, where run does not say
	mustExist bool   // the container
	changes   bool   // it can change something: a dry run previews it
	looks     bool   // it looks at the container alone, whatever the others are
	done      string // the message when it has changed something
	success   func(*job, time.Duration) event.Body
}

var actions = map[string]action{
	"create": {run: (*job).converge, changes: true, done: "ready", success: (*job).isReady},
	"start": {
		run: (*job).start, stage: "start", mustExist: true, changes: true, done: "is up", success: (*job).isStarted,
	},
	"restart": {
		run: (*job).restart, stage: "restart", mustExist: true, changes: true, done: "is up", success: (*job).isStarted,
	},
	"stop": {
		run: (*job).shutdown, stage: "stop", mustExist: true, changes: true, done: "is down", success: (*job).isStopped,
	},
	"delete":   {run: (*job).destroy, stage: "delete", changes: true, done: "is gone", success: (*job).isRemoved},
	"recreate": {run: (*job).converge, changes: true, done: "ready", success: (*job).isReady}, // see recreate
	"status":   {run: (*job).reportStatus, looks: true, success: (*job).hasStatus},
}

// do carries out an action and reports the result as an event. Without an error,
// the container is as others need it. toDo reports whether a dry run, or the
// action status, has found something to do.
func (j *job) do(ctx context.Context, act action) (toDo bool, err error) {
	start := time.Now()
	if err = j.look(); err == nil {
		j.stage = cmp.Or(act.stage, j.stage)
		if act.mustExist && j.ct.Conf == nil {
			err = fmt.Errorf("the container does not exist: create it with: phoenix %d", j.c.CTID)
		} else {
			err = act.run(j, ctx)
		}
	}
	if err != nil {
		j.fail(err)
		return false, err
	}
	return j.succeed(act, start.Add(j.waited)), nil
}

// look finds out how the container is.
func (j *job) look() error {
	j.changes = []string{}
	j.host = j.ownHost()
	j.ct = j.host.Container(j.c.CTID, j.records, j.options.lockWait, j.logf)
	j.stage = "define"
	states, err := j.states()
	if err != nil {
		return err
	}
	return j.ct.Look(states)
}

// fail reports the error with which the work on the container has ended.
func (j *job) fail(err error) {
	if waits := (*unready)(nil); errors.As(err, &waits) {
		j.logf("skipped: %v", err)
		j.emit(event.ContainerSkipped{
			CTID: j.c.CTID, Name: j.c.Name, Reason: err.Error(), Because: waits.because, Created: true,
		})
		return
	}
	j.logf("%s: %v", j.stage, err)
	j.emit(event.ContainerFailed{
		CTID: j.c.CTID, Name: j.c.Name, Stage: j.stage, Error: err.Error(), Stages: j.stages.Took(),
	})
}

// succeed reports the result of an action that has been carried out. toDo is that
// of [job.do].
func (j *job) succeed(act action, start time.Time) (toDo bool) {
	switch {
	case j.options.dryRun && act.changes:
		return j.emitPreview()
	case !act.changes:
	case len(j.changes) == 0:
		j.logf("unchanged")
	default:
		j.logf("%s (%s)", act.done, cmdline.Elapsed(start))
	}
	j.emit(act.success(j, time.Since(start)))
	return j.status != nil && len(j.status.Drift)+len(j.status.RestartRequired) > 0
}

// ownHost is the host as the job sees it: it tells each warning once, and what
// begins, and in a dry run it only previews.
func (j *job) ownHost() *pve.Host {
	host := j.options.host
	var warnings []string
	host.Warn = func(text string) {
		if !slices.Contains(warnings, text) {
			warnings = append(warnings, text)
			j.warnf("%s", text)
		}
	}
	host.Begins = j.begins
	if j.options.dryRun {
		host.Preview = &pve.Preview{Commands: [][]string{}}
	}
	return &host
}

// emitPreview says what would be done, and reports whether that is anything.
func (j *job) emitPreview() bool {
	preview := j.previewed()
	if !preview.Changed {
		j.logf("nothing to do")
	}
	for _, f := range preview.Files {
		j.logf("would change %s\n%s", f.Path, f.Diff)
	}
	for _, argv := range preview.Commands {
		j.logf("would run: %s", remedy.Quote(brief(argv)))
	}
	j.emit(preview)
	return preview.Changed
}

// previewed returns what would be done.
func (j *job) previewed() event.ContainerPreview {
	preview := event.ContainerPreview{
		CTID: j.c.CTID, Name: j.c.Name, Commands: j.host.Preview.Commands, Files: []event.FileChange{},
	}
	j.host.Preview.Diffs(func(path, diff string) {
		preview.Files = append(preview.Files, event.FileChange{Path: path, Diff: diff})
	})
	preview.Changed = len(preview.Commands)+len(preview.Files) > 0
	return preview
}

// brief returns a command for people, in which a word of many lines, such as a
// shell program of phx's own, has only the first of them.
func brief(argv []string) []string {
	words := slices.Clone(argv)
	for i, w := range words {
		if first, rest, _ := strings.Cut(w, "\n"); strings.Count(rest, "\n") >= 5 {
			words[i] = fmt.Sprintf("%s … and %d lines", first, strings.Count(rest, "\n")+1)
		}
	}
	return words
}

func (j *job) isReady(elapsed time.Duration) event.Body {
	return event.ContainerReady{
		CTID: j.c.CTID, Name: j.c.Name, IP: address(j.c), IPs: addresses(j.c),
		Changed: len(j.changes) > 0, Changes: j.changes,
		RestartRequired: j.ct.RestartRequired(), ApplicationScript: j.c.ApplicationScript,
		NotInForce: j.notInForce, TemplateDiffers: j.differs, ElapsedMS: elapsed.Milliseconds(),
		Stages: j.stages.Took(),
	}
}

func (j *job) isStarted(time.Duration) event.Body { return event.ContainerStarted(j.hasChanged()) }
func (j *job) isStopped(time.Duration) event.Body { return event.ContainerStopped(j.hasChanged()) }
func (j *job) isRemoved(time.Duration) event.Body { return event.ContainerRemoved(j.hasChanged()) }

func (j *job) hasChanged() event.ContainerChanged {
	return event.ContainerChanged{CTID: j.c.CTID, Name: j.c.Name, Changed: len(j.changes) > 0}
}

// destroy destroys a container, which was named for it.
func (j *job) destroy(ctx context.Context) error {
	if j.ct.Conf == nil {
		return nil
	}
	if err := j.checkDestroy(ctx); err != nil || j.ct.Conf == nil {
		return err
	}
	if volumes := j.ct.Conf.OwnVolumes(); len(volumes) > 0 {
		j.logf("its volumes are destroyed with it: %s", strings.Join(volumes, ", "))
	}
	ran := j.ct.Running
	if err := j.shutdown(ctx); err != nil {
		return err
	}
	start := time.Now()
	if err := j.ct.Pct(ctx, "destroy", j.ct.ID()); err != nil {
		if ran {
			err = fmt.Errorf("%w\nit was shut down for it, and is down now: "+
				"to have it back, run: phoenix --action start %d", err, j.c.CTID)
		}
		return err
	}
	j.changed(start, "destroyed")
	j.ct.Conf = nil
	return nil
}

// checkDestroy returns why the container cannot be destroyed, once nothing else is
// at work on it.
func (j *job) checkDestroy(ctx context.Context) error {
	switch err := j.ct.AwaitUnlocked(ctx); {
	case errors.Is(err, fs.ErrNotExist): // others have destroyed it
		j.ct.Conf = nil
		return nil
	case err != nil:
		return err
	}
	return j.ct.CheckDestroy(j.together...)
}
