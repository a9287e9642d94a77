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
	"sync"
	"time"

	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// The action recreate: containers are destroyed and created in one plan. Nothing
// is destroyed before all that are to be recreated have been looked at, and what
// they need and is not recreated itself is ready.

// recreation is how far a container of the plan has come that is recreated.
type recreation struct {
	checked chan struct{} // closed when it is known whether it can be recreated
	can     bool
	gone    chan struct{} // closed when it has been destroyed, or will not be
	isGone  bool
}

// recreate recreates the container of a node. needs are those of the plan.
func (r *round) recreate(n *node, j *job, needs []int) {
	var early, late []int
	checked := sync.OnceFunc(func() { close(n.recreation.checked) })
	gone := sync.OnceFunc(func() { close(n.recreation.gone) })
	defer gone()
	defer checked()

	select { // which others are recreated is known then
	case <-r.planned:
	case <-r.halted:
		r.skip(j.c, planBrokeOff, 0)
		return
	}
	for _, id := range needs {
		if r.needsRecreated(id) {
			late = append(late, id)
		} else {
			early = append(early, id)
		}
	}
	if reason, because := r.await(early); reason != "" {
		r.skip(j.c, reason, because)
		return
	}
	start := time.Now()
	all := r.recreated()
	if !r.atWork(j, func() error { return j.prepareToRecreate(r.ctx, all) }) {
		return
	}
	n.recreation.can = true
	checked()
	if reason, because := r.awaitRecreation(j.c.CTID, all); reason != "" {
		r.skip(j.c, reason, because)
		return
	}
	if !r.atWork(j, func() error { return j.destroyToRecreate(r.ctx) }) {
		return
	}
	n.recreation.isGone = true
	gone()
	if reason, because := r.await(late); reason != "" {
		reason += fmt.Sprintf("; this one is destroyed by now: create it with: phoenix %d", j.c.CTID)
		r.skip(j.c, reason, because)
		return
	}
	if !r.atWork(j, func() error { return j.converge(r.ctx) }) {
		return
	}
	n.ready = true
	toDo := j.succeed(actions["recreate"], start)
	r.run.note(toDo, false)
}

// awaitRecreation waits until a container may be destroyed that is recreated with all
// the others: until all of them can be recreated, and those are gone that need it. Else it
// returns why not, and the container to blame, if any.
func (r *round) awaitRecreation(ctid int, all []int) (reason string, because int) {
	for _, id := range all {
		other := r.node(id).recreation
		select {
		case <-other.checked:
		case <-r.halted:
			return planBrokeOff, 0
		}
		if !other.can {
			return fmt.Sprintf("container %d is not recreated, so nothing was destroyed", id), id
		}
	}
	for _, id := range all {
		other := r.node(id)
		if !slices.Contains(other.needs, ctid) {
			continue
		}
		if <-other.recreation.gone; !other.recreation.isGone {
			return fmt.Sprintf("container %d, which needs it, is still there", id), id
		}
	}
	return "", 0
}

// atWork does a part of the work on a container, and reports whether that has
// succeeded. If not, the reason has been reported.
func (r *round) atWork(j *job, part func() error) bool {
	release, ok := r.begin()
	if !ok {
		r.skip(j.c, planBrokeOff, 0)
		return false
	}
	defer release()
	err := part()
	if err != nil {
		j.fail(err)
		r.run.note(false, true)
	}
	if j.ct != nil {
		r.node(j.c.CTID).source.conf = j.ct.Conf
	}
	return err == nil
}

// recreated returns the ids of the containers of the plan that are recreated. The
// plan is complete.
func (r *round) recreated() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []int
	for id, n := range r.nodes {
		if n.recreation != nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// needsRecreated reports whether a container of the plan is recreated, or needs
// one that is, which therefore cannot be waited for before. The plan is complete.
func (r *round) needsRecreated(id int) bool {
	all := append(r.before(id), id)
	return slices.ContainsFunc(r.recreated(), func(id int) bool { return slices.Contains(all, id) })
}

// prepareToRecreate looks for all that would keep the container from being
// destroyed, or from being created after that. together are those that are
// recreated with it.
func (j *job) prepareToRecreate(ctx context.Context, together []int) error {
	j.anew, j.together = true, together
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
	case !slices.Contains(together, j.c.CloneFrom):
		j.source.copying.Lock() // for which Proxmox locks the source
		_, _, err := j.chooseSource(ctx)
		j.source.copying.Unlock()
		all = append(all, err)
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("%w\nso nothing was destroyed", err)
	}
	return nil
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
	var all []error
	used := func(key, path string, kind fs.FileMode, what string) {
		info, err := os.Stat(path)
		if err == nil && info.Mode()&fs.ModeType&^fs.ModeCharDevice != kind {
			err = fmt.Errorf("%s is not %s", path, what)
		}
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", key, err))
		}
	}
	for _, d := range j.c.Devices {
		used("devices", d.Path, fs.ModeDevice, "a device")
	}
	if err := j.checkKeysFile(); err != nil && j.source == nil {
		all = append(all, err)
	}
	storage, volume, _ := strings.Cut(j.c.HookScript, ":")
	if dir := j.host.Storages()[storage]; dir != "" {
		used("hookscript", filepath.Join(dir, volume), 0, "a file")
	}
	return errors.Join(all...)
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
		j.emit(event.ContainerRemoved(j.hasChanged()))
	}
	j.ownProfiles = j.ct.Before.Hashes(pve.ProfileWord)
	j.ct = j.host.Container(j.c.CTID, j.records, j.options.lockWait, j.logf)
	return nil
}
