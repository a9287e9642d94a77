package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// provisioner is what the rounds of a stream share.
type provisioner struct {
	options options
	stream  *event.Stream
	jobs    chan struct{} // a token for each container at work
	work    sync.WaitGroup
	assets  *fetcher

	mu     sync.Mutex
	failed bool
	toDo   bool // in a dry run: something would be changed
}

// fail reports an error of the run as a whole.
func (p *provisioner) fail(err error) {
	cmdline.Logf("%v", err)
	p.note(false, true)
}

// note notes the result of a part of the run.
func (p *provisioner) note(toDo, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.toDo = p.toDo || toDo
	p.failed = p.failed || failed
}

// round is the work on one plan.
type round struct {
	run     *provisioner
	ctx     context.Context
	options options // of the run; dryRun also where the plan asks for it
	plan    config.Plan
	planned chan struct{} // closed when the plan is complete
	halted  chan struct{} // closed when nothing new may be started
	halt    func()
	states  func() (map[int]string, error) // pct list, asked once a round
	records func() (*pve.Records, error)
	config  func() (*config.Text, error) // the file of the plan, read once a round

	datacenter sync.Once // for saying that the datacenter's firewall is off

	checked []*job // for the action check, in the plan's order

	mu     sync.Mutex
	nodes  map[int]*node
	guests map[int]func() error    // by id: whether a guest outside of the configuration runs
	shared map[string]func() error // by name: what one container does for all
}

// node is a container of a plan, or one that others need and that has not
// been planned yet.
type node struct {
	done       chan struct{} // closed when it is ready, failed or skipped
	ready      bool
	looked     chan struct{} // closed when unchanged is known, unless done is before
	unchanged  bool          // it runs, and nothing is to be done on it and on what it needs
	source     cloneSource   // for others
	needs      []int         // those of the plan, once it is planned
	cloned     chan struct{} // closed when it has been made, or will not be for now
	hasCloned  func()        // closes cloned
	recreation *recreation   // nil unless it is recreated
}

// newRound returns the round of a plan; started is nil for what comes without a
// plan.started, as it may from a file.
func (p *provisioner) newRound(ctx context.Context, started *event.PlanStarted) *round {
	if started == nil {
		started = &event.PlanStarted{}
	}
	r := &round{
		run:     p,
		ctx:     ctx,
		options: p.options,
		plan:    started.Plan,
		planned: make(chan struct{}),
		halted:  make(chan struct{}),
		nodes:   map[int]*node{},
		guests:  map[int]func() error{},
		shared:  map[string]func() error{},
	}
	r.options.dryRun = p.options.dryRun || started.DryRun || started.Action == "check"
	r.halt = sync.OnceFunc(func() { close(r.halted) })
	r.config = sync.OnceValues(func() (*config.Text, error) { return config.ReadText(r.plan.Config) })
	r.states = sync.OnceValues(func() (map[int]string, error) { return p.options.host.List(ctx) })
	r.records = sync.OnceValues(func() (*pve.Records, error) {
		host := p.options.host
		if r.options.dryRun || started.Action == "status" || started.Action == "check" {
			host.Preview = &pve.Preview{}
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
		n = &node{done: make(chan struct{}), looked: make(chan struct{}), cloned: make(chan struct{})}
		n.hasCloned = sync.OnceFunc(func() { close(n.cloned) })
		r.nodes[ctid] = n
	}
	return n
}

// take takes a ct.planned and starts the container's work.
func (r *round) take(planned event.ContainerPlanned) error {
	ctid := planned.CTID
	act, ok := actions[planned.Action]
	if !ok && planned.Action != "check" {
		return fmt.Errorf("container %d: unknown action %q", ctid, planned.Action)
	}
	container, err := config.ParseContainer(ctid, planned.Config)
	if err != nil {
		return err
	}
	n := r.node(ctid)
	if n.source.container != nil {
		return fmt.Errorf("container %d is planned twice", ctid)
	}
	n.source.container = container
	j := &job{
		c: container, external: planned.External, plan: r.plan, options: r.options, states: r.states,
		once: r.once, guest: r.guest, records: r.records, config: r.config, datacenter: &r.datacenter, emit: r.emit,
		fetch: r.run.assets.fetch, pause: r.pause, cloned: n.hasCloned,
		turn: func() func() { return r.turn(ctid, container.CloneFrom) },
	}
	if act.looks { // by a preview, and without waiting
		j.options.dryRun, j.options.restart, j.options.lockWait = true, false, 0
	}
	if container.CloneFrom != 0 {
		j.source = &r.node(container.CloneFrom).source
	}
	if planned.Action == "check" {
		j.options.dryRun = true
		r.checked = append(r.checked, j)
		return nil
	}
	if planned.Provisions() && !j.options.dryRun {
		var source *config.Container
		if j.source != nil {
			source = j.source.container
		}
		r.run.assets.fetchFor(container, source, planned.Action == "recreate")
	}
	r.mu.Lock()
	n.needs = planned.Needs
	if planned.Action == "recreate" {
		n.recreation = &recreation{checked: make(chan struct{}), gone: make(chan struct{})}
		n.hasCloned() // others do not wait for it
	}
	r.mu.Unlock()
	r.run.work.Go(func() {
		defer close(n.done)
		defer n.hasCloned()
		if n.recreation != nil {
			r.recreate(n, j, planned.Needs)
			return
		}
		needs := planned.Needs
		if act.looks { // what it needs tells nothing of how it is itself
			needs = nil
			r.awaitSource(container.CloneFrom, planned.Needs)
		}
		if planned.Action == "create" && !r.options.dryRun {
			if r.options.host.HasConf(ctid) {
				n.hasCloned()
				r.lookEarly(n, j, needs)
			} else if r.canMakeEarly(n, j, needs) {
				needs = nil // it waits for them later
			}
		}
		if reason, because := r.await(needs); reason != "" {
			r.skip(container, reason, because)
			return
		}
		release, ok := r.begin()
		if !ok {
			r.skip(container, planBrokeOff, 0)
			return
		}
		defer release()
		if planned.Action == "delete" {
			j.together = r.before(ctid)
		}
		toDo, err := j.do(r.ctx, act)
		n.source.conf = j.ct.Conf
		n.ready = err == nil
		r.run.note(toDo, err != nil)
	})
	return nil
}

// begin waits until another container may be worked on; release ends that. ok is
// false when nothing new may be started.
func (r *round) begin() (release func(), ok bool) {
	select {
	case r.run.jobs <- struct{}{}:
	case <-r.halted:
		return nil, false
	}
	release = func() { <-r.run.jobs }
	select {
	case <-r.halted: // select chooses freely among what is ready
		release()
		return nil, false
	default:
		return release, true
	}
}

// lookEarly finds out, before all is ready that a container needs, whether it runs and
// nothing is to be done on it, nor on what it needs. Then it says so, and runs its health
// checks while others are not ready. Where there is nothing to wait for, it does not look.
func (r *round) lookEarly(n *node, j *job, needs []int) {
	if !r.areUnchanged(needs) {
		close(n.looked)
		return
	}
	release, ok := r.begin()
	if !ok {
		return
	}
	defer release()
	if !j.hasHealthChecks() && !r.anyUnfinished(needs) {
		return
	}
	n.unchanged = j.isUnchanged(r.ctx)
	close(n.looked)
	if !n.unchanged {
		return
	}
	r.emit(event.ContainerRunning{CTID: j.c.CTID, Name: j.c.Name})
	if j.hasHealthChecks() && r.anyUnfinished(needs) {
		j.healthy = j.isHealthyAtOnce(r.ctx)
	}
}

// canMakeEarly reports whether a container that does not exist can be made now, which
// it waits for. If so, the container waits for what else it needs before it is started.
func (r *round) canMakeEarly(n *node, j *job, needs []int) bool {
	if !r.anyUnfinished(needs) {
		return false
	}
	if !r.canMake(j, needs) {
		n.hasCloned()
		return false
	}
	j.await = func() (reason string, because int) {
		if !r.anyUnfinished(needs) {
			return r.await(needs)
		}
		start := time.Now()
		j.begins("waiting for what it needs")
		j.pause(func() { reason, because = r.await(needs) })
		j.waited = time.Since(start)
		return reason, because
	}
	return true
}

// canMake waits for the clone source of a container that does not exist, and reports
// whether it can be made: nothing in that may fail for what is still to be done on others.
func (r *round) canMake(j *job, needs []int) bool {
	if source := j.c.CloneFrom; source != 0 {
		if !slices.Contains(needs, source) {
			return false
		}
		if reason, _ := r.await([]int{source}); reason != "" {
			return false
		}
	}
	release, ok := r.begin()
	if !ok {
		return false
	}
	defer release()
	return j.canMake(r.ctx)
}

// pause waits for something while others may be worked on in the place of a container
// at work.
func (r *round) pause(wait func()) {
	<-r.run.jobs
	wait()
	r.run.jobs <- struct{}{}
}

// turn returns what waits until a container may be cloned: until those clones of its
// source are made that others need, unless it is one of these. It returns nil where
// there is nothing to wait for.
func (r *round) turn(ctid, source int) (wait func()) {
	select {
	case <-r.planned: // what others need is known then
		if len(r.clonedBefore(ctid, source)) == 0 {
			return nil
		}
	default:
	}
	return func() {
		select {
		case <-r.planned:
		case <-r.halted:
			return
		}
		for _, n := range r.clonedBefore(ctid, source) {
			select {
			case <-n.cloned:
			case <-r.halted:
				return
			}
		}
	}
}

// clonedBefore returns the containers of the plan that are to be cloned from a source
// before another one, and are not yet. The plan is complete.
func (r *round) clonedBefore(ctid, source int) (nodes []*node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	needed := map[int]bool{}
	for _, n := range r.nodes {
		for _, id := range n.needs {
			needed[id] = true
		}
	}
	if needed[ctid] {
		return nil
	}
	for id, n := range r.nodes {
		if !needed[id] || n.source.container == nil || n.source.container.CloneFrom != source {
			continue
		}
		select {
		case <-n.cloned:
		default:
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// anyUnfinished reports whether the work on one of these containers goes on.
func (r *round) anyUnfinished(ids []int) bool {
	for _, id := range ids {
		select {
		case <-r.node(id).done:
		default:
			return true
		}
	}
	return false
}

// areUnchanged waits until it is known of each of these containers whether it is
// ready, or runs and nothing is to be done on it, and reports whether that is so of
// all. It is not said before that a container runs which needs them: what others then
// do with that one may concern these, too.
func (r *round) areUnchanged(ids []int) bool {
	for _, id := range ids {
		n := r.node(id)
		if reason, _ := r.awaitNode(id, n.looked); reason != "" {
			return false
		}
		select {
		case <-n.done:
			if !n.ready {
				return false
			}
		default:
			if !n.unchanged {
				return false
			}
		}
	}
	return true
}

// before returns the containers of the plan that a container needs, and those that
// these need.
func (r *round) before(ctid int) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, seen := []int{ctid}, map[int]bool{ctid: true}
	for i := 0; i < len(all); i++ {
		if n := r.nodes[all[i]]; n != nil {
			for _, id := range n.needs {
				if !seen[id] {
					seen[id] = true
					all = append(all, id)
				}
			}
		}
	}
	return all[1:]
}

const planBrokeOff = "the plan broke off"

// await waits until all needs are ready. Otherwise it returns why not, and
// the container to blame, if any.
func (r *round) await(needs []int) (reason string, because int) {
	for _, need := range needs {
		if reason, because := r.awaitNode(need, nil); reason != "" {
			return reason, because
		}
		if !r.node(need).ready {
			return fmt.Sprintf("container %d is not ready", need), need
		}
	}
	return "", 0
}

// awaitNode waits until the work on a container is done, or looked is closed. It
// returns why that will not be, and the container to blame, if any.
func (r *round) awaitNode(ctid int, looked <-chan struct{}) (reason string, because int) {
	n := r.node(ctid)
	for planned := r.planned; ; planned = nil {
		select {
		case <-n.done:
			return "", 0
		case <-looked:
			return "", 0
		case <-r.halted:
			return planBrokeOff, 0
		case <-planned:
			if n.source.container == nil {
				return fmt.Sprintf("container %d is needed and not planned", ctid), ctid
			}
		}
	}
}

// awaitSource waits, where the plan has the source of a clone, until it has been
// looked at.
func (r *round) awaitSource(source int, needs []int) {
	if slices.Contains(needs, source) {
		r.await([]int{source})
	}
}

func (r *round) skip(c *config.Container, reason string, because int) {
	r.run.fail(fmt.Errorf("%d %s: skipped: %s", c.CTID, c.Name, reason))
	r.emit(event.ContainerSkipped{CTID: c.CTID, Name: c.Name, Reason: reason, Because: because})
}

func (r *round) emit(body event.Body) {
	if err := r.run.stream.Emit(body); err != nil {
		r.run.fail(err)
		r.halt()
	}
}

// guest returns why a guest outside of the configuration is not ready, nil if
// it runs; each guest is asked for once a round.
func (r *round) guest(id int) error {
	r.mu.Lock()
	if r.guests[id] == nil {
		r.guests[id] = sync.OnceValue(func() error { return r.checkGuest(id) })
	}
	check := r.guests[id]
	r.mu.Unlock()
	return check()
}

// once does what several containers need, by whoever is first; the others call
// waits, wait for that, and get its error.
func (r *round) once(name string, waits func(), do func() error) error {
	r.mu.Lock()
	shared := r.shared[name]
	first := shared == nil
	if first {
		shared = sync.OnceValue(do)
		r.shared[name] = shared
	}
	r.mu.Unlock()
	if !first {
		waits()
	}
	return shared()
}

func (r *round) checkGuest(id int) error {
	states, err := r.states()
	if err != nil {
		return err
	}
	state, err := r.options.host.GuestState(r.ctx, r.options.qm, id, states)
	if err != nil {
		return fmt.Errorf("it needs the guest %s, which is not in the configuration: %w "+
			"(--ignore-external does without)", r.guestName(id), err)
	}
	if state != "running" {
		return remedy.Errorf("start it, or use --ignore-external", "it needs the guest %s, which is %s",
			r.guestName(id), state)
	}
	return nil
}

// guestName returns how messages name a guest outside of the configuration.
func (r *round) guestName(id int) string {
	if name := r.plan.ExternalNames[id]; name != "" {
		return fmt.Sprintf("%d %s", id, name)
	}
	return strconv.Itoa(id)
}
