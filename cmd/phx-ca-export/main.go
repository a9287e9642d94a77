// Command phx-ca-export brings the root certificate out of the CA's container,
// and keeps the CA as the configuration has it.
package main

import (
	"fmt"
	"os"
	"strconv"

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
    phx-ca-export roots [--pve-root DIR] [FINGERPRINT…]

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

roots prints the root certificates that are pinned on this host, or those of
them that are named: one, or two while the root is being rotated.

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
Events written: ct.stage, ca.exported, ca.failed, ca.rotation, warning.

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
		}, {
			Name:               "roots",
			CustomHelpTemplate: usage,
			Flags:              flags,
			Action:             printRoots,
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

// run exports from the container that is named, or works as a filter.
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
			return cmdline.Usagef("--rotate-root works in the pipe, which knows who trusts the CA: "+
				"PHX_ROTATE_ROOT=%s phoenix", e.rotate)
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
