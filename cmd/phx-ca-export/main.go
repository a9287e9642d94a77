// Command phx-ca-export brings the root certificate out of the CA's container.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pct"
)

const usage = `Usage:
    … | phx-lxc | phx-ca-export [OPTIONS] | …
    phx-ca-export --ctid CTID [OPTIONS]

Copy the root certificate of the CA out of its container, to where the other
containers see it. Only a single self-signed CA certificate that is valid now
is accepted. The file is replaced atomically, and only if it differs; a failed
export leaves the old one. Replacing is not made durable: after a power failure
the old file may be there again, never a part of the new one.

As a filter, export when the CA's container (application script
phoenix_hypervisor_lxc_103.sh) is ready.

Options:
    --ctid CTID           Export from this container now; read no events.
    --output FILE         Where to put the certificate.
                          Default ` + cmdline.DefaultCAFile + `. (PHX_CA_FILE)
    --pct PROGRAM         The pct to run. Default pct. (PHX_PCT)
    --help                Print this text.

Events read: plan.started, ct.ready, plan.done.
Events written: ca.exported, ca.failed.

Example:
    phx-ca-export --ctid 103 --output phoenix_ca.crt
`

// rootPath is the root certificate's place in the CA's container.
const rootPath = "/home/step/certs/root_ca.crt"

// defaultPort is where step-ca listens unless the container's traefik_service
// says otherwise.
const defaultPort = "9000"

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-ca-export",
		CustomAppHelpTemplate: usage,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "ctid"},
			&cli.StringFlag{Name: "output", Value: cmdline.DefaultCAFile, EnvVars: []string{"PHX_CA_FILE"}},
			&cli.StringFlag{Name: "pct", Value: "pct", EnvVars: []string{"PHX_PCT"}},
		},
		Action: run,
	})
}

func run(c *cli.Context) error {
	e := &exporter{host: &pct.Host{PCT: c.String("pct")}, path: c.String("output")}
	if c.Args().Present() {
		return cmdline.Usagef("unexpected argument %q: a container is named with --ctid", c.Args().First())
	}
	if c.IsSet("ctid") {
		ctid := c.Int("ctid")
		if _, err := config.ParseCTID(strconv.Itoa(ctid)); err != nil {
			return cmdline.Usagef("--ctid: %v", err)
		}
		_, err := e.export(c.Context, ctid)
		return err
	}
	if _, err := cmdline.Filter(c); err != nil {
		return err
	}
	e.stream = event.NewStream(os.Stdin, os.Stdout, e.fail)
	return e.filter(c.Context)
}

type exporter struct {
	host   *pct.Host
	path   string
	stream *event.Stream
	work   sync.WaitGroup

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
	var plan event.Event
	for {
		ev, err := e.stream.Next(ctx, event.PlanStarted, "ct.ready")
		if err != nil {
			e.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		switch ev.Name {
		case event.PlanStarted:
			plan = ev
		case "ct.ready":
			if ev.Get("application_script").Str == config.CAScript {
				url := caURL(plan, ev)
				e.work.Go(func() { e.react(ctx, ev, url) })
			}
		case event.PlanDone:
			e.work.Wait()
			if err := e.stream.Forward(ev); err != nil {
				return err
			}
		}
	}
	if e.failed {
		return cmdline.Status(1)
	}
	return nil
}

// caURL is where the CA answers: by address, since its name leads to the
// gateway, at the port of its traefik_service.
func caURL(plan, ready event.Event) string {
	port := defaultPort
	for _, s := range plan.Get("services").Array() {
		if int(s.Get("ctid").Int()) == ready.CTID() {
			if _, p, err := net.SplitHostPort(filepath.Base(s.Get("url").Str)); err == nil {
				port = p
			}
		}
	}
	return "https://" + net.JoinHostPort(ready.Get("ip").Str, port)
}

// react exports the root of a CA that has got ready, and says so.
func (e *exporter) react(ctx context.Context, ready event.Event, url string) {
	ctid := ready.CTID()
	changed, err := e.export(ctx, ctid)
	if err != nil {
		e.fail(fmt.Errorf("%d %s: %w", ctid, ready.Get("name").Str, err))
		err = e.stream.Emit("ca.failed", ctid, struct {
			Error string `json:"error"`
		}{err.Error()})
	} else {
		err = e.stream.Emit("ca.exported", ctid, struct {
			Path    string `json:"path"`
			CAURL   string `json:"ca_url"`
			Changed bool   `json:"changed"`
		}{e.path, url, changed})
	}
	if err != nil {
		e.fail(err)
	}
}

// export brings the file up to date and tells whether it has changed.
func (e *exporter) export(ctx context.Context, ctid int) (changed bool, err error) {
	start := time.Now()
	// pct pull would empty the old file before it looks for the new one, and
	// exit 0 whatever happens.
	pem, err := e.host.Run(ctx, e.host.Exec(ctid, "/bin/cat", rootPath))
	if err != nil {
		return false, fmt.Errorf("read the root certificate: %w", err)
	}
	root, err := cert.ParseSingleRoot(pem)
	if err != nil {
		return false, fmt.Errorf("%s of container %d: %w; %s is unchanged", rootPath, ctid, err, e.path)
	}
	have, err := os.ReadFile(e.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if bytes.Equal(have, pem) {
		if info, err := os.Stat(e.path); err == nil && info.Mode().Perm() == 0o644 {
			cmdline.Logf("%s is unchanged: SHA-256 %s", e.path, cert.Fingerprint(root))
			return false, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(e.path), 0o755); err != nil {
		return false, err
	}
	if err := atomicfile.Write(e.path, pem, 0o644); err != nil {
		return false, err
	}
	cmdline.Logf("wrote %s: SHA-256 %s (%s)", e.path, cert.Fingerprint(root), cmdline.Elapsed(start))
	return true, nil
}
