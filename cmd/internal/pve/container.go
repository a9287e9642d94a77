package pve

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// Logf logs a line, in the form of [fmt.Printf].
type Logf func(format string, args ...any)

// Container is a container as a run finds and changes it. Its methods are not
// for several goroutines at once.
//
// Before something is changed, what others do to the container is waited for,
// and read again. In a preview of the host nothing is changed, and Conf and
// Running are what they would be.
type Container struct {
	CTID    int
	Conf    *Conf  // as last read; nil: there is no such container
	Running bool   // as last asked for
	Record  Record // what phx has applied, as far as the record counts
	Before  Record // the record as it was before this run
	Noted   bool   // the record, a mark or a raw line has been changed by this run

	host     *Host
	records  func() (*Records, error)
	patience time.Duration
	logf     Logf
	mark     string    // the value of the appliedMark
	idle     bool      // no command of an earlier run is at work on it
	awaited  time.Time // when others' work on it, that was waited for, had ended
}

// Container returns a container that is still to be looked at. A lock of
// Proxmox is waited for at most for patience, and logf logs what a person
// should know meanwhile.
func (h *Host) Container(ctid int, records func() (*Records, error), patience time.Duration, logf Logf) *Container {
	return &Container{
		CTID: ctid, Record: Record{}, Before: Record{},
		host: h, records: records, patience: patience, logf: logf,
	}
}

// warnf warns people of something, as [Host.Warn] does, or else by a log line.
func (c *Container) warnf(format string, args ...any) {
	if c.host.Warn == nil {
		c.logf(format, args...)
		return
	}
	c.host.Warn(fmt.Sprintf(format, args...))
}

// Look finds out whether the container exists, and whether it runs, by the
// states of [Host.List]. One that is on another node of the cluster is an
// error, as it can only be worked on there, and so is a virtual machine.
func (c *Container) Look(states map[int]string) error {
	c.Running = states[c.CTID] == "running"
	conf, err := c.host.ReadConf(c.CTID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c.host.elsewhere(c.CTID)
	case err != nil:
		return err
	}
	return c.take(conf)
}

// take makes conf the container's configuration, and reads its record.
func (c *Container) take(conf *Conf) error {
	c.Conf = conf
	c.mark = conf.mark(appliedMark)
	records, err := c.records()
	if err != nil {
		return err
	}
	if c.Record, err = records.readConf(c.CTID, conf); err != nil {
		c.warnf("%v", err)
	}
	c.Before = maps.Clone(c.Record)
	return nil
}

// elsewhere returns an error when the id is that of a container on another node
// of the cluster, or of a virtual machine.
func (h *Host) elsewhere(ctid int) error {
	for _, place := range []string{"nodes/*/lxc", "nodes/*/qemu-server", "qemu-server"} {
		paths, err := filepath.Glob(filepath.Join(h.PVERoot, place, strconv.Itoa(ctid)+".conf"))
		if err != nil {
			return err
		}
		if len(paths) == 0 {
			continue
		}
		if filepath.Base(place) == "qemu-server" {
			return remedy.Errorf("give the container another CTID in the configuration",
				"%d is a virtual machine (%s), and phx manages containers", ctid, paths[0])
		}
		node := filepath.Base(filepath.Dir(filepath.Dir(paths[0])))
		return remedy.Errorf(fmt.Sprintf("run phx there, or bring it here with: ssh %s pct migrate %d %s --restart 1",
			node, ctid, h.Node()), "the container is on the node %s", node)
	}
	return nil
}

// Node is this host's name as a node of the cluster.
func (h *Host) Node() string {
	if own, err := os.Readlink(filepath.Join(h.PVERoot, "local")); err == nil {
		return filepath.Base(own)
	}
	name, err := os.Hostname()
	if err != nil {
		return "THIS-NODE"
	}
	name, _, _ = strings.Cut(name, ".")
	return name
}

// ID is the CTID as an argument.
func (c *Container) ID() string { return strconv.Itoa(c.CTID) }

// State is running, stopped or missing.
func (c *Container) State() string {
	switch {
	case c.Conf == nil:
		return "missing"
	case c.Running:
		return "running"
	}
	return "stopped"
}

// Lock returns what Proxmox has locked the container for, "" when it has not.
func (c *Container) Lock() string {
	if c.Conf == nil {
		return ""
	}
	return c.Conf.lock()
}

// HAState returns the state in which HA is to keep the container, "" when HA does
// not manage it.
func (c *Container) HAState() (string, error) {
	state, _, err := c.host.haState(c.CTID)
	return state, err
}

// ReleaseLock returns the command that releases the lock of a task that was killed.
func (c *Container) ReleaseLock() string { return c.Conf.releaseLock(c.CTID) }

// askState asks whether the container runs.
func (c *Container) askState(ctx context.Context) error {
	if c.host.Direct {
		state, err := c.host.lookAt(c.CTID)
		if err != nil {
			return c.host.commandError(Command{Argv: []string{c.host.PCT, "status", c.ID()}}, nil, nil, err)
		}
		c.Running = state == "running"
		return nil
	}
	out, err := c.host.Run(ctx, Command{Argv: []string{c.host.PCT, "status", c.ID()}, Reads: true})
	if err == nil {
		c.Running = parseStatus(out) == "running"
	}
	return err
}

// hasState asks pct, after a command has failed, whether the container is in
// the state that it was to reach: others may have brought it there.
func (c *Container) hasState(ctx context.Context, running bool) bool {
	return c.askState(ctx) == nil && c.Running == running
}

// AwaitUnlocked waits until nothing else is at work on the container: Proxmox
// has no lock on it, and no command of a run that was killed is left. What
// others may have changed meanwhile is read again.
func (c *Container) AwaitUnlocked(ctx context.Context) error {
	if c.Conf == nil || c.host.Preview != nil {
		return nil
	}
	conf, waited, err := c.awaitLock(ctx)
	if err == nil && !c.idle {
		var waitedToo bool
		waitedToo, err = c.host.awaitCommands(ctx, c.CTID, c.patience, c.logf)
		if waited = waited || waitedToo; waitedToo && err == nil {
			conf, _, err = c.awaitLock(ctx)
		}
		c.idle = err == nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("others have destroyed the container meanwhile: %w", err)
	}
	if err != nil {
		return err
	}
	if err := c.checkMark(conf); err != nil {
		return err
	}
	c.Conf = conf
	if waited { // that work may have started or stopped it
		c.awaited = time.Now()
		return c.askState(ctx)
	}
	return nil
}

// Since returns when a change that was asked for at start has begun: after the
// wait for others, if there was one.
func (c *Container) Since(start time.Time) time.Time {
	if c.awaited.After(start) {
		return c.awaited
	}
	return start
}

func (c *Container) awaitLock(ctx context.Context) (conf *Conf, waited bool, err error) {
	return c.host.AwaitLock(ctx, c.CTID, c.patience, c.logf)
}

// checkMark checks that the container still has what this run knows of: a
// rollback takes away what scripts have left on its disks.
func (c *Container) checkMark(conf *Conf) error {
	if conf.mark(appliedMark) != c.mark {
		return errors.New("others have rolled the container back meanwhile, or edited its configuration: " +
			"run phoenix again")
	}
	return nil
}

// AwaitDefined waits for a task that makes, replaces or destroys the container.
// Other locks are waited for where something has to be changed.
func (c *Container) AwaitDefined(ctx context.Context) error {
	if c.Conf != nil && !c.Conf.isReplaced() {
		return nil
	}
	if c.Conf == nil {
		waited, err := c.host.awaitCommands(ctx, c.CTID, c.patience, c.logf)
		if err != nil || !waited {
			return err
		}
	}
	conf, _, err := c.awaitLock(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist): // it was not finished, or destroyed
		c.Conf, c.Running = nil, false
		c.Record, c.Before, c.mark = Record{}, Record{}, ""
		return nil
	case err != nil:
		return err
	}
	if err := c.take(conf); err != nil {
		return err
	}
	return c.askState(ctx)
}

// Pct runs a command of pct that changes the container, once nothing else is
// at work on it.
func (c *Container) Pct(ctx context.Context, args ...string) error {
	if err := c.AwaitUnlocked(ctx); err != nil {
		return err
	}
	_, err := c.host.pct(ctx, args...)
	return err
}

// Reread reads the configuration that Proxmox has stored. In a preview there
// is none: expect changes Conf as Proxmox would have.
func (c *Container) Reread(expect func(*Conf)) error {
	if c.host.Preview != nil {
		expect(c.Conf)
		return nil
	}
	conf, err := c.host.ReadConf(c.CTID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the container is gone: it has been destroyed or moved meanwhile: %w", err)
	case err != nil:
		return err
	}
	c.Conf = conf
	return nil
}

// Make runs the command of pct that makes the container, and reports whether
// that has succeeded: also with an error, where the container cannot be read
// then. record is what phx has applied to it by then; in a preview, conf is what
// the container would be.
func (c *Container) Make(ctx context.Context, record Record, conf *Conf, args ...string) (made bool, err error) {
	c.Record = record
	if err := c.Pct(ctx, args...); err != nil {
		return false, err
	}
	if err := c.Reread(func(*Conf) { c.Conf = conf }); err != nil {
		return true, err
	}
	c.mark = c.Conf.mark(appliedMark)
	return true, nil
}

// rewrite changes the container's configuration file as [Host.editConf] does:
// raw lines, which pct cannot set, and the record, which no call is spent on.
func (c *Container) rewrite(ctx context.Context, rewrite func([]byte) []byte) (changed bool, err error) {
	records, err := c.records()
	if err != nil {
		return false, err
	}
	var text []byte // in a preview
	if c.host.Preview != nil {
		text, changed, err = c.host.Preview.edit(c.host.confPath(c.CTID), c.Conf.unsettable(), rewrite)
	} else {
		unkeyed := records.isUnsigned(c.CTID, c.Conf.Description)
		var lost error
		changed, err = c.host.editConf(ctx, c.CTID, func(text []byte) []byte {
			if lost = c.checkMark(ParseConf(text)); lost != nil {
				return text
			}
			return rewrite(text)
		})
		if err = cmp.Or(err, lost); err == nil {
			err = records.signed(ctx, c.CTID)
		}
		if err == nil && changed && unkeyed {
			c.logf("its record is taken over, and signed: whoever may edit notes cannot change it any more")
		}
	}
	if err != nil || !changed {
		return changed, err
	}
	c.Noted = true
	err = c.Reread(func(conf *Conf) {
		would := ParseConf(text)
		conf.Raw, conf.Description = would.Raw, would.Description
	})
	c.mark = c.Conf.mark(appliedMark)
	return true, err
}

// unsettable is the text of the notes and raw lines.
func (c *Conf) unsettable() []byte {
	text := encodeNotes(c.Description)
	for _, l := range c.Raw {
		text = append(text, l.String()+"\n"...)
	}
	return text
}

// awaitEdit is AwaitUnlocked where rewrite would change the file that read
// reads.
func (c *Container) awaitEdit(ctx context.Context, path string, rewrite func([]byte) []byte) error {
	if c.host.Preview != nil {
		return nil
	}
	text, err := readIfThere(path)
	if err != nil || bytes.Equal(rewrite(text), text) {
		return err
	}
	return c.AwaitUnlocked(ctx)
}

// EditFirewall is [Host.editFirewall] once nothing else is at work on the
// container. In a preview, made is what the file would hold if there is none.
func (c *Container) EditFirewall(ctx context.Context, made []byte,
	rewrite func([]byte) []byte) (changed bool, err error) {
	path := c.host.firewallPath(c.CTID)
	if c.host.Preview != nil {
		_, changed, err = c.host.Preview.edit(path, made, rewrite)
		return changed, err
	}
	if err := c.awaitEdit(ctx, path, rewrite); err != nil {
		return false, err
	}
	return c.host.editFirewall(ctx, c.CTID, rewrite)
}

// Unsettable is what a container's configuration file is to hold beside what pct
// can set.
type Unsettable struct {
	Raw    []RawLine
	Notes  *string // beside the record, lines without a line feed at the end; nil: those that are there stay
	Record Record
}

// WriteUnsettable brings the raw lines and the notes up to date, and the record
// with them, in one replace: whenever the run ends, the record knows what phx has
// written. A running container whose raw lines have changed is marked for a
// restart. raw and notes report which of them have been changed.
func (c *Container) WriteUnsettable(ctx context.Context, wanted Unsettable) (raw, notes bool, err error) {
	records, err := c.records()
	if err != nil {
		return false, false, err
	}
	if wanted.Notes != nil && hasRecordLine(*wanted.Notes) {
		return false, false, fmt.Errorf("the notes have a line that begins with %q: phx keeps its record there",
			recordPrefix)
	}
	written := c.Before.Hashes(RawWord)
	edit := func(text []byte) []byte {
		edited := RewriteRaw(text, wanted.Raw, written)
		raw = !bytes.Equal(edited, text)
		if wanted.Notes == nil {
			return edited
		}
		noted := rewriteNotes(edited, *wanted.Notes)
		notes = !bytes.Equal(noted, edited)
		return noted
	}
	if err := c.awaitEdit(ctx, c.host.confPath(c.CTID), edit); err != nil {
		return false, false, err
	}
	_, err = c.rewrite(ctx, func(text []byte) []byte {
		edited := records.rewrite(c.CTID, edit(text), c.merge(wanted.Record))
		switch {
		case !c.Running: // as may be the clone of one that ran
			return setMark(edited, restartMark, "")
		case raw || c.Record[FormerRestartWord] != "":
			_, waiting := restartOf(ParseConf(text))
			return setRestart(edited, append(waiting, "lxc"))
		}
		return edited
	})
	if err != nil {
		return false, false, err
	}
	c.Record = wanted.Record
	return raw, notes, nil
}

// WriteRecord writes the record. What others have added to it meanwhile
// stays.
func (c *Container) WriteRecord(ctx context.Context, after Record) error {
	records, err := c.records()
	if err != nil {
		return err
	}
	change := c.merge(after)
	_, err = c.rewrite(ctx, func(text []byte) []byte { return records.rewrite(c.CTID, text, change) })
	if err != nil {
		return err
	}
	c.Record = after
	return nil
}

// merge returns what makes a record that was this one into after.
func (c *Container) merge(after Record) func(Record) {
	before := c.Record
	return func(record Record) {
		for name := range before {
			delete(record, name)
		}
		maps.Copy(record, after)
	}
}

// Resize grows the disk of an option to a size in GiB.
func (c *Container) Resize(ctx context.Context, option string, gigabytes int) error {
	size := fmt.Sprintf("%dG", gigabytes)
	// pct resize exits 0 even when it failed: the size is read again.
	if err := c.Pct(ctx, "resize", c.ID(), option, size); err != nil {
		return err
	}
	err := c.Reread(func(conf *Conf) {
		ps := ParseProperties(conf.Values[option])
		ps.Set("size", size)
		conf.Values[option] = ps.String()
	})
	if err != nil {
		return err
	}
	now := ParseProperties(c.Conf.Values[option]).Get("size") // 1024G is stored as 1T
	if have, err := Gigabytes(now); err != nil || have != gigabytes {
		return fmt.Errorf("pct resize %d %s %s exited 0, but the size is still %s: see Proxmox's task log",
			c.CTID, option, size, now)
	}
	return nil
}

// Unknown reports whether nothing on the container tells that phx has ever worked
// on it: it has no record, not even one that does not count, and no mark.
func (c *Container) Unknown() bool {
	_, lines := recordLines(c.Conf.Description)
	return len(lines) == 0 && c.Conf.mark(appliedMark) == "" && c.Conf.mark(restartMark) == ""
}

// Inherit sets the record of a container that is about to be cloned to what has
// come along with a snapshot of its source. The error is that of [Records.read].
func (c *Container) Inherit(records *Records, source int, from *Snapshot) (err error) {
	c.Record, err = records.read(source, from.Description)
	c.Record = c.Record.without(VolumesWord, snapshotsWord)
	c.Before = maps.Clone(c.Record)
	return err
}
