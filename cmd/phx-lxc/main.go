// Command phx-lxc provisions the containers that phx-plan has planned.
//
// Its files are in layers: main.go reads the command line and the stream,
// schedule.go lets containers wait for each other, actions.go and stages.go work
// on one, and desired.go and what it uses compute, without reading or changing
// anything, what it should be. How Proxmox VE stores that is for package pve.
package main

import (
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

Do with every planned container what the plan's action asks for. create brings
it into the state of the configuration: created or cloned, configured, started,
its features installed, its application script run, its health checked, its
snapshots taken. Only what differs is changed; a second run changes nothing.
start, stop, restart, delete and status do what they say. recreate destroys and
creates, once all that are recreated have been looked at.

Options:
    --dry-run             Execute nothing but reads; say what would be run and
                          how files would change. Exit status 3 when there is
                          something to do. (PHX_DRY_RUN)
    --download            Download a template that is missing with pveam, which
                          verifies it. (PHX_DOWNLOAD)
    --enforce-firewall    Put the firewall of the configuration in force also on a
                          container that was there before and has none in force.
                          Without it such a firewall stays as it is, and ct.ready
                          has firewall_not_in_force. (PHX_ENFORCE_FIREWALL)
    --restart             Restart a running container where a change needs it.
                          Without it, restart_required names what waits.
                          (PHX_RESTART)
    --ignore-external     Do not check that needed guests outside of the
                          configuration run. (PHX_IGNORE_EXTERNAL)
    --jobs N              Work on at most N containers at once. Default 4. (PHX_JOBS)
    --scripts DIRS        Directories of the scripts, separated by colons; can be
                          given several times. Features and application scripts
                          are looked for in each and in its lxc_setup/, health
                          checks in its health_checks/ and in it. The first one
                          that has a script counts; but a script of before never
                          takes the place of one that phx ships. (PHX_SCRIPTS)
                          Default /usr/share/phx and, below
                          /usr/local/phoenix_hypervisor, scripts and bin.
    --adopt CTIDS         Record the scripts of these containers without running
                          them, as on containers that phx has never worked on; 1
                          stands for all. Not those of containers that this run
                          makes, nor phx's own. (PHX_ADOPT)
    --rerun CTIDS         Run the scripts of these containers (103,950), also those
                          that have run; 1 stands for all that are planned.
                          (PHX_RERUN)
    --apparmor DIR        Directory of AppArmor profiles. (PHX_APPARMOR) Default
                          ` + cmdline.LocalAppArmor + `,
                          or without it ` + cmdline.PackagedAppArmor + `.
    --apparmor-d DIR      Where the host loads profiles from.
                          Default /etc/apparmor.d. (PHX_APPARMOR_D)
    --pct PROGRAM         The pct to run. Default pct. (PHX_PCT)
    --pveam PROGRAM       The pveam to run. Default pveam. (PHX_PVEAM)
    --qm PROGRAM          The qm to run. Default qm. (PHX_QM)
    --pve-root DIR        Proxmox VE's configuration. Default /etc/pve. (PHX_PVE_ROOT)
    --pve-lock DIR        Proxmox VE's locks. Default /run/lock/lxc. (PHX_PVE_LOCK)
    --subuid FILE         The users of the host that root may map into containers.
                          Default /etc/subuid. (PHX_SUBUID)
    --subgid FILE         The groups. Default /etc/subgid. (PHX_SUBGID)
    --proc DIR            The processes of the host. Default /proc. (PHX_PROC)
    --lock-wait DURATION  How long to wait for a container that has to be changed
                          or cloned and that Proxmox has locked, as for a backup.
                          Default 1m. (PHX_LOCK_WAIT)
    --timeout DURATION    How long a command may take, such as a clone; what has a
                          shorter limit keeps it. Default 1h. (PHX_TIMEOUT)
    --help                Print this text.
    --version             Print the version.

Environment:
    PHX_ASSETS     Directory of programs that feature scripts install; when its
                   SHA256SUMS changes, they run again.
    PHOENIX_DEBUG  true for scripts of before that are to say more.

Events read: plan.started, ct.planned, plan.done.
Events written: ct.stage, ct.ready, ct.started, ct.stopped, ct.removed,
ct.status, ct.preview, ct.failed, ct.skipped, warning.

A container waits for all that it needs; if one of these fails it is skipped,
and the others go on. Nothing is destroyed to reach a state: what only a new
container could have is refused, with the reason.

Exit status: 0 all well, 1 something failed, 2 wrong usage, 3 with --dry-run
something to do.

Example:
    phx-plan 103 | phx-lxc
`

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-lxc",
		CustomAppHelpTemplate: usage,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", EnvVars: []string{"PHX_DRY_RUN"}},
			&cli.BoolFlag{Name: "download", EnvVars: []string{"PHX_DOWNLOAD"}},
			&cli.BoolFlag{Name: "enforce-firewall", EnvVars: []string{"PHX_ENFORCE_FIREWALL"}},
			&cli.BoolFlag{Name: "restart", EnvVars: []string{"PHX_RESTART"}},
			&cli.BoolFlag{Name: "ignore-external", EnvVars: []string{"PHX_IGNORE_EXTERNAL"}},
			&cli.IntFlag{Name: "jobs", Value: 4, EnvVars: []string{"PHX_JOBS"}},
			&cli.GenericFlag{Name: "scripts", Value: &scripts.Flag{}, EnvVars: []string{"PHX_SCRIPTS"}},
			&cli.StringFlag{Name: "adopt", EnvVars: []string{"PHX_ADOPT"}},
			&cli.StringFlag{Name: "rerun", EnvVars: []string{"PHX_RERUN"}},
			&cli.StringFlag{Name: "apparmor", Value: cmdline.DefaultAppArmor(), EnvVars: []string{"PHX_APPARMOR"}},
			&cli.StringFlag{Name: "apparmor-d", Value: "/etc/apparmor.d", EnvVars: []string{"PHX_APPARMOR_D"}},
			&cli.StringFlag{Name: "pct", Value: "pct", EnvVars: []string{"PHX_PCT"}},
			&cli.StringFlag{Name: "pveam", Value: "pveam", EnvVars: []string{"PHX_PVEAM"}},
			&cli.StringFlag{Name: "qm", Value: "qm", EnvVars: []string{"PHX_QM"}},
			&cli.StringFlag{Name: "pve-root", Value: "/etc/pve", EnvVars: []string{"PHX_PVE_ROOT"}},
			&cli.StringFlag{Name: "pve-lock", Value: "/run/lock/lxc", EnvVars: []string{"PHX_PVE_LOCK"}},
			&cli.StringFlag{Name: "subuid", Value: "/etc/subuid", EnvVars: []string{"PHX_SUBUID"}},
			&cli.StringFlag{Name: "subgid", Value: "/etc/subgid", EnvVars: []string{"PHX_SUBGID"}},
			&cli.StringFlag{Name: "proc", Value: "/proc", EnvVars: []string{"PHX_PROC"}},
			&cli.DurationFlag{Name: "lock-wait", Value: time.Minute, EnvVars: []string{"PHX_LOCK_WAIT"}},
			&cli.DurationFlag{Name: "timeout", Value: pve.DefaultTimeout, EnvVars: []string{"PHX_TIMEOUT"}},
		},
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
	case c.Duration("timeout") <= 0:
		return cmdline.Usagef("--timeout %s: must be more than 0", c.Duration("timeout"))
	}
	adopt, err := named(c, "adopt")
	if err != nil {
		return err
	}
	rerun, err := named(c, "rerun")
	if err != nil {
		return err
	}
	p := &provisioner{
		options: options{
			host: pve.Host{
				PCT: c.String("pct"), PVEAM: c.String("pveam"),
				PVERoot: c.String("pve-root"), PVELock: c.String("pve-lock"), Proc: c.String("proc"),
				Timeout: c.Duration("timeout"),
			},
			qm:             c.String("qm"),
			scripts:        scripts.FromFlag(c),
			adopt:          adopt,
			rerun:          rerun,
			profiles:       c.String("apparmor"),
			profileDir:     c.String("apparmor-d"),
			subUID:         c.String("subuid"),
			subGID:         c.String("subgid"),
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
