package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// Templates of Proxmox VE: how one is made, and what becomes of a container that
// is one.

// checkStorages refuses, before a container is made, storages that are not there
// or do not hold what it is to be.
func (j *job) checkStorages(context.Context) error {
	if j.ct.Conf != nil && !j.replaces {
		return nil
	}
	var all []error
	for _, name := range storagePools(j.c) {
		if err := j.host.CheckStorage(name); err != nil && j.replaces {
			all = append(all, err)
		}
		if j.c.IsTemplate && !j.host.TakesTemplates(name) {
			all = append(all, remedy.Errorf("choose another one, or take is_template out of the configuration",
				"pct makes no template on a storage of the type of %s", name))
		}
	}
	return errors.Join(all...)
}

// storagePools returns the storages of the root disk and of the volumes.
func storagePools(c *config.Container) []string {
	pools := []string{c.StoragePool}
	for _, v := range c.Volumes {
		if !slices.Contains(pools, v.Pool) {
			pools = append(pools, v.Pool)
		}
	}
	return pools
}

// leaveTemplate deals with a container that is a template: nothing is changed in it, as
// clones may have their disks on top of its own.
func (j *job) leaveTemplate(ctx context.Context) error {
	j.complete = true
	if !j.c.IsTemplate {
		return fmt.Errorf("it is a template of Proxmox VE, which never runs and cannot be turned back: "+
			"let the configuration say so with is_template, or have another container made in its place, "+
			"without its data, with: phoenix --action recreate %d", j.c.CTID)
	}
	if err := j.findDueScripts(ctx); err != nil {
		return err
	}
	differing, onlyNew, err := j.templateDiffers()
	if err != nil {
		return err
	}
	j.differs = append(differing.Changes(), onlyNew...)
	if len(j.differs) == 0 {
		return nil
	}
	lines := []string{"it is a template, and stays as it is; the configuration wants otherwise: " +
		strings.Join(j.differs, "; ")}
	if args := differing.Args(); len(args) > 0 {
		lines = append(lines, "to set that: "+remedy.Quote(append([]string{"pct", "set", j.ct.ID()}, args...)))
	}
	if len(onlyNew) > 0 {
		clones, err := j.host.LinkedClones(j.c.CTID)
		if err != nil {
			return err
		}
		words := []string{"phoenix", "--action", "recreate", j.ct.ID()}
		why := ""
		if len(clones) > 0 {
			why = ", together with the clones that have their disks on top of its own"
		}
		for _, id := range clones {
			words = append(words, strconv.Itoa(id))
		}
		lines = append(lines, fmt.Sprintf("a new template has to be made for %s%s: %s",
			strings.Join(onlyNew, "; "), why, remedy.Quote(words)))
	}
	j.warnf("%s", strings.Join(lines, "\n"))
	return nil
}

// templateDiffers returns what the configuration wants otherwise of a template:
// settings that pct can still change, and what only a new one could have.
func (j *job) templateDiffers() (settable *pve.Settings, onlyNew []string, err error) {
	conf := j.ct.Conf
	var fw *config.Firewall
	if j.ct.Before[pve.FirewallWord] != "" { // which others do not manage
		fw = managedFirewall(j.c, j.ct.Before)
	}
	// A new volume would not be that of a template, and no linked clone possible.
	withoutVolumes := *j.c
	withoutVolumes.Volumes = nil
	settable = settings(&withoutVolumes, conf, fw, j.ct.Before)

	if have, differs := wrongPrivilege(j.c, &conf.Section); differs {
		onlyNew = append(onlyNew, "unprivileged "+pve.FormatBool(!have))
	}
	if storage := pve.Storage(conf.Values["rootfs"]); storage != "" && storage != j.c.StoragePool {
		onlyNew = append(onlyNew, "rootfs on "+j.c.StoragePool)
	}
	for _, d := range disks(j.c, conf) {
		if d.have != d.want {
			onlyNew = append(onlyNew, fmt.Sprintf("%s %dG", d.option, d.want))
		}
	}
	for _, v := range j.c.Volumes {
		if option := pve.MountedAt(conf.Values, v.MountPoint); option == "" ||
			pve.Storage(conf.Values[option]) != v.Pool {
			onlyNew = append(onlyNew, fmt.Sprintf("%s on %s", v.MountPoint, v.Pool))
		}
	}
	if conf.RawDiffers(rawLines(withPrivileges(j.c, conf)), j.ct.Before.Hashes(pve.RawWord)) {
		onlyNew = append(onlyNew, "raw lxc lines")
	}
	if fw != nil {
		text, err := j.host.ReadFirewall(j.c.CTID)
		if err != nil {
			return nil, nil, err
		}
		if string(pveFirewall(fw).Rewrite(text, j.ct.Before.Hashes(pve.FirewallWord))) != string(text) {
			onlyNew = append(onlyNew, "firewall")
		}
	}
	for _, s := range j.due {
		onlyNew = append(onlyNew, s.name)
	}
	return settable, onlyNew, nil
}

// convert makes the container a template, when all has been applied. It is down.
func (j *job) convert(ctx context.Context) error {
	if !j.c.IsTemplate {
		return nil
	}
	start := time.Now()
	if err := j.ct.ConvertToTemplate(ctx); err != nil {
		return err
	}
	j.changed(j.ct.Since(start), "made a template")
	return nil
}
