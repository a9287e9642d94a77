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

Keep the CA as the configuration has it, and copy its root certificate out of
its container. init makes the CA; roots prints the roots that are pinned.

Options:
    --accept-new-root HEX  trust the CA's new root, which has this SHA-256, in
                           place of the pinned one; 1: whichever it has
                           (PHX_ACCEPT_NEW_ROOT)
    --attach auto|direct|pct
                           go into containers by lxc-attach, without pct, or by
                           pct exec; default auto: without, where pct is that of
                           Proxmox VE (PHX_ATTACH)
    --ctid CTID            copy the root out of this container, and read no
                           events
    --lxc-path DIR         LXC's containers; default /var/lib/lxc (PHX_LXC_PATH)
    --output FILE          copy the root to this file; default phoenix_ca.crt in
                           /usr/local/phoenix_hypervisor/persistent-storage/ssl
                           (PHX_CA_FILE)
    --pct PROGRAM          run this in place of pct (PHX_PCT)
    --proc DIR             processes; default /proc (PHX_PROC)
    --pve-root DIR         Proxmox VE's files; default /etc/pve (PHX_PVE_ROOT)
    --rotate-root STEP     take this step of a rotation of the root
                           (PHX_ROTATE_ROOT)
    --timeout DURATION     give up on a command after this time; default 1h
                           (PHX_TIMEOUT)
    --help                 print this text
    --version              print the version

Rotation of the root, a step a run:
    trust                  make a new root, and trust both
    certificates           have new certificates from the new root
    drop                   trust the old root no longer

Options of init:
    --domain DOMAIN        domain of the services' names; default
                           ` + cmdline.DefaultDomain + ` (PHX_DOMAIN)
    --ip ADDRESS           address by which others reach the CA (PHX_IP)
    --name NAME            name of the CA below the domain; default ca
                           (PHX_SERVICE_NAME)
    --port PORT            port where the CA listens; default 9000
                           (PHX_SERVICE_PORT)

phx-ca-export(8) has more: man phx-ca-export.
`

func main() {
	flags := append(pve.Flags(),
		&cli.IntFlag{Name: "ctid"},
		&cli.StringFlag{Name: "accept-new-root", EnvVars: []string{"PHX_ACCEPT_NEW_ROOT"}},
	)
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
	host, err := pve.FromFlags(c)
	if err != nil {
		return nil, err
	}
	e := &exporter{
		host:   host,
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
