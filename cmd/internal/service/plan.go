package service

import (
	"context"
	"fmt"
	"sync"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
)

// planState is what the events have said of a plan so far: whether the program's
// container is ready, and the CA's root certificates are exported.
type planState struct {
	plan      config.Plan
	container *config.Container // the program's; nil when none is planned
	ready     bool              // it can be worked on: it runs as it should, or the work on it is over
	notReady  string            // why it will not get ready
	started   bool              // the work on it

	asks   bool    // the plan asks for the service's status
	looked *looked // then, how the container is; nil until that is known

	caPlanned   bool
	caReady     bool
	caNotReady  string // why the CA's container will not get ready
	exported    *event.CAExported
	exportError string
	fingerprint *event.CAFingerprint

	gatewayReady *outcome
}

func newPlanState() *planState { return &planState{gatewayReady: newOutcome()} }

// outcome is how something has ended, for those who wait for that.
type outcome struct {
	known chan struct{} // closed when it is
	once  sync.Once
	good  bool
}

func newOutcome() *outcome { return &outcome{known: make(chan struct{})} }

// set makes the outcome known. Only the first call counts.
func (o *outcome) set(good bool) {
	o.once.Do(func() {
		o.good = good
		close(o.known)
	})
}

// wait waits until the outcome is known, and reports whether it is good; false
// when ctx is done before.
func (o *outcome) wait(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-o.known:
		return o.good
	}
}

// observe notes what an event says. exists reports whether a container is on this
// host.
func (p *planState) observe(ev event.Event, script string, exists func(ctid int) bool) error {
	ours := p.container != nil && ev.CTID() == p.container.CTID
	p.observeCA(ev)
	p.observeStatus(ev)
	switch body := ev.Body.(type) {
	case event.PlanStarted:
		if err := body.Check(); err != nil {
			return fmt.Errorf("%s: %w", ev.Name, err)
		}
		p.plan = body.Plan
	case event.ContainerPlanned:
		asks := body.Action == "status"
		if !body.Provisions() && !asks || body.ApplicationScript() != script {
			return nil
		}
		if p.container != nil {
			return fmt.Errorf("container %d: %s is the application script of container %d already",
				body.CTID, script, p.container.CTID)
		}
		container, err := config.ParseContainer(body.CTID, body.Config)
		p.container, p.asks = container, asks
		return err
	case event.ContainerRunning, event.ContainerReady:
		p.ready = p.ready || ours
	case event.ContainerPreview:
		if ours {
			p.container, p.ready = nil, false // a dry run: nothing is to be done
		}
	case event.ContainerFailed:
		if ours && !p.asks {
			p.notReady = "failed: " + body.Error
			// What the service's health check finds may be what is mended here.
			p.ready = p.ready || body.Stage == event.StageHealthCheck
		}
	case event.ContainerSkipped:
		if ours {
			p.notReady = "was skipped: " + body.Reason
			// Without another container, what is there is mended as far as that goes.
			p.ready = p.ready || body.Because != 0 && !body.Created && exists(body.CTID)
		}
	case event.CAExported:
		if p.plan.CA == nil || body.CTID != p.plan.CA.CTID {
			return fmt.Errorf("ca.exported of container %d, which is not the CA of the plan", body.CTID)
		}
		p.exported = &body
	case event.CAFailed:
		p.exportError = body.Error
	case event.CAFingerprint:
		p.fingerprint = &body
	case event.NginxReady:
		p.gatewayReady.set(true)
	case event.NginxFailed:
		p.gatewayReady.set(false)
	}
	return nil
}

// observeCA notes what an event says about the CA's container.
func (p *planState) observeCA(ev event.Event) {
	if p.plan.CA == nil || ev.CTID() != p.plan.CA.CTID {
		return
	}
	switch body := ev.Body.(type) {
	case event.ContainerPlanned:
		p.caPlanned = body.Provisions()
	case event.ContainerReady:
		p.caReady = true
	case event.ContainerFailed:
		p.caNotReady = "failed: " + body.Error
	case event.ContainerSkipped:
		p.caNotReady = "was skipped: " + body.Reason
	}
}

// complete reports whether all has come that the work on the container needs.
func (p *planState) complete() bool {
	return p.ready && !p.asks && p.exported != nil && p.fingerprint != nil
}

// missing returns what the planned container is still waiting for, "" when the
// work on it has started, or none is planned.
func (p *planState) missing() string {
	if p.container == nil || p.started {
		return ""
	}
	switch {
	case p.asks:
		return "no ct.status of the container has come: is phx-lxc in the pipe?"
	case p.notReady != "":
		return "the container " + p.notReady
	case !p.ready:
		return "no ct.ready of the container has come: is phx-lxc in the pipe?"
	case p.exportError != "":
		return "the CA's root certificate was not exported: " + p.exportError
	case p.exported == nil:
		return "no ca.exported has come: " + p.withoutCA()
	}
	return "no ca.fingerprint has come: is phx-fingerprint in the pipe?"
}

// withoutCA returns why nothing was exported, and nothing said of it.
func (p *planState) withoutCA() string {
	if p.plan.CA == nil {
		return "no container of the file is a CA with a fixed address (application script " + config.CAScript + ")"
	}
	switch container := fmt.Sprintf("the CA's container %d", p.plan.CA.CTID); {
	case p.caNotReady != "":
		return container + " " + p.caNotReady
	case p.caReady:
		return container + " is ready: is phx-ca-export in the pipe?"
	case p.caPlanned:
		return container + " has not become ready"
	default:
		return "plan " + container + " too"
	}
}
