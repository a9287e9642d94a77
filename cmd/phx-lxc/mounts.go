package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/hostdir"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// The host's side of mount points: the directories are there, and belong to
// their owners in the container.

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
			all = append(all, remedy.Errorf(fmt.Sprintf("make it if it is a file; a directory is made if host_path is "+
				"written with a slash at its end: %s/", m.HostPath), "%s is not there", m.HostPath))
		}
	}
	return errors.Join(all...)
}

// checkOwners refuses to give away what holds more than the container's data.
// phx-plan has looked, too: but the stream may come from a file.
func (j *job) checkOwners(context.Context) error {
	var dirs []string
	for _, m := range j.c.MountPoints {
		if m.OwnerUID != nil || m.OwnerGID != nil {
			dirs = append(dirs, m.HostPath)
		}
	}
	if len(dirs) == 0 {
		return nil
	}
	host := j.options.host
	guarded := hostdir.GuardedPlaces(j.plan.Config, host.PVERoot, j.options.scripts, host.Storages())
	guarded = append(guarded, hostdir.Guarded{Path: j.options.profileDir, What: "the AppArmor profiles", Tree: true})
	check := hostdir.OwnerCheck(guarded)
	for _, dir := range dirs {
		if err := check(dir); err != nil {
			return err
		}
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
		c := withPrivileges(j.c, j.ct.Conf)
		uid, gid, err := hostOwner(c, keptIDMaps(j.ct.Conf, j.ct.Before), ownerID(m.OwnerUID), ownerID(m.OwnerGID))
		if err != nil {
			return fmt.Errorf("%s: %w", m.HostPath, err)
		}
		if err := j.giveTo(m.HostPath, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// keptIDMaps returns the maps of ids that somebody else has given the container.
func keptIDMaps(conf *pve.Conf, before pve.Record) []pve.RawLine {
	written := before.Hashes(pve.RawWord)
	return slices.DeleteFunc(slices.Clone(conf.Raw), func(l pve.RawLine) bool {
		return l.Key != pve.IDMapKey || written.Has(l.String())
	})
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
		if !missing && !j.quiet {
			n, err := hostdir.CountOwners(dir, uid, gid)
			if err != nil {
				return err
			}
			j.logf("%d files and directories of %s would change their owner", n, dir)
		}
		if j.host.Preview.AddOnce("chown", "-R", "-h", owner, dir) {
			j.changed(start, "owner of %s %s", dir, owner)
		}
		return nil
	}
	j.begins("")
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
			if j.host.Preview.AddOnce("mkdir", "-p", path) {
				j.changed(start, "made %s", path)
			}
			continue
		}
		if err := hostdir.Make(path); err != nil {
			return err
		}
		j.changed(start, "made %s", path)
	}
	return nil
}
