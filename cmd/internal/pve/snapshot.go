package pve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// SnapshotNames returns the names of the container's snapshots that are finished,
// the oldest first.
func (c *Container) SnapshotNames() []string {
	if c.Conf == nil {
		return nil
	}
	taken := func(s Snapshot) int64 {
		seconds, _ := strconv.ParseInt(s.Values["snaptime"], 10, 64)
		return seconds
	}
	sorted := slices.SortedStableFunc(slices.Values(c.Conf.Snapshots), func(a, b Snapshot) int {
		return cmp.Compare(taken(a), taken(b))
	})
	var names []string
	for _, s := range sorted {
		if !s.unfinished() {
			names = append(names, s.Name)
		}
	}
	return names
}

// Snapshot takes a snapshot unless there is one of that name, and reports
// whether it has. Its description is the container's record: a clone of a
// snapshot gets the snapshot's description, not that of the container.
//
// Of a container with a bind mount, or on some storages, Proxmox makes none.
// That is no error: it is logged and recorded, so that the next run neither tries
// nor logs it again.
func (c *Container) Snapshot(ctx context.Context, name string) (taken bool, err error) {
	if c.Conf.Snapshot(name) != nil || c.Record.takesNoSnapshots(&c.Conf.Section) {
		return false, nil
	}
	if mount := c.Conf.BindMount(); mount != "" {
		return false, c.noSnapshots(ctx, "Proxmox makes no snapshot of a container with a bind mount (%s)", mount)
	}
	if err := c.AwaitUnlocked(ctx); err != nil {
		return false, err
	}
	for _, s := range c.Conf.Snapshots { // others may have taken it meanwhile
		switch {
		case s.Name != name:
		case s.unfinished():
			return false, fmt.Errorf("the snapshot %s is unfinished, and of no use (snapstate %s): remove it with: %s",
				name, s.Values["snapstate"], removeSnapshot(c.CTID, name))
		default:
			return false, nil
		}
	}
	records, err := c.records()
	if err != nil {
		return false, err
	}
	args := []string{"snapshot", c.ID(), name}
	description := records.Line(c.CTID, c.Record.without(snapshotsWord)) // that is of other volumes
	if description != "" {
		args = append(args, "--description", description)
	}
	err = c.Pct(ctx, args...)
	var failed *CommandError
	if errors.As(err, &failed) && strings.Contains(failed.Output, "snapshot feature is not available") {
		return false, c.noSnapshots(ctx,
			"pct snapshot %d %s: snapshot feature is not available: its storage takes none", c.CTID, name)
	}
	if err != nil {
		return false, err
	}
	return true, c.Reread(func(conf *Conf) {
		s := Snapshot{Name: name, Section: conf.Section}
		s.Values, s.Description = maps.Clone(conf.Values), description
		conf.Snapshots = append(conf.Snapshots, s)
	})
}

// noSnapshots logs and records why Proxmox makes no snapshots of the container.
func (c *Container) noSnapshots(ctx context.Context, format string, args ...any) error {
	c.warnf("it gets no snapshots: %s", fmt.Sprintf(format, args...))
	after := maps.Clone(c.Record)
	after[snapshotsWord] = HashList([]string{c.Conf.sources()})
	return c.WriteRecord(ctx, after)
}

// ForgetNoSnapshots forgets that Proxmox makes no snapshots of the container if
// its volumes are others now.
func (c *Container) ForgetNoSnapshots(ctx context.Context) error {
	if c.Record[snapshotsWord] == "" || c.Record.takesNoSnapshots(&c.Conf.Section) {
		return nil
	}
	return c.WriteRecord(ctx, c.Record.without(snapshotsWord))
}

// SnapshotToClone returns the snapshot of a container that is cloned: one
// without a name, which is the container itself, of a template, and where phx has
// seen that Proxmox makes none of it.
func (r *Records) SnapshotToClone(ctid int, conf *Conf, name string) (*Snapshot, error) {
	if s := conf.Snapshot(name); s != nil {
		return s, nil
	}
	if conf.IsTemplate() {
		return &Snapshot{Section: conf.Section}, nil
	}
	record, err := r.read(ctid, conf.Description)
	if err != nil || !record.takesNoSnapshots(&conf.Section) {
		return nil, errors.Join(err, fmt.Errorf("it has no snapshot %s: take it with: phoenix %d", name, ctid))
	}
	if mount := conf.BindMount(); mount != "" {
		return nil, fmt.Errorf("it has a bind mount (%s), and Proxmox clones no container that has one: "+
			"take its mount_points out of the configuration, or create the container from a template", mount)
	}
	return &Snapshot{Section: conf.Section}, nil
}
