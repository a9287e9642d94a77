// Command phx-plan validates the configuration and plans its containers: which
// of them an action is about, and in which order.
//
// It reads the configuration, and of the host only what tells which directories
// no container may own, and what its version of pct knows. It runs nothing, and
// does not know what containers there are.
package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/hostdir"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

const usage = `Usage:
    phx-plan [OPTIONS] [CTID…] | phx-lxc | …
    phx-plan --format table|mermaid|dot|hosts|dnsmasq [OPTIONS] [CTID…]

Validate the configuration and print a plan: the named containers, or all, in
the order in which they depend on each other. Every mistake in the file is
reported at once as FILE:LINE:COLUMN, and with any mistake nothing is planned.
Of many mistakes the first 100 are shown. The file may have up to 64 MiB, and
be a pipe.

Options:
    --action ACTION       What to do with the containers. Default create. (PHX_ACTION)
    --config FILE         The configuration. Default
                          ` + cmdline.DefaultConfig + `. (PHX_CONFIG)
    --domain DOMAIN       Domain of the services' names.
                          Default ` + cmdline.DefaultDomain + `. (PHX_DOMAIN)
    --dry-run             Ask phx-lxc to show what it would do, and to do nothing.
                          Its exit status is 3 when there is something to do.
                          (PHX_DRY_RUN=1)
    --pct-version VERSION The version of pct that the plan is for, that of the
                          package pve-container: what it does not know is a
                          mistake. Default: that of this host. (PHX_PCT_VERSION)
    --pve-root DIR        Proxmox VE's configuration. Default /etc/pve. (PHX_PVE_ROOT)
    --scripts DIRS        Directories of the scripts: see phx-lxc. (PHX_SCRIPTS)
                          Neither they nor what Proxmox VE keeps, its storages
                          included, may be given to a container's user.
    --vm-config FILE      The virtual machines, of which phx reads names and
                          services. Default: phoenix_vm_configs.json beside the
                          configuration, if it is there. (PHX_VM_CONFIG)
    --format FORMAT       jsonl (events, the default); for people: table,
                          mermaid, dot; for name servers: hosts, dnsmasq.
                          (PHX_FORMAT)
    --answer gateway|proxy
                          Where hosts and dnsmasq lead the services' names.
                          Default gateway. (PHX_ANSWER)
    --help                Print this text.
    --version             Print the version.

Actions:
    create    the named containers, their clone sources and all dependencies,
              and with the gateway or the proxy the CA, whose root both trust
    start     the named containers and all dependencies
    restart   the named containers; all that they depend on is planned before
              them, with the action start
    stop      the named containers only, dependents first
    status    the named containers only
    delete    the named containers only, clones and dependents first; needs
              CTIDs, and refuses a container that another one in the file is
              cloned from or depends on, unless that is named too
    recreate  the named containers are destroyed and created, and nothing that
              depends on them is touched; what they need is brought up to date
              as by create, and with the CA the gateway and the proxy, which
              trust it; needs CTIDs

A container comes after its clone source and its dependencies, otherwise in
the order of boot_order (those without one last), then of CTID. A dependency
that is not in the file is external: it is carried along.

The formats hosts and dnsmasq are lines for /etc/hosts and host-record options of
dnsmasq: the planned containers by their names, with their own addresses, and
every service by its host name, with those of the gateway.

Events written: plan.started, ct.planned, plan.done.

Exit status: 0 planned, 2 wrong usage or mistakes in the configuration.

Example:
    phx-plan --config phoenix_lxc_configs.json --format table 102
    phx-plan --dry-run | phx-lxc
`

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-plan",
		CustomAppHelpTemplate: usage,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "action", Value: "create", EnvVars: []string{"PHX_ACTION"}},
			&cli.StringFlag{Name: "config", Value: cmdline.DefaultConfig, EnvVars: []string{"PHX_CONFIG"}},
			&cli.StringFlag{Name: "domain", Value: cmdline.DefaultDomain, EnvVars: []string{"PHX_DOMAIN"}},
			&cli.BoolFlag{Name: "dry-run", EnvVars: []string{"PHX_DRY_RUN"}},
			&cli.StringFlag{Name: "pct-version", EnvVars: []string{"PHX_PCT_VERSION"}},
			&cli.StringFlag{Name: "pve-root", Value: "/etc/pve", EnvVars: []string{"PHX_PVE_ROOT"}},
			&cli.GenericFlag{Name: "scripts", Value: &scripts.Flag{}, EnvVars: []string{"PHX_SCRIPTS"}},
			&cli.StringFlag{Name: "vm-config", EnvVars: []string{"PHX_VM_CONFIG"}},
			&cli.StringFlag{Name: "format", Value: "jsonl", EnvVars: []string{"PHX_FORMAT"}},
			&cli.StringFlag{Name: "answer", Value: "gateway", EnvVars: []string{"PHX_ANSWER"}},
		},
		Action: func(c *cli.Context) error {
			return cmdline.ReadOnly(c.Context, func() error { return run(c) })
		},
	})
}

func run(c *cli.Context) error {
	name := c.String("action")
	act, ok := actions[name]
	if !ok {
		return cmdline.Usagef("--action %s: there are %s", name, list(actions))
	}
	write, ok := formats[c.String("format")]
	if !ok {
		return cmdline.Usagef("--format %s: there are %s", c.String("format"), list(formats))
	}
	domain := strings.ToLower(c.String("domain"))
	if !config.IsHostName(domain) {
		return cmdline.Usagef("--domain %q: not a domain", domain)
	}
	named, err := ctids(c.Args().Slice())
	if err != nil {
		return err
	}
	if act.named && len(named) == 0 {
		return cmdline.Usagef("%s needs explicit CTIDs", name)
	}

	path, pveRoot := c.String("config"), c.String("pve-root")
	host := &pve.Host{PVERoot: pveRoot}
	version := c.String("pct-version")
	switch {
	case version == "":
		version = pve.ContainerVersion()
	case !config.IsVersion(version):
		return cmdline.Usagef("--pct-version %q: not a version such as 6.1.10", version)
	}
	guarded := hostdir.GuardedPlaces(path, pveRoot, scripts.FromFlag(c), host.Storages())
	vmPath, isNamed := config.VMPath(path, c.String("vm-config"))
	if absolute, err := filepath.Abs(vmPath); err == nil {
		guarded = append(guarded, hostdir.Guarded{Path: absolute, What: "the file of the virtual machines"})
	}
	file, err := load(path, &config.Host{Guarded: guarded, PCT: version})
	// Mistakes of both files are shown at once.
	if err := cmp.Or(err, loadVMs(file, vmPath, isNamed, domain)); err != nil {
		return err
	}
	answer := c.String("answer")
	if answer != "gateway" && answer != "proxy" {
		return cmdline.Usagef("--answer %s: there are gateway, proxy", answer)
	}
	whole := file.Plan(domain)
	if err := whole.Check(); err != nil {
		return cmdline.Usagef("--domain %s: %v", domain, err)
	}
	p := &plan{file: file, answer: answer, domain: domain, name: name, action: act, dryRun: c.Bool("dry-run")}
	if err := p.make(named); err != nil {
		return cmdline.Usagef("%v", err)
	}
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	if err := write(p, out); err != nil {
		return cmdline.Usagef("%v", err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	return nil
}

// ctids reads the container ids on the command line.
func ctids(args []string) ([]int, error) {
	var ids []int
	for _, arg := range args {
		id, err := config.ParseCTID(arg)
		switch {
		case err != nil && strings.HasPrefix(arg, "-"):
			return nil, cmdline.Usagef("%s: options go before the container ids", arg)
		case err != nil:
			return nil, cmdline.Usagef("%v", err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// load reads the configuration and reports all that is wrong with it.
func load(path string, host *config.Host) (*config.File, error) {
	// The program ends within a second or two, so memory is cheaper than collecting
	// garbage, unless the file is longer than that of ten thousand containers.
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Size() < 8<<20 {
		debug.SetGCPercent(400)
	} else {
		debug.SetGCPercent(40)
	}
	file, err := config.LoadOn(path, host)
	if err != nil {
		return nil, refused(path, err)
	}
	warn(path, file.Warnings, file.More)
	return file, nil
}

// loadVMs reads the file of the virtual machines, if it is there or named, into
// file, which is nil when that could not be read, and reports all that is wrong with
// it.
func loadVMs(file *config.File, path string, named bool, domain string) error {
	vms, err := config.LoadVMs(file, path, domain)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
		return nil
	case err != nil:
		return refused(path, err)
	}
	warn(path, vms.Warnings, vms.More)
	return nil
}

// refused reports the mistakes in a file, and returns the error that ends the
// program.
func refused(path string, err error) error {
	var wrong *config.Error
	if !errors.As(err, &wrong) {
		return cmdline.Usagef("%v", err)
	}
	warn(path, wrong.Warnings, wrong.MoreWarnings)
	cmdline.Say(wrong.Error())
	mistakes := "1 mistake"
	if n := len(wrong.Mistakes) + wrong.More; n > 1 {
		mistakes = fmt.Sprintf("%d mistakes", n)
	}
	cmdline.Logf("%s: %s, so nothing was planned", path, mistakes)
	return cmdline.Status(2)
}

// warn writes the warnings about a file, and how many more there are.
func warn(path string, warnings []config.Mistake, more int) {
	for _, w := range warnings {
		cmdline.Say(fmt.Sprintf("%s:%d:%d: warning: %s: %s", path, w.Line, w.Col, w.Path, w.Msg))
	}
	if more > 0 {
		cmdline.Say(fmt.Sprintf("%s: warning: and %d more", path, more))
	}
}

// list names the keys of m.
func list[V any](m map[string]V) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}
