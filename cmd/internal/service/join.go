// Package service is the host's half of the programs that set up a service in a
// container: a filter that waits until the container is ready and the CA's
// fingerprint is known, in whichever order these come, and then calls the
// program's own work.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Target is a ready container, and the CA that it is to trust.
type Target struct {
	Host      *pve.Host
	CTID      int
	Container *config.Container
	Domain    string
	Services  []config.Service
	CA        *config.Place // where the CA's container can be reached
	Proxy     *config.Place // and the proxy's; nil when the file has none
	Gateway   *config.Place // and the gateway's

	Trust  guest.Trust // the CA, and its root certificates as mounted in the container
	CADown bool        // the CA could not be asked: the root is the one that the host has kept

	// Hashes of what the CA's container has, "" where nobody has looked: the
	// lines in its /etc/hosts that lead to the proxy, and the unit that pins its
	// neighbours.
	CAHosts, CANeighbours string

	// GatewayReady waits until the gateway has been set up, and reports whether
	// it has; false at the end of a plan in which it has not been seen.
	GatewayReady func(context.Context) bool

	scripts string
	changes []string // that the host's half has made
}

// Changed notes what the host's half has changed.
func (t *Target) Changed(format string, args ...any) {
	if change := fmt.Sprintf(format, args...); !slices.Contains(t.changes, change) {
		t.changes = append(t.changes, change)
	}
}

// Neighbours returns the neighbours of the container: see [Target.NeighboursOf].
func (t *Target) Neighbours() []guest.Neighbour { return t.NeighboursOf(t.CTID) }

// NeighboursOf returns those of the CA, the proxy and the gateway, without the
// container itself, of which the file has the MAC address.
func (t *Target) NeighboursOf(ctid int) []guest.Neighbour {
	var all []guest.Neighbour
	for _, p := range []*config.Place{t.CA, t.Proxy, t.Gateway} {
		if p != nil && p.CTID != ctid && p.MAC != "" {
			all = append(all, guest.Neighbour{IP: p.IP, MAC: p.MAC})
		}
	}
	return all
}

// Logf writes a message about the container to stderr.
func (t *Target) Logf(format string, args ...any) {
	cmdline.Logf("%d %s: %s", t.CTID, t.Container.Name, fmt.Sprintf(format, args...))
}

// Program is a program that sets a service up in a container.
type Program struct {
	Name   string // under which it is noted which roots the service trusts: nginx, traefik
	Script string // the application script for which the program stands in

	// SetUp sets the service up. Its error, or that of its answer, is reported as
	// the event that Failed makes.
	SetUp func(context.Context, *Target) (*remote.Answer, error)

	Ready  func(event.ServiceReady) event.Body
	Failed func(event.ServiceFailed) event.Body
}

// filter works on the container with the program's application script, once a
// round.
type filter struct {
	program Program
	host    *pve.Host
	dir     string // of the feature scripts

	stream *event.Stream
	work   sync.WaitGroup
	mu     sync.Mutex
	failed bool
}

// Flags are the options of a filter.
func Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "pct", Value: "pct", EnvVars: []string{"PHX_PCT"}},
		&cli.StringFlag{Name: "pve-root", Value: "/etc/pve", EnvVars: []string{"PHX_PVE_ROOT"}},
		&cli.StringFlag{Name: "scripts", Value: cmdline.DefaultScripts, EnvVars: []string{"PHX_SCRIPTS"}},
		&cli.DurationFlag{Name: "timeout", Value: pve.DefaultTimeout, EnvVars: []string{"PHX_TIMEOUT"}},
	}
}

// Run runs the program as a filter over stdin and stdout.
func Run(c *cli.Context, program Program) error {
	isFilter, err := cmdline.Filter(c)
	switch {
	case err != nil:
		return err
	case !isFilter:
		return cmdline.Usagef("unknown command %q", c.Args().First())
	case c.Duration("timeout") <= 0:
		return cmdline.Usagef("--timeout %s: must be more than 0", c.Duration("timeout"))
	}
	f := &filter{
		program: program,
		host:    &pve.Host{PCT: c.String("pct"), PVERoot: c.String("pve-root"), Timeout: c.Duration("timeout")},
		dir:     c.String("scripts"),
	}
	f.stream = event.NewStream(os.Stdin, os.Stdout, f.fail)
	return f.run(c.Context)
}

// round is what has been seen of a plan.
type round struct {
	plan        config.Plan
	gateway     *gate
	container   *config.Container
	ready       bool
	gone        string // why the container will not get ready
	caPlanned   bool
	caReady     bool
	caGone      string // why the CA's container will not get ready
	ca          *event.CAExported
	caFailed    string
	fingerprint *event.CAFingerprint
	begun       bool
}

// gate is passed when something is known to be so or not.
type gate struct {
	known chan struct{}
	once  sync.Once
	open  bool
}

func newGate() *gate { return &gate{known: make(chan struct{})} }

func (g *gate) settle(open bool) {
	g.once.Do(func() {
		g.open = open
		close(g.known)
	})
}

func (g *gate) wait(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-g.known:
		return g.open
	}
}

func newRound() *round { return &round{gateway: newGate()} }

func (f *filter) run(ctx context.Context) error {
	r := newRound()
	for {
		ev, err := f.stream.Next(ctx, event.NamePlanStarted, event.NameContainerPlanned, event.NameContainerReady,
			event.NameContainerPreview, event.NameContainerFailed, event.NameContainerSkipped,
			event.NameCAExported, event.NameCAFailed, event.NameCAFingerprint, event.NameNginxReady, event.NameNginxFailed)
		if err != nil {
			r.gateway.settle(false)
			f.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		if ev.Name == event.NamePlanDone {
			r.gateway.settle(false)
			f.work.Wait()
			f.missing(r)
			if err := f.stream.Forward(ev); err != nil {
				return err
			}
			r = newRound()
			continue
		}
		if ev.Name == event.NamePlanStarted {
			r.gateway.settle(false)
			r = newRound()
		}
		if err := r.take(ev, f.program.Script, func(ctid int) bool {
			_, err := f.host.ReadConf(ctid)
			return err == nil
		}); err != nil {
			f.fail(fmt.Errorf("event stream: line %d: %w", ev.Line, err))
		}
		if r.ready && r.ca != nil && r.fingerprint != nil && !r.begun {
			r.begun = true
			f.begin(ctx, r)
		}
	}
	if f.failed {
		return cmdline.Status(1)
	}
	return nil
}

// take notes what an event says. exists reports whether a container is on this
// host.
func (r *round) take(ev event.Event, script string, exists func(ctid int) bool) error {
	ours := r.container != nil && ev.CTID() == r.container.CTID
	r.takeCA(ev)
	switch body := ev.Body.(type) {
	case event.PlanStarted:
		if err := body.Check(); err != nil {
			return fmt.Errorf("%s: %w", ev.Name, err)
		}
		r.plan = body.Plan
	case event.ContainerPlanned:
		if body.Action != "create" || body.ApplicationScript() != script {
			return nil
		}
		if r.container != nil {
			return fmt.Errorf("container %d: %s is the application script of container %d already", body.CTID, script, r.container.CTID)
		}
		container, err := config.ParseContainer(body.CTID, body.Config)
		r.container = container
		return err
	case event.ContainerReady:
		r.ready = r.ready || ours
	case event.ContainerPreview:
		if ours {
			r.container, r.ready = nil, false // a dry run: nothing is to be done
		}
	case event.ContainerFailed:
		if ours {
			r.gone = "failed: " + body.Error
			// What the service's health check finds may be what is mended here.
			r.ready = r.ready || body.Stage == event.StageHealthCheck
		}
	case event.ContainerSkipped:
		if ours {
			r.gone = "was skipped: " + body.Reason
			// Without another container, what is there is mended as far as that goes.
			r.ready = r.ready || body.Because != 0 && exists(body.CTID)
		}
	case event.CAExported:
		if r.plan.CA == nil || body.CTID != r.plan.CA.CTID {
			return fmt.Errorf("ca.exported of container %d, which is not the CA of the plan", body.CTID)
		}
		r.ca = &body
	case event.CAFailed:
		r.caFailed = body.Error
	case event.CAFingerprint:
		r.fingerprint = &body
	case event.NginxReady:
		r.gateway.settle(true)
	case event.NginxFailed:
		r.gateway.settle(false)
	}
	return nil
}

// takeCA notes what an event says about the CA's container.
func (r *round) takeCA(ev event.Event) {
	if r.plan.CA == nil || ev.CTID() != r.plan.CA.CTID {
		return
	}
	switch body := ev.Body.(type) {
	case event.ContainerPlanned:
		r.caPlanned = body.Action == "create"
	case event.ContainerReady:
		r.caReady = true
	case event.ContainerFailed:
		r.caGone = "failed: " + body.Error
	case event.ContainerSkipped:
		r.caGone = "was skipped: " + body.Reason
	}
}

// begin starts the work on the round's container.
func (f *filter) begin(ctx context.Context, r *round) {
	target := &Target{
		Host:      f.host,
		scripts:   f.dir,
		CTID:      r.container.CTID,
		Container: r.container,
		Domain:    r.plan.Domain,
		Services:  r.plan.Services,
		CA:        r.plan.CA,
		Proxy:     r.plan.Proxy,
		Gateway:   r.plan.Gateway,
		Trust: guest.Trust{
			Fingerprint: r.fingerprint.SHA256,
			Also:        r.fingerprint.Also,
			CAURL:       r.fingerprint.CAURL,
		},
		CADown:       r.ca.FromHost,
		GatewayReady: r.gateway.wait,
	}
	if known := r.ca.Known; known != nil {
		target.CAHosts, target.CANeighbours = known.Hosts, known.Neighbours
	}
	path := r.fingerprint.Path
	f.work.Go(func() {
		start := time.Now()
		answer, err := func() (*remote.Answer, error) {
			trust := &remote.Answer{Stage: "trust"}
			if err := target.checkCA(); err != nil {
				return trust, err
			}
			if err := target.checkPin(); err != nil {
				return trust, err
			}
			if _, err := cert.ReadPinned(path, target.Trust.Pins()...); err != nil {
				return trust, err
			}
			root, err := mounted(target.Container, path)
			if err != nil {
				return trust, err
			}
			target.Trust.Root = root
			return f.program.SetUp(ctx, target)
		}()
		if err == nil && answer.Error != "" {
			err = fmt.Errorf("not done in the container:\n%s", cmdline.Quoted(answer.Error))
		}
		if err == nil {
			err = cahost.WriteTaken(f.host, f.program.Name, target.Trust.Pins())
		}
		if err != nil {
			stage := "apply"
			if answer != nil && answer.Stage != "" {
				stage = answer.Stage
			}
			f.reportFailure(target.CTID, target.Container.Name, stage, err.Error())
			return
		}
		for _, change := range target.changes {
			target.Logf("%s", change)
		}
		for _, change := range answer.Changes {
			target.Logf("%s", cmdline.Quoted(change))
		}
		ready := event.ServiceReady{
			CTID: target.CTID, Names: answer.Names, NotAfter: answer.NotAfter,
			Changed: answer.Changed || len(target.changes) > 0,
			Changes: slices.Concat([]string{}, target.changes, answer.Changes),
		}
		if ready.Changed {
			target.Logf("ready (%s)", cmdline.Elapsed(start))
		} else {
			target.Logf("unchanged")
		}
		f.emit(f.program.Ready(ready))
	})
}

// checkCA returns an error unless the CA's URL leads to the CA of the plan,
// and the fingerprints are such.
func (t *Target) checkCA() error {
	if err := t.Trust.Check(); err != nil {
		return err
	}
	u, err := url.Parse(t.Trust.CAURL)
	if err != nil || u.Hostname() != t.CA.IP {
		return fmt.Errorf("CA URL %q: not that of the CA of the plan, container %d at %s", t.Trust.CAURL, t.CA.CTID, t.CA.IP)
	}
	return nil
}

// checkPin returns an error unless the fingerprints are those that the host
// has pinned, if it has: the stream may come from a file.
func (t *Target) checkPin() error {
	pin, err := cahost.ReadPin(t.Host)
	if err != nil || pin == nil {
		return err
	}
	if have, want := t.Trust.Pins(), pin.Pins(); !slices.Equal(have, want) {
		return fmt.Errorf("the stream has the root %s, and this host has pinned %s: run phx-ca-export and phx-fingerprint again, as phoenix does",
			strings.Join(have, " and "), strings.Join(want, " and "))
	}
	return nil
}

// missing says at the end of a plan what the planned container was waiting
// for.
func (f *filter) missing(r *round) {
	if r.container == nil || r.begun {
		return
	}
	why := ""
	switch {
	case r.gone != "":
		why = "the container " + r.gone
	case !r.ready:
		why = "no ct.ready of the container has come: is phx-lxc in the pipe?"
	case r.caFailed != "":
		why = "the CA's root certificate was not exported: " + r.caFailed
	case r.ca == nil:
		why = "no ca.exported has come: " + r.withoutCA()
	default:
		why = "no ca.fingerprint has come: is phx-fingerprint in the pipe?"
	}
	f.reportFailure(r.container.CTID, r.container.Name, "join", why)
}

// withoutCA returns why nothing was exported, and nothing said of it.
func (r *round) withoutCA() string {
	if r.plan.CA == nil {
		return "no container of the file is a CA with a fixed address (application script " + config.CAScript + ")"
	}
	switch container := fmt.Sprintf("the CA's container %d", r.plan.CA.CTID); {
	case r.caGone != "":
		return container + " " + r.caGone
	case r.caReady:
		return container + " is ready: is phx-ca-export in the pipe?"
	case r.caPlanned:
		return container + " has not become ready"
	default:
		return "plan " + container + " too"
	}
}

func (f *filter) reportFailure(ctid int, name, stage, why string) {
	f.fail(fmt.Errorf("%d %s: %s: %s", ctid, name, stage, why))
	f.emit(f.program.Failed(event.ServiceFailed{CTID: ctid, Stage: stage, Error: why}))
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

// mounted returns the place in a container where a file of the host is seen
// through one of the container's mount points.
func mounted(c *config.Container, path string) (string, error) {
	for _, m := range c.MountPoints {
		rest, err := filepath.Rel(m.HostPath, path)
		if err != nil || !filepath.IsLocal(rest) {
			continue
		}
		if !m.ReadOnly {
			return "", fmt.Errorf("the mount point %s shows %s to the container for writing: set its read_only to true", m.ContainerPath, path)
		}
		return filepath.Join(m.ContainerPath, rest), nil
	}
	return "", fmt.Errorf("no mount point shows %s to the container: add %s to its mount_points", path, filepath.Dir(path))
}
