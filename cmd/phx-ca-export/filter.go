package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// exporter is one run of the program.
type exporter struct {
	host   *pve.Host
	path   string        // of the file of trusted roots
	accept string        // see cahost.Options
	rotate string        // the same
	stream *event.Stream // nil for a run that is no filter
	work   sync.WaitGroup

	mu     sync.Mutex
	failed bool
}

// fail reports an error: the exit status is then 1.
func (e *exporter) fail(err error) {
	cmdline.Logf("%v", err)
	e.mu.Lock()
	e.failed = true
	e.mu.Unlock()
}

// filter has the CA of each plan exported, once its container runs as it should, or
// the work on it has come to an end.
func (e *exporter) filter(ctx context.Context) error {
	var p *config.Plan
	begun, asks, checks := false, false, false // asks: for the CA's status
	var end chan event.Event                   // for the end of the container that runs; nil when none is waited for
	over := func() {
		if end != nil {
			close(end)
			end = nil
		}
	}
	for {
		ev, err := e.stream.Next(ctx, event.NamePlanStarted,
			event.NameContainerRunning, event.NameContainerReady, event.NameContainerStatus,
			event.NameContainerFailed, event.NameContainerSkipped)
		if err != nil {
			over()
			e.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		switch {
		case ev.Name == event.NamePlanStarted:
			over()
			begun = false
			started := ev.Body.(event.PlanStarted)
			asks, checks = started.Action == "status", started.Action == "check"
			if p, err = &started.Plan, started.Check(); err != nil {
				p = nil
				e.fail(fmt.Errorf("event stream: line %d: plan.started: %w", ev.Line, err))
			}
		case ev.Name == event.NamePlanDone:
			over()
			e.work.Wait()
			if checks && p != nil {
				e.check(ctx, p)
			}
			if err := e.stream.Forward(ev); err != nil {
				return err
			}
		case p == nil || p.CA == nil || ev.CTID() != p.CA.CTID:
			if ready, ok := ev.Body.(event.ContainerReady); ok && ready.ApplicationScript == config.CAScript {
				e.fail(fmt.Errorf("event stream: line %d: container %d has the application script %s, "+
					"and the plan has another CA, or none with a fixed address", ev.Line, ev.CTID(), config.CAScript))
			}
		case asks && begun: // why a run would fail is told after the status
		case asks:
			begun = true
			e.work.Go(func() { e.reportStatus(ctx, p, ev) })
		case begun && end != nil && ev.Name != event.NameContainerRunning:
			end <- ev
			over()
		case begun:
			e.fail(fmt.Errorf("event stream: line %d: a second end of the CA's container %d", ev.Line, ev.CTID()))
		default:
			begun = true
			if ev.Name == event.NameContainerRunning {
				end = make(chan event.Event, 1)
			}
			plan, ends := p, end
			e.work.Go(func() { e.react(ctx, plan, ev, ends) })
		}
	}
	if e.failed {
		return cmdline.Status(1)
	}
	return nil
}

// canAsk returns the name of the CA's container, and an error if it is in no
// state to be asked. A CA that is not healthy is asked: what it lacks may be
// what the host has.
func canAsk(ev event.Event) (name string, err error) {
	switch body := ev.Body.(type) {
	case event.ContainerRunning:
		return body.Name, nil
	case event.ContainerReady:
		return body.Name, nil
	case event.ContainerSkipped:
		return body.Name, errors.New("its container was skipped")
	case event.ContainerFailed:
		if body.Stage != event.StageHealthCheck && body.Stage != config.CAScript {
			err = fmt.Errorf("its container has failed: %s", body.Stage)
		}
		return body.Name, err
	}
	return "", nil
}

// react exports the root of the CA of which ev tells that it runs, or the end, and
// says so. One that runs and is not well, or is to be changed, is left alone until its
// end comes: for its health, phx-lxc may have its application script run again, and
// those who are told of an export ask it for certificates. Where the CA cannot be
// asked, the pinned root is exported.
func (e *exporter) react(ctx context.Context, p *config.Plan, ev event.Event, end <-chan event.Event) {
	ctid, settings := p.CA.CTID, ca.SettingsOf(p)
	name, err := canAsk(ev)
	label := strings.TrimSpace(fmt.Sprintf("%d %s", ctid, name))
	logf := func(format string, args ...any) { cmdline.Logf("%s: %s", label, fmt.Sprintf(format, args...)) }
	var stages event.Stages
	o := cahost.Options{
		Settings: &settings,
		Rotate:   e.rotate,
		Taken:    func(pins []string) error { return e.taken(p, pins) },
		Log:      logf,
		Warn:     func(format string, args ...any) { e.warn(ctid, label, fmt.Sprintf(format, args...)) },
		Begins: func(stage string) {
			if stages.Begins(stage) {
				e.emit(event.ContainerStage{CTID: ctid, Program: cmdline.Name(), Stage: stage})
			}
		},
	}
	var x *exported
	if err == nil {
		o.Early = ev.Name == event.NameContainerRunning
		x, err = e.export(ctx, ctid, o)
	}
	if errors.Is(err, cahost.ErrEarly) {
		if ended, ok := <-end; ok {
			e.react(ctx, p, ended, nil)
		}
		return
	}
	if err != nil {
		e.fail(fmt.Errorf("%s: %w", label, err))
		e.emit(event.CAFailed{CTID: ctid, Error: err.Error(), Stages: stages.Took()})
		if x, err = e.fromHost(ctx); err != nil {
			e.fail(fmt.Errorf("%s: nothing is exported from the host either: %w", label, err))
			return
		}
		o.Log("goes on with the pinned root %s from the host", x.Pin.Primary)
	}
	if x.Refused != nil {
		e.fail(fmt.Errorf("%s: rotation of the root: %s: %w", label, e.rotate, x.Refused))
	}
	if r := e.rotation(ctid, x); r != nil {
		e.emit(*r)
	}
	done := event.CAExported{
		CTID: ctid, Path: e.path, SHA256: x.Pin.Primary, Also: x.Pin.Also, CAURL: settings.URL(),
		Changed: x.changed || len(x.Changes) > 0, FromHost: x.fromHost,
		Subject: x.Roots[0].Subject.CommonName, NotAfter: x.Roots[0].NotAfter.UTC(),
		Stages: stages.Took(),
	}
	if !x.fromHost {
		done.Known = &event.CAKnows{Hosts: pve.Hash(x.Hosts), Neighbours: pve.Hash(x.Neighbours)}
	}
	e.emit(done)
}

// rotation returns what there is to say of a rotation of the root, nil when there
// is none.
func (e *exporter) rotation(ctid int, x *exported) *event.CARotation {
	r := &event.CARotation{CTID: ctid, Changed: x.Rotated}
	switch pin := x.Pin; {
	case pin.Step == cahost.StepTrust:
		r.Step, r.SHA256, r.Also = pin.Step, pin.Also, pin.Primary
	case pin.Step != "":
		r.Step, r.SHA256, r.Also = pin.Step, pin.Primary, pin.Also
	case e.rotate == cahost.StepDrop && pin.Dropped != "":
		r.Step, r.SHA256, r.Also = cahost.StepDrop, pin.Primary, pin.Dropped
	default:
		return nil
	}
	return r
}

// warn warns people of something about a container, by a message and by an event
// that say the same. label names it in the message.
func (e *exporter) warn(ctid int, label, text string) {
	cmdline.Logf("%s: %s", label, text)
	e.emit(event.Warning{CTID: ctid, Program: cmdline.Name(), Text: text})
}

func (e *exporter) emit(body event.Body) {
	if err := e.stream.Emit(body); err != nil {
		e.fail(err)
	}
}

// taken returns an error unless gateway and proxy, if the plan has them, have
// noted that they have taken these roots.
func (e *exporter) taken(p *config.Plan, pins []string) error {
	for name, place := range map[string]*config.Place{"nginx": p.Gateway, "traefik": p.Proxy} {
		if place == nil {
			continue
		}
		if !cahost.Taken(e.host, name, pins) {
			return fmt.Errorf("phx-%s has not taken the step before yet: "+
				"run phoenix without a step until all is well", name)
		}
	}
	return nil
}
