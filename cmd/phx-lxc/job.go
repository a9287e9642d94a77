package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

// options are what the command line asks for.
type options struct {
	host                            pve.Host
	qm                              string
	scripts                         scripts.Dirs
	adopt, rerun                    containers // whose scripts are recorded, or run again
	profiles, profileDir            string     // of AppArmor: where they come from, and where they go
	subUID, subGID                  string     // files with the ids of the host that root may map
	sysroot                         string     // see --sysroot
	aptProxy                        string     // for Debian packages in containers; "" for none
	pctVersion                      string     // of pve-container; "" where that is not known
	lockWait                        time.Duration
	dryRun, restart, ignoreExternal bool
	download                        bool // archives of templates that are missing
	enforce                         bool // the firewall, also where none is in force
}

// job is the work on one container.
type job struct {
	c           *config.Container
	external    []int                          // guests outside of the configuration that it depends on
	plan        config.Plan                    // that the container belongs to
	options     options                        // dryRun, too, where the plan asks for it
	source      *cloneSource                   // nil for a container that is not cloned
	states      func() (map[int]string, error) // of all containers, by pct list
	once        func(name string, waits func(), do func() error) error
	guest       func(id int) error // why a guest outside of the configuration is not ready
	records     func() (*pve.Records, error)
	config      func() (*config.Text, error) // the file of the plan
	datacenter  *sync.Once                   // for saying that the datacenter's firewall is off
	emit        func(event.Body)
	fetch       func(*scripts.Script)               // what a feature script needs
	pause       func(wait func())                   // others are worked on while it waits
	turn        func() (wait func())                // until it may be cloned; nil for now
	cloned      func()                              // notes that it is, or is not to be
	await       func() (reason string, because int) // why it may not be started; nil where it may
	host        *pve.Host                           // in a dry run: one with a preview
	ct          *pve.Container
	stage       string        // what is being done, for errors
	doing       string        // what of the stage, where ct.stage is to tell more than that; see begins
	stages      event.Stages  // that ct.stage has told
	created     bool          // by this run
	started     bool          // or restarted, by this run
	changes     []string      // that this run has made
	scripts     []script      // that are configured
	due         []script      // those that have to run
	adopted     []string      // names of those that were recorded in this run without being run
	profileHash string        // of the container's own AppArmor profile
	ownProfiles pve.Hashes    // of AppArmor profiles that phx has written for the one before it
	together    []int         // containers that the plan destroys before it
	replaces    bool          // the container that is there is destroyed first
	complete    bool          // it is a template, and nothing more is to be done
	healthy     bool          // its health checks have succeeded, before what it needs was ready
	waited      time.Duration // for what it needs, which is no work on it
	differs     []string      // of a template: what the configuration wants otherwise

	status *event.ContainerStatus // what the action status has found
	quiet  bool                   // nothing is said of what a run would do

	firewallWaits bool // the configured firewall is not put in force: see decideFirewall
	notInForce    bool // for that reason, or because the datacenter's firewall is off
}

// containers are those that an option names.
type containers struct {
	all bool
	ids []int
}

func (c containers) has(ctid int) bool { return c.all || slices.Contains(c.ids, ctid) }

// cloneSource is a container that others may be cloned from.
type cloneSource struct {
	copying   sync.Mutex        // Proxmox locks a source for the whole copy, and refuses a second clone meanwhile
	container *config.Container // nil until planned
	conf      *pve.Conf         // in a dry run: what it would be
}

// script is a feature or application script that is configured.
type script struct {
	*scripts.Script
	name    string // under which it is recorded and reported
	feature bool   // it runs on the host
	hash    string // of all that it depends on

	// formerHash is what hash was before keys of the configuration counted that a
	// script of before reads; "" where it is the same.
	formerHash string
}

func (j *job) logf(format string, args ...any) {
	if j.quiet {
		return
	}
	cmdline.Logf("%d %s: %s", j.c.CTID, j.c.Name, fmt.Sprintf(format, args...))
}

// warnf warns people of something about the container.
func (j *job) warnf(format string, args ...any) { j.warn(j.c.CTID, j.logf, format, args...) }

// warn warns people of something, by a message and by an event that say the same.
func (j *job) warn(ctid int, logf pve.Logf, format string, args ...any) {
	if j.quiet {
		return
	}
	text := fmt.Sprintf(format, args...)
	logf("%s", text)
	j.emit(event.Warning{CTID: ctid, Program: cmdline.Name(), Text: text})
}

// begins tells whoever follows the work that something begins that takes time: a
// wait, or with "" the stage. It is told once, however many programs a stage runs,
// and again after a wait.
func (j *job) begins(wait string) {
	stage := cmp.Or(wait, j.doing, j.stage)
	if j.options.dryRun || !j.stages.Begins(stage) {
		return
	}
	j.emit(event.ContainerStage{CTID: j.c.CTID, Program: cmdline.Name(), Stage: stage})
}

// changed reports something that this run has changed.
func (j *job) changed(since time.Time, format string, args ...any) {
	change := fmt.Sprintf(format, args...)
	j.changes = append(j.changes, change)
	if !j.options.dryRun {
		j.logf("%s (%s)", change, cmdline.Elapsed(since))
	}
}

// firewall is what the container's firewall should be, nil when it is to stay
// as it is.
func (j *job) firewall() *config.Firewall {
	if j.firewallWaits {
		return nil
	}
	return managedFirewall(j.c, j.ct.Before)
}

// configured is the configuration without what is not put in force, see
// decideFirewall, and with the protection that comes back, see liftProtection.
func (j *job) configured() *config.Container {
	c := j.c
	if j.firewallWaits {
		c = withoutFilters(c)
	}
	if c.Protection == nil && j.ct.Before[pve.LiftedWord] != "" {
		protected := *c
		protected.Protection = new(true)
		c = &protected
	}
	return c
}

// desiredRecord is the record once all is written that phx writes beside pct's
// options.
func (j *job) desiredRecord() pve.Record {
	after := record(j.ct.Record, j.c, j.ct.Conf, j.firewall(), j.profileHash)
	delete(after, pve.NetsWord)
	after.Unite(pve.NetsWord, netRecord(j.configured(), j.ct.Before))
	if len(after) == 0 {
		after[pve.KnownWord] = "1"
	}
	return after
}

// recordedFirst are the words of what a record has before it is set, and as long as
// it is not removed, so that it is known as phx's own wherever a run ends.
var recordedFirst = []string{pve.FirewallWord, pve.MountsWord, pve.DevicesWord, pve.NetsWord, pve.LiftedWord}

// settings returns how a configuration of Proxmox's differs from the desired
// one.
func (j *job) settings(conf *pve.Conf) *pve.Settings {
	return settings(j.configured(), conf, j.firewall(), j.ct.Before)
}

// refusals returns what keeps the container from becoming the desired one.
func (j *job) refusals() error {
	err := refusals(j.c, j.ct.Conf, j.ct.Record.Hashes(pve.VolumesWord))
	if j.c.IsTemplate {
		err = errors.Join(err, j.ct.CheckTemplate())
	}
	if j.keepsMounts(j.ct.Conf) && j.ct.Before[pve.LiftedWord] == "" {
		err = errors.Join(err, fmt.Errorf("the container is protected, and Proxmox changes neither its disks nor its "+
			"mount points then; nothing was changed: for the next run to change them, run: pct set %d --protection 0",
			j.c.CTID))
	}
	return err
}

// keepsMounts reports whether a container's protection keeps disks or mount points
// from being changed that are to be.
func (j *job) keepsMounts(conf *pve.Conf) bool {
	return isProtected(conf) && j.settings(conf).ChangesMounts()
}

// start starts the container unless it runs.
func (j *job) start(ctx context.Context) error {
	start := time.Now()
	started, err := j.ct.Start(ctx)
	if started {
		j.started = true
		j.changed(j.ct.Since(start), "started")
	}
	return err
}

// restart restarts the container, or starts it when it does not run.
func (j *job) restart(ctx context.Context) error {
	start := time.Now()
	done, err := j.ct.Restart(ctx)
	if done != "" {
		j.started = true
		j.changed(j.ct.Since(start), "%s", done)
	}
	return err
}

// shutdown stops the container if it runs.
func (j *job) shutdown(ctx context.Context) error {
	start := time.Now()
	stopped, err := j.ct.Shutdown(ctx)
	if stopped {
		j.changed(j.ct.Since(start), "shut down")
	}
	return err
}
