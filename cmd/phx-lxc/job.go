package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// job is the work on one container.
type job struct {
	*round
	self     *node
	ctid     int
	c        *config.Container
	external []int     // guests outside of the file that it depends on
	host     *pve.Host // in a dry run: one that only previews

	warnings []string // of Proxmox's commands, each once

	stage   string    // what is being done, for errors
	conf    *pve.Conf // as last read; in a dry run as it would be; nil: no such container
	running bool
	created bool // by this run
	alone   bool // nobody else's command is at work on it any more
	started bool // or restarted, by this run
	changes []string

	due           []script   // the scripts that have to run
	record        pve.Record // what phx has applied, as far as its record counts
	written       pve.Record // the record as it was before this run
	profileHash   string     // of the container's own AppArmor profile
	mark          string     // the scripts that have been applied, by the configuration file
	noted         bool       // the record has been changed
	firewallWaits bool       // the configured firewall is not put in force: see judgeFirewall
	notInForce    bool       // for that reason, or because the datacenter's firewall is off

	preview event.ContainerPreview
	texts   map[string]previewText // by path: the files that a dry run would change
}

// do carries an action out, says how it went, and reports whether the container
// is as others need it.
func (j *job) do(act action) bool {
	start := time.Now()
	host := *j.round.provisioner.host
	j.host = &host
	host.Warn = func(line string) {
		if !slices.Contains(j.warnings, line) {
			j.warnings = append(j.warnings, line)
			j.logf("%s", line)
		}
	}
	if j.dryRun {
		host.Preview = func(c pve.Command) { j.preview.Commands = append(j.preview.Commands, c.Argv) }
		j.preview = event.ContainerPreview{CTID: j.ctid, Name: j.c.Name, Commands: [][]string{}, Files: []event.FileChange{}}
	}
	err := j.look()
	if err == nil {
		err = act.run(j, j.ctx)
	}
	j.self.conf = j.conf
	switch {
	case err != nil:
		j.fail(fmt.Errorf("%d %s: %s: %w", j.ctid, j.c.Name, j.stage, err))
		j.emit(event.ContainerFailed{CTID: j.ctid, Name: j.c.Name, Stage: j.stage, Error: err.Error()})
		return false
	case j.dryRun && act.changes:
		j.emitPreview()
		return true
	case !act.changes:
	case len(j.changes) == 0:
		j.logf("unchanged")
	default:
		j.logf("%s (%s)", act.done, cmdline.Elapsed(start))
	}
	j.emit(act.success(j, time.Since(start)))
	return true
}

func (j *job) emitPreview() {
	j.preview.Changed = len(j.preview.Commands)+len(j.preview.Files) > 0
	if j.preview.Changed {
		j.provisioner.mu.Lock()
		j.toDo = true
		j.provisioner.mu.Unlock()
	} else {
		j.logf("nothing to do")
	}
	for _, f := range j.preview.Files {
		j.logf("would change %s\n%s", f.Path, f.Diff)
	}
	for _, argv := range j.preview.Commands {
		j.logf("would run: %s", pve.Quote(argv))
	}
	j.emit(j.preview)
}

// look finds out whether the container exists, and whether it runs.
func (j *job) look() error {
	j.stage = "define"
	states, err := j.states()
	if err != nil {
		return err
	}
	j.running = states[j.ctid] == "running"
	conf, err := j.host.ReadConf(j.ctid)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return j.elsewhere()
	case err != nil:
		return err
	}
	return j.take(conf)
}

// take makes conf the container's configuration, and reads its record.
func (j *job) take(conf *pve.Conf) error {
	j.conf = conf
	j.mark = conf.Mark(pve.AppliedMark)
	records, err := j.records()
	if err != nil {
		return err
	}
	if j.record, err = records.ReadConf(j.ctid, conf); err != nil {
		j.logf("%v", err)
	}
	j.written = maps.Clone(j.record)
	return nil
}

// elsewhere returns an error when the container is on another node of the
// cluster, as it can only be worked on there, and when it is none.
func (j *job) elsewhere() error {
	for _, place := range []string{"nodes/*/lxc", "nodes/*/qemu-server", "qemu-server"} {
		paths, err := filepath.Glob(filepath.Join(j.host.PVERoot, place, j.id()+".conf"))
		if err != nil {
			return err
		}
		if len(paths) == 0 {
			continue
		}
		if filepath.Base(place) == "qemu-server" {
			return fmt.Errorf("%d is a virtual machine (%s), and phx manages containers: give the container another CTID in the configuration", j.ctid, paths[0])
		}
		node := filepath.Base(filepath.Dir(filepath.Dir(paths[0])))
		return fmt.Errorf("the container is on the node %s: run phx there, or bring it here with: ssh %s pct migrate %d %s --restart 1", node, node, j.ctid, hostname())
	}
	return nil
}

// hostname is this host's name as a node of the cluster.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "THIS-NODE"
	}
	name, _, _ = strings.Cut(name, ".")
	return name
}

func (j *job) logf(format string, args ...any) {
	cmdline.Logf("%d %s: %s", j.ctid, j.c.Name, fmt.Sprintf(format, args...))
}

// changed reports something that this run has changed.
func (j *job) changed(since time.Time, format string, args ...any) {
	change := fmt.Sprintf(format, args...)
	j.changes = append(j.changes, change)
	if !j.dryRun {
		j.logf("%s (%s)", change, cmdline.Elapsed(since))
	}
}

// pct runs a command of pct that changes the container, once nobody else is
// at work on it.
func (j *job) pct(ctx context.Context, args ...string) error {
	if err := j.awaitUnlocked(ctx); err != nil {
		return err
	}
	_, err := j.host.Pct(ctx, args...)
	return err
}

// reread reads the configuration that Proxmox has stored. In a dry run there
// is none: expect says what it would be.
func (j *job) reread(expect func(*pve.Conf)) error {
	if j.dryRun {
		expect(j.conf)
		return nil
	}
	conf, err := j.host.ReadConf(j.ctid)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the container is gone: it has been destroyed or moved meanwhile: %w", err)
	case err != nil:
		return err
	}
	j.conf = conf
	return nil
}

// id is the CTID as an argument.
func (j *job) id() string { return strconv.Itoa(j.ctid) }

// askState asks pct whether the container runs.
func (j *job) askState(ctx context.Context) error {
	out, err := j.host.Run(ctx, pve.Command{Argv: []string{j.host.PCT, "status", j.id()}, Reads: true})
	if err == nil {
		j.running = strings.TrimSpace(string(out)) == "status: running"
	}
	return err
}

// hasState reports, after a command has failed, whether the container is in the
// state that it was to reach: others may have brought it there.
func (j *job) hasState(ctx context.Context, running bool) bool {
	return j.askState(ctx) == nil && j.running == running
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
