// Command phx-plan validates the configuration and plans its containers: which
// of them an action is about, and in which order.
//
// It reads the configuration, and of the host only what tells which directories
// no container may own, and what its version of pct knows. It runs nothing, and
// does not know what containers there are.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode"

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
    phx-plan --explain [OPTIONS] [CTID…]
    phx-plan --schema
    phx-plan --watch [--every DURATION] [OPTIONS] [CTID…]

Check the configuration, and print a plan: the named containers, or all, in the
order in which they depend on each other.

Options:
    --action ACTION        do this with the containers; default create
                           (PHX_ACTION)
    --answer gateway|proxy with --format hosts or dnsmasq: where the names of
                           services lead; default gateway (PHX_ANSWER)
    --ca-file FILE         with --watch: a plan is due when this changes;
                           default phoenix_ca.crt in
                           /usr/local/phoenix_hypervisor/persistent-storage/ssl
                           (PHX_CA_FILE)
    --config FILE          read this configuration (PHX_CONFIG); default
                           phoenix_lxc_configs.json, in
                           /usr/local/phoenix_hypervisor/etc or /etc/phx
    --domain DOMAIN        domain of the services' names; default
                           ` + cmdline.DefaultDomain + ` (PHX_DOMAIN)
    --dry-run              plan a run that only shows what it would do
                           (PHX_DRY_RUN)
    --every DURATION       with --watch: a plan is due this long after a run;
                           default 1h (PHX_EVERY)
    --explain              print what phx does with each key of the file
    --format FORMAT        print the plan in this format; default jsonl, the
                           events (PHX_FORMAT)
    --keep-going           leave out containers with mistakes, and what needs
                           them (PHX_KEEP_GOING)
    --pct-version VERSION  plan for this version of pve-container; default the
                           one of this host (PHX_PCT_VERSION)
    --pve-root DIR         Proxmox VE's files; default /etc/pve (PHX_PVE_ROOT)
    --schema               print the JSON Schema of the configuration
    --scripts DIRS         find the scripts in these directories, separated
                           by colons (PHX_SCRIPTS); default /usr/share/phx, and
                           scripts and bin in /usr/local/phoenix_hypervisor
    --vm-config FILE       read the virtual machines there; default
                           phoenix_vm_configs.json beside the configuration
                           (PHX_VM_CONFIG)
    --watch                stay, and print an event whenever a plan is due
    --help                 print this text
    --version              print the version

Actions:
    create                 make the containers as configured; default
    start, restart         start or restart them, and what they need first
    stop                   stop them, those that need others first
    status                 tell how they are, and what a run would change
    check                  look for all that could keep a run from succeeding
    delete                 destroy the named containers
    recreate               destroy and create the named containers

phx-plan(8) has more: man phx-plan.
`

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-plan",
		CustomAppHelpTemplate: usage,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "action", Value: "create", EnvVars: []string{"PHX_ACTION"}},
			&cli.StringFlag{Name: "config", Value: cmdline.DefaultConfig(), EnvVars: []string{"PHX_CONFIG"}},
			&cli.StringFlag{Name: "domain", Value: cmdline.DefaultDomain, EnvVars: []string{"PHX_DOMAIN"}},
			&cli.BoolFlag{Name: "dry-run", EnvVars: []string{"PHX_DRY_RUN"}},
			&cli.BoolFlag{Name: "explain"},
			&cli.BoolFlag{Name: "keep-going", EnvVars: []string{"PHX_KEEP_GOING"}},
			&cli.StringFlag{Name: "pct-version", EnvVars: []string{"PHX_PCT_VERSION"}},
			&cli.StringFlag{Name: "pve-root", Value: "/etc/pve", EnvVars: []string{"PHX_PVE_ROOT"}},
			&cli.BoolFlag{Name: "schema"},
			&cli.GenericFlag{Name: "scripts", Value: &scripts.Flag{}, EnvVars: []string{"PHX_SCRIPTS"}},
			&cli.StringFlag{Name: "vm-config", EnvVars: []string{"PHX_VM_CONFIG"}},
			&cli.StringFlag{Name: "format", Value: "jsonl", EnvVars: []string{"PHX_FORMAT"}},
			&cli.StringFlag{Name: "answer", Value: "gateway", EnvVars: []string{"PHX_ANSWER"}},
			&cli.BoolFlag{Name: "watch"},
			&cli.DurationFlag{Name: "every", Value: time.Hour, EnvVars: []string{"PHX_EVERY"}},
			&cli.StringFlag{Name: "ca-file", Value: cmdline.DefaultCAFile, EnvVars: []string{"PHX_CA_FILE"}},
		},
		Action: func(c *cli.Context) error {
			if c.Bool("watch") {
				return watchPlans(c)
			}
			return cmdline.ReadOnly(c.Context, func() error { return run(c) })
		},
	})
}

// A request is what the command line asks for.
type request struct {
	name   string // the action's
	action action
	domain string
	named  []int // containers
}

// read reads the command line as far as it does not depend on any file.
func read(c *cli.Context) (request, error) {
	r := request{name: c.String("action"), domain: strings.ToLower(c.String("domain"))}
	var ok bool
	if r.action, ok = actions[r.name]; !ok {
		return r, cmdline.Usagef("--action %s: there are %s", r.name, list(actions))
	}
	if !config.IsHostName(r.domain) {
		return r, cmdline.Usagef("--domain %q: not a domain", r.domain)
	}
	var err error
	if r.named, err = ctids(c.Args().Slice()); err != nil {
		return r, err
	}
	if r.action.named && len(r.named) == 0 {
		return r, cmdline.Usagef("%s needs explicit CTIDs", r.name)
	}
	return r, nil
}

func run(c *cli.Context) error {
	if c.Bool("schema") {
		if _, err := os.Stdout.Write(config.Schema()); err != nil {
			return fmt.Errorf("write the schema: %w", err)
		}
		return nil
	}
	asked, err := read(c)
	if err != nil {
		return err
	}
	write, ok := formats[c.String("format")]
	if !ok {
		return cmdline.Usagef("--format %s: there are %s", c.String("format"), list(formats))
	}
	domain, named := asked.domain, asked.named
	path := c.String("config")
	vmPath, vmNamed := config.VMPath(path, c.String("vm-config"))
	on, err := hostOf(c, vmPath)
	if err != nil {
		return err
	}
	warned := &warnings{}
	if before, at := config.FormerDomain(path); !c.IsSet("domain") && before != "" && before != domain {
		warned.say(at, fmt.Sprintf("domain_name: is %s, and phx uses %s: --domain or PHX_DOMAIN says otherwise",
			before, domain))
	}
	if c.Bool("explain") {
		return explain(path, vmPath, domain, on, named)
	}
	answer := c.String("answer")
	if answer != "gateway" && answer != "proxy" {
		return cmdline.Usagef("--answer %s: there are gateway, proxy", answer)
	}
	file, wrong, err := warned.load(path, vmPath, vmNamed, domain, on)
	if err != nil {
		return err
	}
	keepGoing := c.Bool("keep-going")
	p := &plan{
		file: file, answer: answer, name: asked.name, action: asked.action, dryRun: c.Bool("dry-run"), warned: *warned,
	}
	switch {
	case wrong == nil || keepGoing && file != nil || len(named) > 0 && file != nil:
	case file == nil || p.make(nil) != nil:
		return refuse(wrong, nil, 0)
	default:
		return refuse(wrong, nil, len(p.order))
	}
	p.whole = file.Plan(domain)
	if err := p.whole.Check(); err != nil {
		return cmdline.Usagef("--domain %s: %v", domain, err)
	}
	if err := p.make(named); err != nil {
		return cmdline.Usagef("%v", err)
	}
	if wrong != nil && (len(p.left) > 0 && !keepGoing || len(p.order) == 0) {
		return refuse(wrong, p.left, 0)
	}
	keepGoing = keepGoing && (len(named) == 0 || len(p.left) > 0)
	p.sayLeftOut(wrong, keepGoing)
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	if err := write(p, out); err != nil {
		return cmdline.Usagef("%v", err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	if wrong != nil && keepGoing {
		return cmdline.Status(1)
	}
	return nil
}

// hostOf returns the host that the plan is for, on which the file of the virtual
// machines is at vmPath.
func hostOf(c *cli.Context, vmPath string) (*config.Host, error) {
	version := c.String("pct-version")
	switch {
	case version == "":
		version = pve.ContainerVersion()
	case !config.IsVersion(version):
		return nil, cmdline.Usagef("--pct-version %q: not a version such as 6.1.10", version)
	}
	host := &pve.Host{PVERoot: c.String("pve-root")}
	guarded := hostdir.GuardedPlaces(c.String("config"), host.PVERoot, scripts.FromFlag(c), host.Storages())
	if absolute, err := filepath.Abs(vmPath); err == nil {
		guarded = append(guarded, hostdir.Guarded{Path: absolute, What: "the file of the virtual machines"})
	}
	return &config.Host{Guarded: guarded, PCT: version}, nil
}

// ctids reads the container ids on the command line.
func ctids(args []string) ([]int, error) {
	var ids []int
	for _, arg := range args {
		id, err := config.ParseCTID(arg)
		switch {
		case err != nil && strings.HasPrefix(arg, "-"):
			return nil, cmdline.Usagef("%s: options go before the container ids", arg)
		case err != nil && isWord(arg):
			return nil, cmdline.Usagef("%v; an action is given with --action, and to phoenix first: %s",
				err, list(actions))
		case err != nil:
			return nil, cmdline.Usagef("%v", err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// isWord reports whether s begins with a letter.
func isWord(s string) bool { return s != "" && unicode.IsLetter(rune(s[0])) }

// load reads the configuration, and the file of the virtual machines if it is there
// or named, and writes the warnings about both. wrong are those with mistakes; file
// is what is right nevertheless, nil where that cannot be told. The error is for a
// file that cannot be read.
func (w *warnings) load(path, vmPath string, vmNamed bool, domain string, host *config.Host) (
	file *config.File, wrong []*config.Error, err error,
) {
	// The program ends within a second or two, so memory is cheaper than collecting
	// garbage, unless the file is longer than that of ten thousand containers.
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Size() < 8<<20 {
		debug.SetGCPercent(400)
	} else {
		debug.SetGCPercent(40)
	}
	file, err = config.LoadOn(path, host)
	if mistakes, ok := errors.AsType[*config.Error](err); ok {
		file, wrong = mistakes.Rest, append(wrong, mistakes)
		w.add(path, mistakes.Warnings, mistakes.MoreWarnings)
	} else if err != nil {
		return nil, nil, cmdline.Usagef("%v", err)
	} else {
		w.add(path, file.Warnings, file.More)
	}
	vms, err := config.LoadVMs(file, vmPath, domain)
	if mistakes, ok := errors.AsType[*config.Error](err); ok {
		wrong = append(wrong, mistakes)
		w.add(vmPath, mistakes.Warnings, mistakes.MoreWarnings)
	} else if err == nil {
		w.add(vmPath, vms.Warnings, vms.More)
	} else if vmNamed || !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, cmdline.Usagef("%v", err)
	}
	return file, wrong, nil
}

// warnings are what people have been warned of, for the events to say it, too.
type warnings []string

// say warns people of something at a place in a file.
func (w *warnings) say(at, text string) {
	cmdline.Say(at + ": warning: " + text)
	*w = append(*w, at+": "+text)
}

// add warns people of what is in a file, and of how many more there are.
func (w *warnings) add(path string, all []config.Mistake, more int) {
	for _, m := range all {
		w.say(fmt.Sprintf("%s:%d:%d", path, m.Line, m.Col), fmt.Sprintf("%s: %s", m.Path, m.Msg))
	}
	if more > 0 {
		w.say(path, fmt.Sprintf("and %d more", more))
	}
}

// list names the keys of m.
func list[V any](m map[string]V) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}
