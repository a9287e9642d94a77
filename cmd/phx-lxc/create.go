package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/pve"
)

// define makes sure that the container exists, and that it can be brought
// into the desired state.
func (j *job) define(ctx context.Context) error {
	if err := j.ct.AwaitDefined(ctx); err != nil {
		return err
	}
	switch {
	case j.ct.Conf == nil && j.source != nil:
		return j.clone(ctx)
	case j.ct.Conf == nil:
		return j.create(ctx)
	}
	err := j.refusals()
	if err != nil && !j.ct.Running && !j.c.IsTemplate() {
		err = fmt.Errorf("%w\nthe container is stopped, and stays so until that is settled", err)
	}
	return err
}

// create makes the container from a template, with all its settings.
func (j *job) create(ctx context.Context) error {
	start := time.Now()
	if err := j.makeHostPaths(); err != nil {
		return err
	}
	j.created = true
	// pct create makes privileged containers on some versions and
	// unprivileged ones on others: it is always told.
	privileges := pve.FormatBool(unprivileged(j.c))
	rootfs := fmt.Sprintf("%s:%d", j.c.StoragePool, j.c.StorageSizeGB)
	wanted := j.settings(&pve.Conf{})
	args := []string{"create", j.ct.ID(), j.c.Template, "--rootfs", rootfs, "--unprivileged", privileges}
	args = append(args, wanted.Args()...)
	first, line, err := j.firstRecord()
	if err != nil {
		return err
	}
	if line != "" {
		args = append(args, "--description", line)
	}
	expected := &pve.Conf{Section: pve.Section{Description: line, Values: map[string]string{
		"unprivileged": privileges,
		"rootfs":       fmt.Sprintf("%s,size=%dG", rootfs, j.c.StorageSizeGB),
	}}}
	wanted.Apply(expected, false)
	made, err := j.ct.Make(ctx, first, expected, args...)
	if made {
		j.changed(start, "created from %s", j.c.Template)
	}
	return err
}

// firstRecord returns the record of a container that is about to be made, and
// its line: made with it, a container is known as phx's own even when the run
// ends in the middle.
func (j *job) firstRecord() (first pve.Record, line string, err error) {
	records, err := j.records()
	if err != nil {
		return nil, "", err
	}
	first = j.desiredRecord()
	for _, word := range []string{pve.RawWord, pve.FirewallWord, pve.MountsWord, pve.NetsWord} {
		first.Unite(word, j.ct.Before[word])
	}
	return first, records.Line(j.c.CTID, first), nil
}

// clone makes the container from another one's snapshot.
func (j *job) clone(ctx context.Context) error {
	j.source.copying.Lock()
	defer j.source.copying.Unlock()

	start := time.Now()
	id := j.c.CloneFrom
	conf := j.source.conf // in a dry run the source may not exist yet
	if !j.options.dryRun {
		var err error
		if conf, _, err = j.host.AwaitLock(ctx, id, j.options.lockWait, j.logf); err != nil {
			return fmt.Errorf("clone source %d: %w", id, err)
		}
	}
	if j.source.container == nil || conf == nil {
		return fmt.Errorf("clone source %d is not in the plan", id)
	}
	records, err := j.records()
	if err != nil {
		return err
	}
	name := j.source.container.TemplateSnapshot
	from, err := records.SnapshotToClone(id, conf, name)
	if err != nil {
		return fmt.Errorf("clone source %d: %w", id, err)
	}
	if have, differs := wrongPrivilege(j.c, &from.Section); differs {
		return fmt.Errorf("clone source %d has unprivileged %s, and %d wants %s: "+
			"a clone keeps its source's value, which is fixed when a container is created: "+
			"clone from another container, or create this one from a template",
			id, pve.FormatBool(have), j.c.CTID, pve.FormatBool(!have))
	}
	args := []string{"clone", strconv.Itoa(id), j.ct.ID(), "--hostname", j.c.Name, "--storage", j.c.StoragePool}
	origin := strconv.Itoa(id)
	if from.Name != "" {
		args = append(args, "--snapname", from.Name)
		origin += "@" + from.Name
	} else {
		j.logf("container %d has no snapshot %s, because its storage takes none: the container itself is cloned",
			id, name)
	}
	args = append(args, "--full", "1") // the boolean last: pct takes a word after it for its value
	expected := from.Clone(j.c.Name, j.c.StoragePool)
	if err := refusals(j.c, expected, nil); err != nil {
		return fmt.Errorf("as a clone of %d: %w", id, err)
	}
	// The source's record comes along, signed for the source.
	if err := j.ct.Inherit(records, id, from); err != nil {
		j.logf("%s: %v", origin, err)
	}
	// So do all its interfaces, and with them the addresses of the source.
	j.ct.Before.Unite(pve.NetsWord, strings.Join(unmentioned(j.c, from.Values), ","))
	j.created = true
	first, line, err := j.firstRecord()
	if err != nil {
		return err
	}
	// Notes of a person do not belong on a command line.
	if line != "" && pve.Notes(from.Description) == "" {
		args = slices.Insert(args, 3, "--description", line)
		expected.Description = line
	}
	made, err := j.ct.Make(ctx, first, expected, args...)
	if made {
		j.changed(start, "cloned from %s", origin)
	}
	return err
}
