package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/hostdir"
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
	for _, word := range []string{pve.RawWord, pve.FirewallWord, pve.MountsWord} {
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
	// What the source's record says has come along, signed for the source.
	if err := j.ct.Inherit(records, id, from); err != nil {
		j.logf("%s: %v", origin, err)
	}
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

// checkHostPaths refuses to guess whether what is not there is to be a file or
// a directory, where its name is like that of a file.
func (j *job) checkHostPaths(context.Context) error {
	var all []error
	for _, m := range j.c.MountPoints {
		_, err := os.Stat(m.HostPath)
		switch {
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			all = append(all, err)
		case !m.Directory && strings.Contains(filepath.Base(m.HostPath), "."):
			all = append(all, fmt.Errorf("%s is not there: make it if it is a file; "+
				"a directory is made if host_path is written with a slash at its end: %[1]s/", m.HostPath))
		}
	}
	return errors.Join(all...)
}

// checkOwners refuses to give away what holds more than the container's data.
// phx-plan has looked, too: but the stream may come from a file.
func (j *job) checkOwners(context.Context) error {
	host := j.options.host
	guarded := hostdir.GuardedPlaces(j.plan.Config, j.options.scripts, host.PVERoot, host.Storages())
	guarded = append(guarded, hostdir.Guarded{Path: j.options.profileDir, What: "the AppArmor profiles", Tree: true})
	check := hostdir.OwnerCheck(guarded)
	var dirs []string
	for _, m := range j.c.MountPoints {
		if m.OwnerUID == nil && m.OwnerGID == nil {
			continue
		}
		if err := check(m.HostPath); err != nil {
			return err
		}
		dirs = append(dirs, m.HostPath)
	}
	packages, err := hostdir.Packaged(dirs)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if name := packages[dir]; name != "" {
			return hostdir.PackagedError(dir, name)
		}
	}
	return nil
}

// prepareMounts makes the directories of the host that the container is to
// see, and gives them to their owners. A container does not start without.
func (j *job) prepareMounts(context.Context) error {
	if err := j.makeHostPaths(); err != nil {
		return err
	}
	for _, m := range j.c.MountPoints {
		if m.OwnerUID == nil && m.OwnerGID == nil {
			continue
		}
		uid, gid, err := hostOwner(withPrivileges(j.c, j.ct.Conf), number(m.OwnerUID), number(m.OwnerGID))
		if err != nil {
			return fmt.Errorf("%s: %w", m.HostPath, err)
		}
		if err := j.giveTo(m.HostPath, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// giveTo gives a directory of the host, and all in it, to an owner.
func (j *job) giveTo(dir string, uid, gid int) error {
	start := time.Now()
	owner := fmt.Sprintf("%d:%d", uid, gid)
	differs, err := hostdir.OwnerDiffers(dir, uid, gid)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !(missing && j.options.dryRun) || err == nil && !differs {
		return err
	}
	if j.options.dryRun {
		if !missing {
			n, err := hostdir.CountOwners(dir, uid, gid)
			if err != nil {
				return err
			}
			j.logf("%d files and directories of %s would change their owner", n, dir)
		}
		j.host.Preview.AddOnce("chown", "-R", "-h", owner, dir)
		return nil
	}
	if err := hostdir.ChownTree(dir, uid, gid); err != nil {
		return err
	}
	j.changed(start, "owner of %s %s", dir, owner)
	return nil
}

// makeHostPaths makes the directories of the host that are to be mounted and
// are not there.
func (j *job) makeHostPaths() error {
	for _, m := range j.c.MountPoints {
		path := m.HostPath
		if _, err := os.Stat(path); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		start := time.Now()
		if j.options.dryRun {
			j.host.Preview.AddOnce("mkdir", "-p", path)
			continue
		}
		if err := hostdir.Make(path); err != nil {
			return err
		}
		j.changed(start, "made %s", path)
	}
	return nil
}
