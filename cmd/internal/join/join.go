// Package join is the host's half of the programs that set up a service in a
// container: a filter that waits until the container is ready and the CA's
// fingerprint is known, in whichever order these come, and then calls the
// program's own work.
package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pct"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Target is a ready container, and the CA that it shall trust.
type Target struct {
	Host      *pct.Host
	CTID      int
	Container *config.Container
	Domain    string
	Services  []config.Service
	Proxy     string // address of the proxy's container, "" when the file has none
	Gateway   string // and of the gateway's

	CACTID      int
	CAURL       string
	Fingerprint string // SHA-256 of the root certificate
	RootPath    string // the root certificate, as mounted in the container

	scripts string
}

// Logf writes a message about the container to stderr.
func (t *Target) Logf(format string, args ...any) {
	cmdline.Logf("%d %s: %s", t.CTID, t.Container.Name, fmt.Sprintf(format, args...))
}

// filter works on the container with a certain application script, once a
// round.
type filter struct {
	script string
	event  string
	host   *pct.Host
	dir    string // of the feature scripts
	setUp  func(context.Context, *Target) (*remote.Answer, error)

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
	}
}

// Run runs the filter over stdin and stdout. script is the application script
// that the program stands in for; prefix is that of its events, prefix.ready
// and prefix.failed; setUp sets the service up, and its error, or that of its
// answer, becomes prefix.failed.
func Run(c *cli.Context, script, prefix string, setUp func(context.Context, *Target) (*remote.Answer, error)) error {
	isFilter, err := cmdline.Filter(c)
	switch {
	case err != nil:
		return err
	case !isFilter:
		return cmdline.Usagef("unknown command %q", c.Args().First())
	}
	f := &filter{
		script: script,
		event:  prefix,
		host:   &pct.Host{PCT: c.String("pct"), PVERoot: c.String("pve-root")},
		dir:    c.String("scripts"),
		setUp:  setUp,
	}
	f.stream = event.NewStream(os.Stdin, os.Stdout, f.fail)
	return f.run(c.Context)
}

// round is what has been seen of a plan.
type round struct {
	plan        event.Event
	container   *config.Container
	ready       bool
	gone        string // why the container will not get ready
	ca          event.Event
	caFailed    string
	fingerprint event.Event
	begun       bool
}

func (f *filter) run(ctx context.Context) error {
	r := &round{}
	for {
		ev, err := f.stream.Next(ctx, event.PlanStarted, "ct.planned", "ct.ready", "ct.preview", "ct.failed", "ct.skipped",
			"ca.exported", "ca.failed", "ca.fingerprint")
		if err != nil {
			f.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		if ev.Name == event.PlanDone {
			f.work.Wait()
			f.missing(r)
			if err := f.stream.Forward(ev); err != nil {
				return err
			}
			r = &round{}
			continue
		}
		if ev.Name == event.PlanStarted {
			r = &round{}
		}
		if err := r.take(ev, f.script); err != nil {
			f.fail(fmt.Errorf("event stream: line %d: %w", ev.Line, err))
		}
		if r.ready && r.ca.Raw != nil && r.fingerprint.Raw != nil && !r.begun {
			r.begun = true
			f.begin(ctx, r)
		}
	}
	if f.failed {
		return cmdline.Status(1)
	}
	return nil
}

func (r *round) take(ev event.Event, script string) error {
	ours := r.container != nil && ev.CTID() == r.container.CTID
	switch ev.Name {
	case event.PlanStarted:
		r.plan = ev
	case "ct.planned":
		if ev.Get("action").Str != "create" || ev.Get("config.application_script").Str != script {
			return nil
		}
		if r.container != nil {
			return fmt.Errorf("container %d: %s is the application script of container %d already", ev.CTID(), script, r.container.CTID)
		}
		container, err := config.ParseContainer(ev.CTID(), []byte(ev.Get("config").Raw))
		r.container = container
		return err
	case "ct.ready":
		r.ready = r.ready || ours
	case "ct.preview":
		if ours {
			r.container = nil // a dry run: nothing is to be done
		}
	case "ct.failed":
		if ours {
			r.gone = "failed: " + ev.Get("error").Str
		}
	case "ct.skipped":
		if ours {
			r.gone = "was skipped: " + ev.Get("reason").Str
		}
	case "ca.exported":
		r.ca = ev
	case "ca.failed":
		r.caFailed = ev.Get("error").Str
	case "ca.fingerprint":
		r.fingerprint = ev
	}
	return nil
}

// begin starts the work on the round's container.
func (f *filter) begin(ctx context.Context, r *round) {
	target := &Target{
		Host:        f.host,
		scripts:     f.dir,
		CTID:        r.container.CTID,
		Container:   r.container,
		Domain:      r.plan.Get("domain").Str,
		Proxy:       r.plan.Get("proxy.ip").Str,
		Gateway:     r.plan.Get("gateway.ip").Str,
		CACTID:      r.ca.CTID(),
		CAURL:       r.fingerprint.Get("ca_url").Str,
		Fingerprint: r.fingerprint.Get("sha256").Str,
	}
	path, services := r.fingerprint.Get("path").Str, r.plan.Get("services").Raw
	f.work.Go(func() {
		start := time.Now()
		answer, err := func() (*remote.Answer, error) {
			if err := json.Unmarshal([]byte(services), &target.Services); err != nil {
				return &remote.Answer{Stage: "join"}, fmt.Errorf("services of plan.started: %w", err)
			}
			if _, err := cert.ReadPinned(path, target.Fingerprint); err != nil {
				return &remote.Answer{Stage: "trust"}, err
			}
			root, err := mounted(target.Container, path)
			if err != nil {
				return &remote.Answer{Stage: "trust"}, err
			}
			target.RootPath = root
			return f.setUp(ctx, target)
		}()
		if err == nil && answer.Error != "" {
			err = errors.New(answer.Error)
		}
		if err != nil {
			stage := "apply"
			if answer != nil && answer.Stage != "" {
				stage = answer.Stage
			}
			f.reportFailure(target.CTID, target.Container.Name, stage, err.Error())
			return
		}
		for _, change := range answer.Changes {
			target.Logf("%s", change)
		}
		if answer.Changed {
			target.Logf("ready (%s)", cmdline.Elapsed(start))
		} else {
			target.Logf("unchanged")
		}
		f.emit(f.event+".ready", target.CTID, answer)
	})
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
	case r.ca.Raw == nil:
		why = "no ca.exported has come: plan the CA's container too (application script " + config.CAScript + ")"
	default:
		why = "no ca.fingerprint has come: is phx-fingerprint in the pipe?"
	}
	f.reportFailure(r.container.CTID, r.container.Name, "join", why)
}

func (f *filter) reportFailure(ctid int, name, stage, why string) {
	f.fail(fmt.Errorf("%d %s: %s: %s", ctid, name, stage, why))
	f.emit(f.event+".failed", ctid, struct {
		Stage string `json:"stage"`
		Error string `json:"error"`
	}{stage, why})
}

func (f *filter) emit(name string, ctid int, fields any) {
	if err := f.stream.Emit(name, ctid, fields); err != nil {
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
		if rest, err := filepath.Rel(m.HostPath, path); err == nil && filepath.IsLocal(rest) {
			return filepath.Join(m.ContainerPath, rest), nil
		}
	}
	return "", fmt.Errorf("no mount point shows %s to the container: add %s to its mount_points", path, filepath.Dir(path))
}

// Call runs the container's half of the program, which is given the request.
// Programs that it lacks are installed; supply supplies its other needs.
func (t *Target) Call(ctx context.Context, request any, supply func(need string) (any, error)) (*remote.Answer, error) {
	log := &cmdline.LineWriter{Line: func(line string) {
		t.Logf("%s", strings.TrimPrefix(line, cmdline.Name()+": "))
	}}
	defer log.Close()
	return remote.Call(ctx, t.Host, t.CTID, func(need string) (any, error) {
		switch need {
		case "request":
			return request, nil
		case "step_cli", "traefik": // features
			return true, t.Host.RunFeature(ctx, t.scripts, need, t.CTID, "", log)
		}
		return supply(need)
	}, log)
}
