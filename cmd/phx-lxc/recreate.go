package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// What the action recreate does on one container before it creates it.

// prepareToRecreate looks for all that would keep the container from being
// destroyed, or from being created after that. together are those that are
// recreated with it.
func (j *job) prepareToRecreate(ctx context.Context, together []int) error {
	j.replaces, j.together = true, together
	if err := j.look(); err != nil {
		return err
	}
	j.stage = "recreate"
	if j.ct.Conf != nil {
		if err := j.checkDestroy(ctx); err != nil {
			return err
		}
	}
	var all []error
	for _, check := range []func(context.Context) error{
		j.checkNode, j.checkScripts, j.checkIDMaps, j.checkHostPaths, j.checkOwners, j.checkExternal, j.checkStorages,
		j.checkProfile, j.checkUsed,
	} {
		all = append(all, check(ctx))
	}
	switch {
	case j.source == nil:
		all = append(all, j.checkArchive(ctx))
	case slices.Contains(together, j.c.CloneFrom):
		all = append(all, j.checkNewSource())
	default:
		j.lockSource() // which Proxmox locks, too, while it is cloned
		_, _, err := j.chooseSource(ctx)
		j.source.copying.Unlock()
		all = append(all, err)
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("%w\nso nothing was destroyed", err)
	}
	return nil
}

// checkNewSource refuses what the container could not be as a clone of a source
// that is recreated before it.
func (j *job) checkNewSource() error {
	source := j.source.container
	var all []error
	if j.c.Unprivileged != nil && source.CloneFrom == 0 && *j.c.Unprivileged != unprivileged(source) {
		all = append(all, fmt.Errorf("clone source %d is to have unprivileged %s, which a clone keeps, and %d wants %s",
			source.CTID, pve.FormatBool(unprivileged(source)), j.c.CTID, pve.FormatBool(*j.c.Unprivileged)))
	}
	if j.c.StorageSizeGB < source.StorageSizeGB {
		all = append(all, fmt.Errorf("the disk of clone source %d is to have %d GiB, and a clone cannot have fewer: "+
			"%d wants %d", source.CTID, source.StorageSizeGB, j.c.CTID, j.c.StorageSizeGB))
	}
	return errors.Join(all...)
}

// checkArchive makes sure that the archive is there that the container is created
// from.
func (j *job) checkArchive(ctx context.Context) error {
	if j.options.download && j.host.LacksArchive(j.c.Template) {
		return j.download(ctx)
	}
	return j.host.CheckArchive(j.c.Template)
}

// checkProfile refuses what loadProfile would.
func (j *job) checkProfile(context.Context) error {
	name := customProfile(j.c)
	if name == "" {
		return nil
	}
	path, want, have, err := profileFile(j.options.profiles, j.options.profileDir, name)
	if err != nil {
		return err
	}
	return j.foreignProfile(name, path, want, have)
}

// checkUsed refuses what pct create would, because the host lacks it: devices,
// the hook script, the file with SSH keys.
func (j *job) checkUsed(context.Context) error {
	all := []error{j.checkDevices(), j.checkHookScript()}
	if err := j.checkKeysFile(); err != nil && j.source == nil {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// checkDevices refuses devices that the host does not have.
func (j *job) checkDevices() error {
	var all []error
	for _, d := range j.c.Devices {
		info, err := os.Stat(d.Path)
		if err == nil && info.Mode()&fs.ModeDevice == 0 {
			err = fmt.Errorf("%s is not a device", d.Path)
		}
		if err != nil {
			all = append(all, remedy.Errorf("load the driver that makes it, or correct the configuration",
				"devices: %w", err))
		}
	}
	return errors.Join(all...)
}

// checkHookScript refuses a hook script that pct would not take.
func (j *job) checkHookScript() error {
	if j.c.HookScript == "" {
		return nil
	}
	return j.host.CheckHookScript(j.c.HookScript)
}

// destroyToRecreate destroys the container, if it is there, and lets the rest of
// the work begin as with one that never was.
func (j *job) destroyToRecreate(ctx context.Context) error {
	j.stage = "delete"
	if err := j.destroy(ctx); err != nil {
		return err
	}
	if j.host.Preview != nil {
		j.host.PreviewDestroy(j.c.CTID)
	} else {
		j.stages.End() // it may wait for others now
		j.emit(event.ContainerRemoved(j.hasChanged()))
	}
	j.ownProfiles = j.ct.Before.Hashes(pve.ProfileWord)
	j.ct = j.host.Container(j.c.CTID, j.records, j.options.lockWait, j.logf)
	return nil
}
