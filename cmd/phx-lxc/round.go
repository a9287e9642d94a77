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
	r := p.newRound(ctx, event.Event{})
	for {
		ev, err := p.stream.Next(ctx, event.PlanStarted, "ct.planned")
		if err != nil {
			r.halt()
			p.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		switch ev.Name {
		case event.PlanStarted:
			r.halt()
			r = p.newRound(ctx, ev)
		case "ct.planned":
			if err := r.take(ev); err != nil {
				p.fail(fmt.Errorf("event stream: line %d: %w", ev.Line, err))
			}
		case event.PlanDone:
			close(r.planned)
			p.work.Wait()
			if err := p.stream.Forward(ev); err != nil {
				return err
			}
			r = p.newRound(ctx, event.Event{})
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

func (p *provisioner) newRound(ctx context.Context, ev event.Event) *round {
	r := &round{
		provisioner: p,
		ctx:         ctx,
		dryRun:      p.dryRun || ev.Get("dry_run").Bool(),
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
		if r.dryRun || ev.Get("action").Str == "status" {
			host.Preview = func(pve.Command) {}
		}
		return host.Records(ctx)
	})
	if ev.Raw == nil {
		return r // what comes without a plan.started may come from a file
	}
	plan, err := config.ParsePlan(ev.Raw)
	if err != nil {
		p.fail(fmt.Errorf("event stream: line %d: plan.started: %w", ev.Line, err))
		r.halt()
		return r
	}
	r.plan = *plan
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
func (r *round) take(ev event.Event) error {
	ctid := ev.CTID()
	action := ev.Get("action").String()
	act, ok := actions[action]
	if !ok {
		return fmt.Errorf("container %d: action %q is none that phx-lxc knows", ctid, action)
	}
	container, err := config.ParseContainer(ctid, []byte(ev.Get("config").Raw))
	if err != nil {
		return err
	}
	n := r.node(ctid)
	if n.container != nil {
		return fmt.Errorf("container %d is planned twice", ctid)
	}
	n.container = container
	needs := integers(ev, "needs")
	j := &job{round: r, self: n, ctid: ctid, c: container, external: integers(ev, "external"), changes: []string{}, record: pve.Record{}, written: pve.Record{}, texts: map[string]previewText{}}
	r.work.Go(func() {
		defer close(n.done)
		if reason, because := r.await(needs); reason != "" {
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

func integers(ev event.Event, field string) []int {
	var ids []int
	for _, id := range ev.Get(field).Array() {
		ids = append(ids, int(id.Int()))
	}
	return ids
}

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
	r.emit("ct.skipped", ctid, struct {
		Name    string `json:"name"`
		Reason  string `json:"reason"`
		Because int    `json:"because,omitempty"`
	}{name, reason, because})
}

func (r *round) emit(name string, ctid int, fields any) {
	if err := r.stream.Emit(name, ctid, fields); err != nil {
		r.fail(err)
		r.halt()
	}
}
