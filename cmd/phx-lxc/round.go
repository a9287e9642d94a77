package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// provisioner is what the rounds of a stream share.
type provisioner struct {
	host                            *pve.Host
	qm, scripts                     string
	profiles, profileDir            string // of AppArmor: where they come from, and where they go
	lockWait                        time.Duration
	dryRun, restart, ignoreExternal bool
	enforce                         bool // the firewall, also where none is in force

	jobs   chan struct{} // a token for each container at work
	stream *event.Stream
	work   sync.WaitGroup

	mu     sync.Mutex
	failed bool
	toDo   bool // with dryRun: something would be changed
}

// fail reports an error of the run as a whole.
func (p *provisioner) fail(err error) {
	cmdline.Logf("%v", err)
	p.mu.Lock()
	p.failed = true
	p.mu.Unlock()
}

func (p *provisioner) filter(ctx context.Context) error {
	r := p.newRound(ctx, nil)
	for {
		ev, err := p.stream.Next(ctx, event.NamePlanStarted, event.NameContainerPlanned)
		if err != nil {
			r.halt()
			p.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		switch body := ev.Body.(type) {
		case event.PlanStarted:
			r.halt()
			r = p.newRound(ctx, &body)
			if err := body.Check(); err != nil {
				p.fail(fmt.Errorf("event stream: line %d: %s: %w", ev.Line, ev.Name, err))
				r.halt()
			}
		case event.ContainerPlanned:
			if err := r.take(body); err != nil {
				p.fail(fmt.Errorf("event stream: line %d: %w", ev.Line, err))
			}
		default: // plan.done
			close(r.planned)
			p.work.Wait()
			if err := p.stream.Forward(ev); err != nil {
				return err
			}
			r = p.newRound(ctx, nil)
		}
	}
	switch {
	case p.failed:
		return cmdline.Status(1)
	case p.toDo:
		return cmdline.Status(3)
	}
	return nil
}

// round is the work on one plan.
type round struct {
	*provisioner
	ctx     context.Context
	plan    config.Plan
	dryRun  bool
	planned chan struct{} // closed when the plan is complete
	halted  chan struct{} // closed when nothing new may be started
	halt    func()
	states  func() (map[int]string, error) // pct list, asked once a round
	records func() (*pve.Records, error)

	saidDatacenter sync.Once

	mu      sync.Mutex
	nodes   map[int]*node
	sources map[int]*sync.Mutex  // by CTID: held while a container is cloned from it
	guests  map[int]func() error // by id: whether a guest outside of the file runs
}

// node is a container of a plan, or one that others need and that has not
// been planned yet.
type node struct {
	done      chan struct{} // closed when it is ready, failed or skipped
	ready     bool
	container *config.Container // nil until planned
	conf      *pve.Conf         // in a dry run: what it would be
}

// newRound returns the round of a plan; started is nil for what comes without a
// plan.started, as it may from a file.
func (p *provisioner) newRound(ctx context.Context, started *event.PlanStarted) *round {
	if started == nil {
		started = &event.PlanStarted{}
	}
	r := &round{
		provisioner: p,
		ctx:         ctx,
		dryRun:      p.dryRun || started.DryRun,
		plan:        started.Plan,
		planned:     make(chan struct{}),
		halted:      make(chan struct{}),
		nodes:       map[int]*node{},
		sources:     map[int]*sync.Mutex{},
		guests:      map[int]func() error{},
	}
	r.halt = sync.OnceFunc(func() { close(r.halted) })
	r.states = sync.OnceValues(func() (map[int]string, error) { return p.host.List(ctx) })
	r.records = sync.OnceValues(func() (*pve.Records, error) {
		host := *p.host
		if r.dryRun || started.Action == "status" {
			host.Preview = func(pve.Command) {}
		}
		return host.Records(ctx)
	})
	return r
}

func (r *round) node(ctid int) *node {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[ctid]
	if n == nil {
		n = &node{done: make(chan struct{})}
		r.nodes[ctid] = n
	}
	return n
}

// source returns the lock of a clone source: Proxmox locks a source for the
// whole copy and refuses a second clone meanwhile.
func (r *round) source(ctid int) *sync.Mutex {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.sources[ctid]
	if m == nil {
		m = &sync.Mutex{}
		r.sources[ctid] = m
	}
	return m
}

// take takes a ct.planned and starts the container's work.
func (r *round) take(planned event.ContainerPlanned) error {
	ctid := planned.CTID
	act, ok := actions[planned.Action]
	if !ok {
		return fmt.Errorf("container %d: action %q is none that phx-lxc knows", ctid, planned.Action)
	}
	container, err := config.ParseContainer(ctid, planned.Config)
	if err != nil {
		return err
	}
	n := r.node(ctid)
	if n.container != nil {
		return fmt.Errorf("container %d is planned twice", ctid)
	}
	n.container = container
	j := &job{round: r, self: n, ctid: ctid, c: container, external: planned.External, changes: []string{}, record: pve.Record{}, written: pve.Record{}, texts: map[string]previewText{}}
	r.work.Go(func() {
		defer close(n.done)
		if reason, because := r.await(planned.Needs); reason != "" {
			r.skip(ctid, container.Name, reason, because)
			return
		}
		select {
		case r.jobs <- struct{}{}:
			defer func() { <-r.jobs }()
		case <-r.halted:
			r.skip(ctid, container.Name, planBrokeOff, 0)
			return
		}
		select {
		case <-r.halted: // select chooses freely among what is ready
			r.skip(ctid, container.Name, planBrokeOff, 0)
			return
		default:
		}
		n.ready = j.do(act)
	})
	return nil
}

const planBrokeOff = "the plan broke off"

// await waits until all needs are ready. Otherwise it returns why not, and
// the container to blame, if any.
func (r *round) await(needs []int) (reason string, because int) {
	for _, need := range needs {
		n := r.node(need)
		select {
		case <-n.done:
		case <-r.halted:
			return planBrokeOff, 0
		case <-r.planned:
			if n.container == nil {
				return fmt.Sprintf("container %d is needed and not planned", need), need
			}
			select {
			case <-n.done:
			case <-r.halted:
				return planBrokeOff, 0
			}
		}
		if !n.ready {
			return fmt.Sprintf("container %d is not ready", need), need
		}
	}
	return "", 0
}

func (r *round) skip(ctid int, name, reason string, because int) {
	r.fail(fmt.Errorf("%d %s: skipped: %s", ctid, name, reason))
	r.emit(event.ContainerSkipped{CTID: ctid, Name: name, Reason: reason, Because: because})
}

func (r *round) emit(body event.Body) {
	if err := r.stream.Emit(body); err != nil {
		r.fail(err)
		r.halt()
	}
}
