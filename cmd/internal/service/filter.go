// Package service is the host's half of the programs that set up a service in a
// container, phx-nginx and phx-traefik: a filter that waits until the container
// is ready and the CA's fingerprint is known, in whichever order these come, and
// then calls the program's own work; and the call of the other half, in the
// container.
//
// It knows neither what a service is made of nor how a container is made ready,
// and nothing of what runs in the container but that it answers as package
// remote says.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remote"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

// Program is a program that sets a service up in a container.
type Program struct {
	Name   string // under which it is noted which roots the service trusts: nginx, traefik
	Script string // the application script for which the program stands in

	// SetUp sets the service up. Its error, or that of its answer, is reported as
	// the event that Failed makes.
	SetUp func(context.Context, *Target) (*remote.Answer, error)

	// Shows returns the names for which the service of a plan is to show
	// certificates.
	Shows func(*config.Plan) []string

	Ready  func(event.ServiceReady) event.Body
	Failed func(event.ServiceFailed) event.Body
	Status func(event.ServiceStatus) event.Body
}

// filter works on the container with the program's application script, once in
// each plan.
type filter struct {
	program Program
	host    *pve.Host
	scripts scripts.Dirs // where the feature scripts are

	stream *event.Stream
	work   sync.WaitGroup
	mu     sync.Mutex
	failed bool
}

// Flags are the options of a filter.
func Flags() []cli.Flag {
	return append(pve.Flags(),
		&cli.GenericFlag{Name: "scripts", Value: &scripts.Flag{}, EnvVars: []string{"PHX_SCRIPTS"}})
}

// Run runs the program as a filter over stdin and stdout.
func Run(c *cli.Context, program Program) error {
	isFilter, err := cmdline.Filter(c)
	switch {
	case err != nil:
		return err
	case !isFilter:
		return cmdline.Usagef("unknown command %q", c.Args().First())
	}
	host, err := pve.FromFlags(c)
	if err != nil {
		return err
	}
	f := &filter{
		program: program,
		host:    host,
		scripts: scripts.FromFlag(c),
	}
	f.stream = event.NewStream(os.Stdin, os.Stdout, f.fail)
	return f.run(c.Context)
}

func (f *filter) run(ctx context.Context) error {
	p := newPlanState()
	for {
		ev, err := f.stream.Next(ctx, event.NamePlanStarted, event.NameContainerPlanned,
			event.NameContainerRunning, event.NameContainerReady, event.NameContainerPreview, event.NameContainerStatus,
			event.NameContainerFailed, event.NameContainerSkipped,
			event.NameCAExported, event.NameCAFailed, event.NameCAFingerprint,
			event.NameNginxReady, event.NameNginxFailed)
		if err != nil {
			p.gatewayReady.set(false)
			f.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		switch ev.Name {
		case event.NamePlanDone:
			f.finish(p)
			if err := f.stream.Forward(ev); err != nil {
				return err
			}
			p = newPlanState()
			continue
		case event.NamePlanStarted:
			p.gatewayReady.set(false)
			p = newPlanState()
		}
		if err := p.observe(ev, f.program.Script, f.host.HasConf); err != nil {
			f.fail(fmt.Errorf("event stream: line %d: %w", ev.Line, err))
		}
		if p.looked != nil && !p.started {
			p.started = true
			plan, container, look := p.plan, p.container, *p.looked
			f.work.Go(func() { f.reportStatus(ctx, plan, container, look) })
		}
		if p.complete() && !p.started {
			p.started = true
			target := f.target(p)
			f.work.Go(func() { f.setUp(ctx, target) })
		}
	}
	if f.failed {
		return cmdline.Status(1)
	}
	return nil
}

// finish waits for the work on a plan that is over, and reports what the
// container was still waiting for.
func (f *filter) finish(p *planState) {
	p.gatewayReady.set(false)
	f.work.Wait()
	if why := p.missing(); why != "" {
		f.reportFailure(p.container.Name, event.ServiceFailed{CTID: p.container.CTID, Stage: "join", Error: why})
	}
}

// target returns the plan's container as that on which the program works.
func (f *filter) target(p *planState) *Target {
	t := &Target{
		Host:      f.host,
		CTID:      p.container.CTID,
		Container: p.container,
		Domain:    p.plan.Domain,
		Services:  p.plan.Services,
		Dashboard: p.plan.Dashboard,
		CA:        p.plan.CA,
		Proxy:     p.plan.Proxy,
		Gateway:   p.plan.Gateway,
		Trust: guest.Trust{
			Fingerprint: p.fingerprint.SHA256,
			Also:        p.fingerprint.Also,
			CAURL:       p.fingerprint.CAURL,
		},
		CADown:       p.exported.FromHost,
		GatewayReady: p.gatewayReady.wait,
		rootFile:     p.fingerprint.Path,
		scripts:      f.scripts,
		emit:         f.emit,
	}
	if known := p.exported.Known; known != nil {
		t.CAHosts, t.CANeighbours = known.Hosts, known.Neighbours
	}
	return t
}

// setUp has the program set its service up, and reports how that ended.
func (f *filter) setUp(ctx context.Context, t *Target) {
	start := time.Now()
	answer := &remote.Answer{Stage: "trust"}
	err := t.checkTrust()
	if err == nil {
		answer, err = f.program.SetUp(ctx, t)
	}
	if err == nil && answer.Error != "" {
		err = fmt.Errorf("not done in the container:\n%s", cmdline.Quoted(answer.Error))
	}
	if err == nil {
		err = cahost.WriteTaken(f.host, f.program.Name, t.Trust.Pins())
	}
	if err != nil {
		stage := "apply"
		if answer != nil && answer.Stage != "" {
			stage = answer.Stage
		}
		f.reportFailure(t.Container.Name, event.ServiceFailed{
			CTID: t.CTID, Stage: stage, Error: err.Error(), Stages: t.stages.Took(),
		})
		return
	}
	for _, change := range t.changes {
		t.Logf("%s", change)
	}
	for _, change := range answer.Changes {
		t.Logf("%s", cmdline.Quoted(change))
	}
	ready := event.ServiceReady{
		CTID: t.CTID, Names: answer.Names, NotAfter: answer.NotAfter,
		Changed: answer.Changed || len(t.changes) > 0,
		Changes: append(append([]string{}, t.changes...), answer.Changes...),

		Certificates: events(answer.Certificates), ElapsedMS: time.Since(start).Milliseconds(),
		Stages: t.stages.Took(),
	}
	if ready.Changed {
		t.Logf("ready (%s)", cmdline.Elapsed(start))
	} else {
		t.Logf("unchanged")
	}
	f.emit(f.program.Ready(ready))
}

func (f *filter) reportFailure(name string, failed event.ServiceFailed) {
	f.fail(fmt.Errorf("%d %s: %s: %s", failed.CTID, name, failed.Stage, failed.Error))
	f.emit(f.program.Failed(failed))
}

func (f *filter) emit(body event.Body) {
	if err := f.stream.Emit(body); err != nil {
		f.fail(err)
	}
}

func (f *filter) fail(err error) {
	cmdline.Logf("%v", err)
	f.mu.Lock()
	f.failed = true
	f.mu.Unlock()
}
