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

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pct"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Target is a ready container, and the CA that it shall trust.
type Target struct {
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
}

// Logf writes a message about the container to stderr.
func (t *Target) Logf(format string, args ...any) {
	cmdline.Logf("%d %s: %s", t.CTID, t.Container.Name, fmt.Sprintf(format, args...))
}

// Filter is a filter that works on the container with a certain application
// script, once a round.
type Filter struct {
	Script string // the application script that the program stands in for
	Event  string // prefix of the program's events: Event.ready, Event.failed
	Host   *pct.Host
	// Work sets the service up. Its error, or that of its answer, becomes
	// Event.failed.
	Work func(context.Context, *Target) (*remote.Answer, error)

	stream *event.Stream
	work   sync.WaitGroup
	mu     sync.Mutex
	failed bool
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

// Run runs the filter over stdin and stdout.
func (f *Filter) Run(ctx context.Context) error {
	f.stream = event.NewStream(os.Stdin, os.Stdout, f.fail)
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
		if err := r.take(ev, f.Script); err != nil {
			f.fail(fmt.Errorf("event stream: line %d: %w", ev.Line, err))
		}
		if r.ready && r.fingerprint.Raw != nil && !r.begun {
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
func (f *Filter) begin(ctx context.Context, r *round) {
	target := &Target{
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
			return f.Work(ctx, target)
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
		f.emit(f.Event+".ready", target.CTID, answer)
	})
}

// missing says at the end of a plan what the planned container was waiting
// for.
func (f *Filter) missing(r *round) {
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

func (f *Filter) reportFailure(ctid int, name, stage, why string) {
	f.fail(fmt.Errorf("%d %s: %s: %s", ctid, name, stage, why))
	f.emit(f.Event+".failed", ctid, struct {
		Stage string `json:"stage"`
		Error string `json:"error"`
	}{stage, why})
}

func (f *Filter) emit(name string, ctid int, fields any) {
	if err := f.stream.Emit(name, ctid, fields); err != nil {
		f.fail(err)
	}
}

func (f *Filter) fail(err error) {
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

// Log returns a writer for what the container's half of the program says.
func (t *Target) Log() *cmdline.LineWriter {
	return &cmdline.LineWriter{Line: func(line string) {
		t.Logf("%s", strings.TrimPrefix(line, cmdline.Name()+": "))
	}}
}

// Supply installs a program that the container lacks: need is the name of a
// feature whose script does it.
func Supply(ctx context.Context, host *pct.Host, scripts string, t *Target, need string) (bool, error) {
	switch need {
	case "step_cli", "traefik":
	default:
		return false, fmt.Errorf("the container's half asks for %q, which this %s does not know", need, cmdline.Name())
	}
	log := t.Log()
	defer log.Close()
	return true, host.RunFeature(ctx, scripts, need, t.CTID, "", log)
}
