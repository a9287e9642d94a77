package main

import (
	"context"
	"fmt"
	"slices"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// Looks of the action check at the containers themselves.

func hasScripts(j *job) bool {
	return len(j.c.Features)+len(j.c.HealthChecks) > 0 || j.runsApplication()
}

func hasMountPoints(j *job) bool { return len(j.c.MountPoints) > 0 }

// checkMappable checks that root may map the container's ids.
func (j *job) checkMappable(context.Context) error {
	maps, why := j.c.IDMaps, "id_maps asks for"
	if len(maps) == 0 {
		why = "unprivileged containers have"
		maps = []string{"u 0 100000 65536", "g 0 100000 65536"} // those that Proxmox VE gives a container
	}
	return pve.CheckSubordinate(maps, why, j.options.subUID, j.options.subGID)
}

// containers looks for what keeps containers from being worked on at all, and from
// becoming what they are to be.
func (s *survey) containers(context.Context) []point {
	var points []point
	var there []*config.Container
	for i, j := range s.jobs {
		switch {
		case s.wrong[i] != nil:
			points = append(points, fails(s.wrong[i]).named("container").about(j.c))
			continue
		case j.isMissing():
			continue
		}
		there = append(there, j.c)
		if lock := j.ct.Lock(); lock != "" {
			points = append(points, warns("wait for the task that holds the lock, or, if there is none any more, run: "+
				j.ct.ReleaseLock(), "locked (%s): a run waits %s for that, and fails then if there is something to do",
				lock, j.options.lockWait).named("container").about(j.c))
		}
		var err error
		switch isTemplate := j.ct.IsTemplate(); {
		case !isTemplate:
			err = j.refusals()
		case !j.c.IsTemplate:
			err = remedy.Errorf(fmt.Sprintf("let the configuration say so with is_template, or have another container "+
				"made in its place, without its data, with: phoenix recreate %d", j.c.CTID), "it is a template")
		}
		for _, err := range remedy.Each(err) {
			points = append(points, fails(err).named("container").about(j.c))
		}
	}
	if len(points) > 0 {
		return points
	}
	text := fmt.Sprintf("none of %s is there yet", count(len(s.jobs), "container"))
	if len(there) > 0 {
		text = fmt.Sprintf("%d of %s are there: %s", len(there), count(len(s.jobs), "container"), idsOf(there))
	}
	if s.listed != nil {
		return []point{leftOut("%s; which of them run is not known, see pct", text)}
	}
	return []point{good("%s", text)}
}

// sources looks at the containers that missing ones are to be cloned from.
func (s *survey) sources(context.Context) []point {
	var points []point
	var done []int
	for i, j := range s.jobs {
		id := j.c.CloneFrom
		if s.wrong[i] != nil || !j.isMissing() || id == 0 || slices.Contains(done, id) {
			continue
		}
		done = append(done, id)
		at := slices.IndexFunc(s.jobs, func(other *job) bool { return other.c.CTID == id })
		var clones []*job
		for k, other := range s.jobs {
			if s.wrong[k] == nil && other.isMissing() && other.c.CloneFrom == id {
				clones = append(clones, other)
			}
		}
		name := fmt.Sprintf("clone source %d", id)
		switch {
		case at < 0 || s.wrong[at] != nil:
			points = append(points, leftOut("see the container %d itself", id).named("%s", name))
		case s.jobs[at].isMissing():
			points = append(points, good("a run makes it before %s", count(len(clones), "clone")).named("%s", name))
		default:
			found := s.checkSource(s.jobs[at], clones)
			if len(found) == 0 {
				found = []point{good("there, for %s", count(len(clones), "clone"))}
			}
			for _, p := range found {
				points = append(points, p.named("%s", name))
			}
		}
	}
	return points
}

// checkSource looks at a container that is there, and that others are to be cloned
// from. A snapshot that it lacks is taken by the run.
func (s *survey) checkSource(source *job, clones []*job) []point {
	conf, name := source.ct.Conf, source.c.TemplateSnapshot
	if remove := conf.RemoveUnfinished(source.c.CTID, name); remove != "" {
		return []point{bad("remove it with: "+remove,
			"the snapshot %s is unfinished, and of no use", name).about(source.c)}
	}
	section, from := &conf.Section, conf.Snapshot(name)
	if from != nil {
		section = &from.Section
	} else if mount := conf.BindMount(); mount != "" && !conf.IsTemplate() {
		return []point{bad("take its mount_points out of the configuration, or create the container "+
			"from a template", "it has a bind mount (%s), and Proxmox clones no container that has one", mount).
			about(source.c)}
	}
	var found findings
	for _, j := range clones {
		if have, differs := wrongPrivilege(j.c, section); differs {
			found.add(j.c, bad("clone from another container, or create this one from a template",
				"it has unprivileged %s, which a clone keeps, and the configuration wants %s",
				pve.FormatBool(have), pve.FormatBool(!have)))
			continue
		}
		would := pve.Snapshot{Section: *section}
		for _, err := range remedy.Each(refusals(j.c, would.Clone(j.c.Name, j.c.StoragePool), nil)) {
			found.add(j.c, fails(fmt.Errorf("as a clone: %w", err)))
		}
	}
	return found.points()
}
