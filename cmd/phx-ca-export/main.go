// Command phx-ca-export brings the root certificate out of the CA's container,
// and keeps the CA as the configuration has it.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
)

const usage = `Usage:
    … | phx-lxc | phx-ca-export [OPTIONS] | …
    phx-ca-export --ctid CTID [OPTIONS]
    phx-ca-export init --ctid CTID --ip ADDRESS [OPTIONS]

Copy the root certificate of the CA out of its container, to where the other
containers see it. Only self-signed CA certificates that are valid now are
accepted. The file is replaced atomically, and only if it differs; a failed
export leaves the old one. Replacing is not made durable: after a power failure
the old file may be there again, never a part of the new one.

The fingerprint of the first root is kept below PVE-ROOT/priv/phx/ca. From then
on another root is an error, until it is accepted.

As a filter, export when the CA's container is ready, and bring the CA's
configuration up to date: its address and names, the policy for which names it
issues certificates, the challenges of ACME, and its intermediate certificate,
which is limited to the domain. If the CA cannot be asked, the pinned root is
exported from the host, and the exit status is 1.

init makes the CA in its container, or takes over the one that is there. The
key of the root is made on the host, where it stays, below PVE-ROOT/priv/phx/ca.
A CA that exists is never replaced.

Options:
    --ctid CTID           Export from this container now; read no events.
    --output FILE         Where to put the certificate.
                          Default ` + cmdline.DefaultCAFile + `. (PHX_CA_FILE)
    --accept-new-root FINGERPRINT
                          Accept the root with this SHA-256 in place of the
                          pinned one; 1 stands for any. (PHX_ACCEPT_NEW_ROOT)
    --rotate-root STEP    Take a step of a rotation of the root; only as a filter.
                          (PHX_ROTATE_ROOT)
    --pct PROGRAM         The pct to run. Default pct. (PHX_PCT)
    --pve-root DIR        Where Proxmox VE keeps its files.
                          Default /etc/pve. (PHX_PVE_ROOT)
    --timeout DURATION    How long a command may take, such as a clone; what has a
                          shorter limit keeps it. Default 1h. (PHX_TIMEOUT)
    --help                Print this text.
    --version             Print the version.

Options of init:
    --domain DOMAIN       Domain of the services' names.
                          Default ` + cmdline.DefaultDomain + `. (PHX_DOMAIN)
    --ip ADDRESS          Address by which others reach the CA. (PHX_IP)
    --port PORT           Where it listens. Default 9000. (PHX_SERVICE_PORT)
    --name NAME           Its name below the domain. Default ca. (PHX_SERVICE_NAME)

Rotation of the root, in three steps with nothing out of service. Each can be
repeated, and is refused until gateway and proxy have taken the one before:
    trust           make a new root; everything trusts both
    certificates    the CA issues from the new root
    drop            only the new root is trusted

Events read: plan.started, ct.ready, ct.failed, ct.skipped, plan.done.
Events written: ca.exported, ca.failed, ca.rotation.

Example:
    phx-ca-export --ctid 103 --output phoenix_ca.crt
    PHX_ROTATE_ROOT=trust phoenix
`

func main() {
	flags := []cli.Flag{
		&cli.IntFlag{Name: "ctid"},
		&cli.StringFlag{Name: "pct", Value: "pct", EnvVars: []string{"PHX_PCT"}},
		&cli.StringFlag{Name: "pve-root", Value: "/etc/pve", EnvVars: []string{"PHX_PVE_ROOT"}},
		&cli.DurationFlag{Name: "timeout", Value: pve.DefaultTimeout, EnvVars: []string{"PHX_TIMEOUT"}},
		&cli.StringFlag{Name: "accept-new-root", EnvVars: []string{"PHX_ACCEPT_NEW_ROOT"}},
	}
	cmdline.Main(&cli.App{
		Name:                  "phx-ca-export",
		CustomAppHelpTemplate: usage,
		Flags: append(flags[:len(flags):len(flags)],
			&cli.StringFlag{Name: "output", Value: cmdline.DefaultCAFile, EnvVars: []string{"PHX_CA_FILE"}},
			&cli.StringFlag{Name: "rotate-root", EnvVars: []string{"PHX_ROTATE_ROOT"}},
		),
		Action: run,
		Commands: []*cli.Command{{
			Name:               "init",
			CustomHelpTemplate: usage,
			Flags: append(flags[:len(flags):len(flags)],
				&cli.StringFlag{Name: "domain", Value: cmdline.DefaultDomain, EnvVars: []string{"PHX_DOMAIN"}},
				&cli.StringFlag{Name: "ip", EnvVars: []string{"PHX_IP"}},
				&cli.IntFlag{Name: "port", Value: ca.DefaultPort, EnvVars: []string{"PHX_SERVICE_PORT"}},
				&cli.StringFlag{Name: "name", Value: ca.DefaultName, EnvVars: []string{"PHX_SERVICE_NAME"}},
			),
			Action: initialize,
		}},
	})
}

// newExporter reads the options that all forms have.
func newExporter(c *cli.Context) (*exporter, error) {
	e := &exporter{
		host:   &pve.Host{PCT: c.String("pct"), PVERoot: c.String("pve-root"), Timeout: c.Duration("timeout")},
		path:   c.String("output"),
		accept: c.String("accept-new-root"),
		rotate: c.String("rotate-root"),
	}
	if e.accept != "" && e.accept != "1" {
		sum, err := cert.ParseFingerprint(e.accept)
		if err != nil {
			return nil, cmdline.Usagef("--accept-new-root: %v, or 1 for any root", err)
		}
		e.accept = sum
	}
	if c.Duration("timeout") <= 0 {
		return nil, cmdline.Usagef("--timeout %s: must be more than 0", c.Duration("timeout"))
	}
	switch e.rotate {
	case "", cahost.StepTrust, cahost.StepCertificates, cahost.StepDrop:
	default:
		return nil, cmdline.Usagef("--rotate-root %q: the steps are trust, certificates, drop", e.rotate)
	}
	if c.IsSet("ctid") {
		if _, err := config.ParseCTID(strconv.Itoa(c.Int("ctid"))); err != nil {
			return nil, cmdline.Usagef("--ctid: %v", err)
		}
	}
	return e, nil
}

func run(c *cli.Context) error {
	e, err := newExporter(c)
	if err != nil {
		return err
	}
	if c.Args().Present() {
		return cmdline.Usagef("unexpected argument %q: a container is named with --ctid", c.Args().First())
	}
	if c.IsSet("ctid") {
		if e.rotate != "" {
			return cmdline.Usagef("--rotate-root works in the pipe, which knows who trusts the CA: PHX_ROTATE_ROOT=%s phoenix", e.rotate)
		}
		if _, err := e.export(c.Context, c.Int("ctid"), cahost.Options{Log: cmdline.Logf}); err != nil {
			return fmt.Errorf("%s is unchanged: %w", e.path, err)
		}
		return nil
	}
	if _, err := cmdline.Filter(c); err != nil {
		return err
	}
	e.stream = event.NewStream(os.Stdin, os.Stdout, e.fail)
	return e.filter(c.Context)
}

// initialize makes the CA, or sees that it is there.
func initialize(c *cli.Context) error {
	e, err := newExporter(c)
	if err != nil {
		return err
	}
	domain := strings.ToLower(c.String("domain"))
	addr, addrErr := netip.ParseAddr(c.String("ip"))
	switch {
	case c.Args().Present():
		return cmdline.Usagef("init: unexpected argument %q", c.Args().First())
	case !c.IsSet("ctid"):
		return cmdline.Usagef("init: name the CA's container with --ctid")
	case !config.IsHostName(domain):
		return cmdline.Usagef("init: --domain %q: not a domain", domain)
	case addrErr != nil || addr.Zone() != "":
		return cmdline.Usagef("init: --ip %q: not an IP address: the CA needs a fixed one, by which others reach it", c.String("ip"))
	case c.Int("port") < 1 || c.Int("port") > 65535:
		return cmdline.Usagef("init: --port %d: not a port", c.Int("port"))
	case !config.IsHostName(c.String("name")):
		return cmdline.Usagef("init: --name %q: not a host name", c.String("name"))
	}
	store, closeStore, err := cahost.OpenStore(c.Context, e.host)
	if err != nil {
		return err
	}
	defer closeStore()
	result, err := cahost.Converge(c.Context, e.host, c.Int("ctid"), store, cahost.Options{
		Settings: &ca.Settings{Domain: domain, Addr: addr, Name: c.String("name"), Port: c.Int("port")},
		Create:   true,
		Accept:   e.accept,
		Log:      cmdline.Logf,
	})
	if err == nil && len(result.Changes) == 0 {
		cmdline.Logf("the CA is there: root %s", result.Pin.Primary)
	}
	return err
}

type exporter struct {
	host           *pve.Host
	path           string
	accept, rotate string
	stream         *event.Stream
	work           sync.WaitGroup

	mu     sync.Mutex
	failed bool
}

func (e *exporter) fail(err error) {
	cmdline.Logf("%v", err)
	e.mu.Lock()
	e.failed = true
	e.mu.Unlock()
}

func (e *exporter) filter(ctx context.Context) error {
	var p *config.Plan
	begun := false
	for {
		ev, err := e.stream.Next(ctx, event.NamePlanStarted, event.NameContainerReady, event.NameContainerFailed, event.NameContainerSkipped)
		if err != nil {
			e.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		switch {
		case ev.Name == event.NamePlanStarted:
			begun = false
			started := ev.Body.(event.PlanStarted)
			if p, err = &started.Plan, started.Check(); err != nil {
				p = nil
				e.fail(fmt.Errorf("event stream: line %d: plan.started: %w", ev.Line, err))
			}
		case ev.Name == event.NamePlanDone:
			e.work.Wait()
			if err := e.stream.Forward(ev); err != nil {
				return err
			}
		case p == nil || p.CA == nil || ev.CTID() != p.CA.CTID:
			if ready, ok := ev.Body.(event.ContainerReady); ok && ready.ApplicationScript == config.CAScript {
				e.fail(fmt.Errorf("event stream: line %d: container %d has the application script %s, and the plan has another CA, or none with a fixed address", ev.Line, ev.CTID(), config.CAScript))
			}
		case begun:
			e.fail(fmt.Errorf("event stream: line %d: a second end of the CA's container %d", ev.Line, ev.CTID()))
		default:
			begun = true
			e.work.Go(func() { e.react(ctx, p, ev) })
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

// react exports the root of the CA of which ev tells the end, and says so.
// Where the CA cannot be asked, the pinned root is exported.
func (e *exporter) react(ctx context.Context, p *config.Plan, ev event.Event) {
	ctid, settings := p.CA.CTID, ca.SettingsOf(p)
	name, err := canAsk(ev)
	label := strings.TrimSpace(fmt.Sprintf("%d %s", ctid, name))
	o := cahost.Options{
		Settings: &settings,
		Rotate:   e.rotate,
		Taken:    func(pins []string) error { return e.taken(p, pins) },
		Log:      func(format string, args ...any) { cmdline.Logf("%s: %s", label, fmt.Sprintf(format, args...)) },
	}
	var x *exported
	if err == nil {
		x, err = e.export(ctx, ctid, o)
	}
	if err != nil {
		e.fail(fmt.Errorf("%s: %w", label, err))
		e.emit(event.CAFailed{CTID: ctid, Error: err.Error()})
		if x, err = e.fromHost(ctx); err != nil {
			e.fail(fmt.Errorf("%s: nothing is exported from the host either: %w", label, err))
			return
		}
		o.Log("goes on with the pinned root %s from the host", x.Pin.Primary)
	}
	if x.Refused != nil {
		e.fail(fmt.Errorf("%s: rotation of the root: %s: %w", label, e.rotate, x.Refused))
	}
	if step := x.Pin.Step; step != "" || e.rotate == cahost.StepDrop && x.Pin.Dropped != "" {
		r := event.CARotation{CTID: ctid, Step: step, SHA256: x.Pin.Primary, Also: x.Pin.Also, Changed: x.Rotated}
		switch step {
		case cahost.StepTrust:
			r.SHA256, r.Also = r.Also, r.SHA256
		case "":
			r.Step, r.Also = cahost.StepDrop, x.Pin.Dropped
		}
		e.emit(r)
	}
	done := event.CAExported{
		CTID: ctid, Path: e.path, SHA256: x.Pin.Primary, Also: x.Pin.Also, CAURL: settings.URL(),
		Changed: x.changed || len(x.Changes) > 0, FromHost: x.fromHost,
	}
	if !x.fromHost {
		done.Known = &event.CAKnows{Hosts: pve.Hash(x.Hosts), Neighbours: pve.Hash(x.Neighbours)}
	}
	e.emit(done)
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
			return fmt.Errorf("phx-%s has not taken the step before yet: run phoenix without a step until all is well", name)
		}
	}
	return nil
}

type exported struct {
	*cahost.Result
	changed  bool // the file
	fromHost bool
}

// export brings the CA, the pin and the file up to date.
func (e *exporter) export(ctx context.Context, ctid int, o cahost.Options) (*exported, error) {
	start := time.Now()
	store, closeStore, err := cahost.OpenStore(ctx, e.host)
	if err != nil {
		return nil, err
	}
	defer closeStore()
	o.Accept = e.accept
	result, err := cahost.Converge(ctx, e.host, ctid, store, o)
	if err != nil {
		return nil, err
	}
	x := &exported{Result: result}
	if x.changed, err = e.write(result.Roots); err != nil {
		return nil, err
	}
	if x.changed {
		cmdline.Logf("wrote %s: %s (%s)", e.path, sums(result.Pin), cmdline.Elapsed(start))
	} else {
		cmdline.Logf("%s is unchanged: %s", e.path, sums(result.Pin))
	}
	return x, nil
}

func sums(p cahost.Pin) string {
	if p.Also == "" {
		return "SHA-256 " + p.Primary
	}
	return fmt.Sprintf("SHA-256 %s, and of a second root %s", p.Primary, p.Also)
}

// write brings the file up to date. Only in the pipe it is known to be for
// containers.
func (e *exporter) write(roots []*x509.Certificate) (changed bool, err error) {
	return writeRoots(e.path, e.stream != nil, roots)
}

// fromHost brings the file up to date from what is pinned.
func (e *exporter) fromHost(ctx context.Context) (*exported, error) {
	store, closeStore, err := cahost.OpenStore(ctx, e.host)
	if err != nil {
		return nil, err
	}
	defer closeStore()
	result, err := cahost.Pinned(store)
	if err != nil {
		return nil, err
	}
	x := &exported{Result: result, fromHost: true}
	x.changed, err = e.write(result.Roots)
	return x, err
}
