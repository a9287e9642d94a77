// Command phx-lxc provisions the containers that phx-plan has planned.
//
// Its files are in layers: main.go reads the command line and the stream,
// schedule.go lets containers wait for each other, actions.go and stages.go work
// on one, and desired.go and what it uses compute, without reading or changing
// anything, what it should be. How Proxmox VE stores that is for package pve.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

const usage = `Usage:
    phx-plan … | phx-lxc [OPTIONS] | …

Do with every planned container what the plan's action asks for. Only what
differs is changed; a second run changes nothing.

Options:
    --adopt CTIDS          record the scripts of these containers as run, and
                           do not run them, as in 103,950; 1: of all that are
                           planned (PHX_ADOPT)
    --apt-proxy URL        have base_setup get Debian packages by this proxy,
                           http://HOST:PORT (PHX_APT_PROXY)
    --attach auto|direct|pct
                           go into containers by lxc-attach, without pct, or by
                           pct exec; default auto: without, where pct is that of
                           Proxmox VE (PHX_ATTACH)
    --download             download templates that are missing (PHX_DOWNLOAD)
    --dry-run              only say what would be done (PHX_DRY_RUN)
    --enforce-firewall     put firewalls in force, also on containers that were
                           there before phx (PHX_ENFORCE_FIREWALL)
    --ignore-external      do not look whether guests run that containers need
                           and phx does not manage (PHX_IGNORE_EXTERNAL)
    --jobs N               work on N containers at once; default 4 (PHX_JOBS)
    --lock-wait DURATION   wait that long for a container that Proxmox VE has
                           locked; default 1m (PHX_LOCK_WAIT)
    --rerun CTIDS          run the scripts of these containers again, as in
                           103,950; 1: of all that are planned (PHX_RERUN)
    --restart              restart containers where a change needs it
                           (PHX_RESTART)
    --scripts DIRS         find the scripts in these directories, separated
                           by colons (PHX_SCRIPTS); default /usr/share/phx, and
                           scripts and bin in /usr/local/phoenix_hypervisor
    --timeout DURATION     give up on a command after this time; default 1h
                           (PHX_TIMEOUT)
    --help                 print this text
    --version              print the version

Options for where things are on the host:
    --apparmor DIR         AppArmor profiles of the configuration; default
                           apparmor, in /usr/local/phoenix_hypervisor/etc or
                           /etc/phx (PHX_APPARMOR)
    --apparmor-d DIR       AppArmor profiles of the host; default
                           /etc/apparmor.d (PHX_APPARMOR_D)
    --lxc-path DIR         LXC's containers; default /var/lib/lxc (PHX_LXC_PATH)
    --pct PROGRAM          run this in place of pct (PHX_PCT)
    --pct-version VERSION  version of pve-container; default the installed one
                           (PHX_PCT_VERSION)
    --proc DIR             processes; default /proc (PHX_PROC)
    --pve-lock DIR         locks of containers; default /run/lock/lxc
                           (PHX_PVE_LOCK)
    --pve-root DIR         Proxmox VE's files; default /etc/pve (PHX_PVE_ROOT)
    --pveam PROGRAM        run this in place of pveam (PHX_PVEAM)
    --pvesm PROGRAM        run this in place of pvesm (PHX_PVESM)
    --qm PROGRAM           run this in place of qm (PHX_QM)
    --subgid FILE          group ids that root may map; default /etc/subgid
                           (PHX_SUBGID)
    --subuid FILE          user ids that root may map; default /etc/subuid
                           (PHX_SUBUID)
    --sysroot DIR          with the action check: where /sys, /etc and
                           /usr/local are; default / (PHX_SYSROOT)

phx-lxc(8) has more: man phx-lxc.
`

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-lxc",
		CustomAppHelpTemplate: usage,
		Flags: append(pve.Flags(), []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", EnvVars: []string{"PHX_DRY_RUN"}},
			&cli.BoolFlag{Name: "download", EnvVars: []string{"PHX_DOWNLOAD"}},
			&cli.BoolFlag{Name: "enforce-firewall", EnvVars: []string{"PHX_ENFORCE_FIREWALL"}},
			&cli.BoolFlag{Name: "restart", EnvVars: []string{"PHX_RESTART"}},
			&cli.BoolFlag{Name: "ignore-external", EnvVars: []string{"PHX_IGNORE_EXTERNAL"}},
			&cli.IntFlag{Name: "jobs", Value: 4, EnvVars: []string{"PHX_JOBS"}},
			&cli.GenericFlag{Name: "scripts", Value: &scripts.Flag{}, EnvVars: []string{"PHX_SCRIPTS"}},
			&cli.StringFlag{Name: "adopt", EnvVars: []string{"PHX_ADOPT"}},
			&cli.StringFlag{Name: "rerun", EnvVars: []string{"PHX_RERUN"}},
			&cli.StringFlag{Name: "apt-proxy", EnvVars: []string{"PHX_APT_PROXY"}},
			&cli.StringFlag{Name: "apparmor", Value: cmdline.DefaultAppArmor(), EnvVars: []string{"PHX_APPARMOR"}},
			&cli.StringFlag{Name: "apparmor-d", Value: "/etc/apparmor.d", EnvVars: []string{"PHX_APPARMOR_D"}},
			&cli.StringFlag{Name: "pveam", Value: "pveam", EnvVars: []string{"PHX_PVEAM"}},
			&cli.StringFlag{Name: "pvesm", Value: "pvesm", EnvVars: []string{"PHX_PVESM"}},
			&cli.StringFlag{Name: "qm", Value: "qm", EnvVars: []string{"PHX_QM"}},
			&cli.StringFlag{Name: "pve-lock", Value: "/run/lock/lxc", EnvVars: []string{"PHX_PVE_LOCK"}},
			&cli.StringFlag{Name: "subuid", Value: "/etc/subuid", EnvVars: []string{"PHX_SUBUID"}},
			&cli.StringFlag{Name: "subgid", Value: "/etc/subgid", EnvVars: []string{"PHX_SUBGID"}},
			&cli.StringFlag{Name: "sysroot", Value: "/", EnvVars: []string{"PHX_SYSROOT"}},
			&cli.StringFlag{Name: "pct-version", EnvVars: []string{"PHX_PCT_VERSION"}},
			&cli.DurationFlag{Name: "lock-wait", Value: time.Minute, EnvVars: []string{"PHX_LOCK_WAIT"}},
		}...),
		Action: provision,
	})
}

func provision(c *cli.Context) error {
	filter, err := cmdline.Filter(c)
	switch {
	case err != nil:
		return err
	case !filter:
		return cmdline.Usagef("unexpected argument %q: containers are named to phx-plan", c.Args().First())
	case c.Int("jobs") < 1:
		return cmdline.Usagef("--jobs %d: must be at least 1", c.Int("jobs"))
	}
	host, err := pve.FromFlags(c)
	if err != nil {
		return err
	}
	adopt, err := named(c, "adopt")
	if err != nil {
		return err
	}
	rerun, err := named(c, "rerun")
	if err != nil {
		return err
	}
	aptProxy, err := cmdline.AptProxy(c)
	if err != nil {
		return err
	}
	p := &provisioner{
		options: options{
			host:           *host,
			qm:             c.String("qm"),
			scripts:        scripts.FromFlag(c),
			adopt:          adopt,
			rerun:          rerun,
			aptProxy:       aptProxy,
			profiles:       c.String("apparmor"),
			profileDir:     c.String("apparmor-d"),
			subUID:         c.String("subuid"),
			subGID:         c.String("subgid"),
			sysroot:        c.String("sysroot"),
			pctVersion:     cmp.Or(c.String("pct-version"), pve.ContainerVersion()),
			lockWait:       c.Duration("lock-wait"),
			dryRun:         c.Bool("dry-run"),
			restart:        c.Bool("restart"),
			enforce:        c.Bool("enforce-firewall"),
			download:       c.Bool("download"),
			ignoreExternal: c.Bool("ignore-external"),
		},
		jobs: make(chan struct{}, c.Int("jobs")),
	}
	p.stream = event.NewStream(os.Stdin, os.Stdout, p.fail)
	return p.filter(c.Context)
}

// named returns the containers that an option names.
func named(c *cli.Context, option string) (containers, error) {
	value := c.String(option)
	if value == "" || value == "1" {
		return containers{all: value == "1"}, nil
	}
	var named containers
	for word := range strings.SplitSeq(value, ",") {
		id, err := config.ParseCTID(word)
		if err != nil {
			return named, cmdline.Usagef("--%s %s: %v; 1 stands for all", option, value, err)
		}
		named.ids = append(named.ids, id)
	}
	return named, nil
}

// filter does what the plans of the stream ask for, to its end.
func (p *provisioner) filter(ctx context.Context) error {
	assets, stop := newFetcher(ctx, p.options)
	defer stop()
	p.assets = assets
	r := p.newRound(ctx, nil)
	for {
		ev, err := p.stream.Next(ctx, event.NamePlanStarted, event.NameContainerPlanned)
		if err != nil {
			r.halt()
			p.work.Wait()
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		switch body := ev.Body.(type) {
		case event.PlanStarted:
			r.halt()
			r = p.newRound(ctx, &body)
			if err := body.Check(); err != nil {
				p.fail(fmt.Errorf("event stream: line %d: %s: %w", ev.Line, ev.Name, err))
				r.halt()
			}
		case event.ContainerPlanned:
			if err := r.take(body); err != nil {
				p.fail(fmt.Errorf("event stream: line %d: %w", ev.Line, err))
			}
		default: // plan.done
			close(r.planned)
			p.work.Wait()
			r.check()
			if err := p.stream.Forward(ev); err != nil {
				return err
			}
			r = p.newRound(ctx, nil)
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
