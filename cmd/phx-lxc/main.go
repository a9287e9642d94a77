// Command phx-lxc provisions the containers that phx-plan has planned.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pct"
)

const usage = `Usage:
    phx-plan … | phx-lxc [OPTIONS] | …

Bring every planned container into the state that the configuration asks for:
created or cloned, configured, started, its features installed, its
application script run, its health checked, its snapshots taken. Only what
differs is changed; a second run changes nothing.

Options:
    --jobs N              Work on at most N containers at once. Default 4. (PHX_JOBS)
    --scripts DIR         Directory of the feature and application scripts.
                          Default ` + cmdline.DefaultScripts + `. (PHX_SCRIPTS)
    --pct PROGRAM         The pct to run. Default pct. (PHX_PCT)
    --pve-root DIR        Proxmox VE's configuration. Default /etc/pve. (PHX_PVE_ROOT)
    --lock-wait DURATION  How long to wait for a container that Proxmox has
                          locked. Default 1m. (PHX_LOCK_WAIT)
    --help                Print this text.

Events read: plan.started, ct.planned, plan.done.
Events written: ct.ready, ct.failed, ct.skipped.

A container waits for all that it needs; if one of these fails it is skipped,
and the others go on. Exit status: 0 all ready, 1 something failed.

Example:
    phx-plan 103 | phx-lxc
`

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-lxc",
		CustomAppHelpTemplate: usage,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "jobs", Value: 4, EnvVars: []string{"PHX_JOBS"}},
			&cli.StringFlag{Name: "scripts", Value: cmdline.DefaultScripts, EnvVars: []string{"PHX_SCRIPTS"}},
			&cli.StringFlag{Name: "pct", Value: "pct", EnvVars: []string{"PHX_PCT"}},
			&cli.StringFlag{Name: "pve-root", Value: "/etc/pve", EnvVars: []string{"PHX_PVE_ROOT"}},
			&cli.DurationFlag{Name: "lock-wait", Value: time.Minute, EnvVars: []string{"PHX_LOCK_WAIT"}},
		},
		Action: run,
	})
}

func run(c *cli.Context) error {
	filter, err := cmdline.Filter(c)
	switch {
	case err != nil:
		return err
	case !filter:
		return cmdline.Usagef("unexpected argument %q: containers are named to phx-plan", c.Args().First())
	case c.Int("jobs") < 1:
		return cmdline.Usagef("--jobs %d: must be at least 1", c.Int("jobs"))
	}
	f := &filterState{
		host:     &pct.Host{PCT: c.String("pct"), PVERoot: c.String("pve-root")},
		scripts:  c.String("scripts"),
		lockWait: c.Duration("lock-wait"),
		jobs:     make(chan struct{}, c.Int("jobs")),
	}
	f.stream = event.NewStream(os.Stdin, os.Stdout, f.fail)
	return f.filter(c.Context)
}

// filterState is what the rounds of a stream share.
type filterState struct {
	host     *pct.Host
	scripts  string
	lockWait time.Duration
	jobs     chan struct{} // one token for each container at work
	stream   *event.Stream
	work     sync.WaitGroup

	mu     sync.Mutex
	failed bool
}

// fail reports an error of the run as a whole.
func (f *filterState) fail(err error) {
	cmdline.Logf("%v", err)
	f.mu.Lock()
	f.failed = true
	f.mu.Unlock()
}

func (f *filterState) filter(ctx context.Context) error {
	r := f.newRound(ctx, "")
	for {
		ev, err := f.stream.Next(ctx, event.PlanStarted, "ct.planned")
		if err != nil {
			r.halt()
			f.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		switch ev.Name {
		case event.PlanStarted:
			r.halt()
			r = f.newRound(ctx, ev.Get("domain").String())
		case "ct.planned":
			if err := r.plan(ev); err != nil {
				f.fail(fmt.Errorf("event stream: line %d: %w", ev.Line, err))
			}
		case event.PlanDone:
			close(r.planned)
			f.work.Wait()
			if err := f.stream.Forward(ev); err != nil {
				return err
			}
			r = f.newRound(ctx, "")
		}
	}
	if f.failed {
		return cmdline.Status(1)
	}
	return nil
}

// round is the work on one plan.
type round struct {
	*filterState
	ctx     context.Context
	domain  string
	planned chan struct{} // closed when the plan is complete
	halted  chan struct{} // closed when nothing new may be started
	halt    func()
	states  func() (map[int]string, error) // pct list, asked once a round

	mu      sync.Mutex
	nodes   map[int]*node
	sources map[int]*sync.Mutex // by CTID: held while a container is cloned from it
}

// node is a container of a plan, or one that others need and that has not
// been planned yet.
type node struct {
	done      chan struct{} // closed when it is ready, failed or skipped
	ready     bool
	container *config.Container // nil until planned
}

func (f *filterState) newRound(ctx context.Context, domain string) *round {
	r := &round{
		filterState: f,
		ctx:         ctx,
		domain:      domain,
		planned:     make(chan struct{}),
		halted:      make(chan struct{}),
		nodes:       map[int]*node{},
		sources:     map[int]*sync.Mutex{},
	}
	r.halt = sync.OnceFunc(func() { close(r.halted) })
	r.states = sync.OnceValues(func() (map[int]string, error) { return f.host.List(ctx) })
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

// plan takes a ct.planned and starts the container's work.
func (r *round) plan(ev event.Event) error {
	ctid := ev.CTID()
	if action := ev.Get("action").String(); action != "create" {
		return fmt.Errorf("container %d: action %q: this phx-lxc knows create only", ctid, action)
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
	var needs []int
	for _, need := range ev.Get("needs").Array() {
		needs = append(needs, int(need.Int()))
	}
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
			r.skip(ctid, container.Name, "the plan broke off", 0)
			return
		}
		n.ready = r.provision(ctid, container)
	})
	return nil
}

// await waits until all needs are ready. Otherwise it returns why not, and
// the container to blame, if any.
func (r *round) await(needs []int) (reason string, because int) {
	for _, need := range needs {
		n := r.node(need)
		select {
		case <-n.done:
		case <-r.halted:
			return "the plan broke off", 0
		case <-r.planned:
			if n.container == nil {
				return fmt.Sprintf("container %d is needed and not planned", need), need
			}
			select {
			case <-n.done:
			case <-r.halted:
				return "the plan broke off", 0
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

// provision works on one container and tells whether it is ready.
func (r *round) provision(ctid int, container *config.Container) bool {
	start := time.Now()
	j := &job{round: r, ctid: ctid, c: container, changes: []string{}}
	if err := j.converge(); err != nil {
		r.fail(fmt.Errorf("%d %s: %s: %w", ctid, container.Name, j.stage, err))
		r.emit("ct.failed", ctid, struct {
			Name  string `json:"name"`
			Stage string `json:"stage"`
			Error string `json:"error"`
		}{container.Name, j.stage, err.Error()})
		return false
	}
	if len(j.changes) == 0 {
		j.logf("unchanged")
	} else {
		j.logf("ready (%s)", cmdline.Elapsed(start))
	}
	r.emit("ct.ready", ctid, struct {
		Name              string   `json:"name"`
		IP                string   `json:"ip"`
		Changed           bool     `json:"changed"`
		Changes           []string `json:"changes"`
		RestartRequired   []string `json:"restart_required"`
		ApplicationScript string   `json:"application_script"`
		ElapsedMS         int64    `json:"elapsed_ms"`
	}{
		container.Name, address(container), len(j.changes) > 0, j.changes, j.restartRequired(),
		container.ApplicationScript, time.Since(start).Milliseconds(),
	})
	return true
}

func (r *round) emit(name string, ctid int, fields any) {
	if err := r.stream.Emit(name, ctid, fields); err != nil {
		r.fail(err)
		r.halt()
	}
}
