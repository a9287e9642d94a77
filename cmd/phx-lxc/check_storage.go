package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// Looks of the action check at storages.

// need is what the containers of the plan ask of a storage.
type need struct {
	name      string
	gigabytes int                 // for disks that are still to be made or grown, in GiB
	disks     int                 // how many
	snapshots []*config.Container // that are to have snapshots
	templates []*config.Container // that are to become templates
}

// needs returns what is asked of each storage, by name.
func (s *survey) needs() []*need {
	var all []*need
	of := func(name string) *need {
		i := slices.IndexFunc(all, func(n *need) bool { return n.name == name })
		if i < 0 {
			i = len(all)
			all = append(all, &need{name: name})
		}
		return all[i]
	}
	for i, j := range s.jobs {
		if s.wrong[i] != nil {
			continue
		}
		for _, pool := range storagePools(j.c) {
			n := of(pool)
			if (j.c.LifecycleSnapshots || j.c.TemplateSnapshot != "") && !hasMountPoints(j) {
				n.snapshots = append(n.snapshots, j.c)
			}
			if j.c.IsTemplate && j.isMissing() {
				n.templates = append(n.templates, j.c)
			}
		}
		have := map[string]int{}
		if !j.isMissing() {
			for _, d := range disks(j.c, j.ct.Conf) {
				have[d.option] = d.have
			}
		}
		add := func(pool, option string, want int) {
			if size := have[option]; size < want {
				of(pool).disks++
				of(pool).gigabytes += want - size
			}
		}
		if j.isMissing() && !s.isLinked(j) || have["rootfs"] > 0 {
			add(j.c.StoragePool, "rootfs", j.c.StorageSizeGB)
		}
		for _, v := range j.c.Volumes {
			option := ""
			if !j.isMissing() {
				option = pve.MountedAt(j.ct.Conf.Next(), v.MountPoint)
			}
			if option == "" || have[option] > 0 {
				add(v.Pool, option, v.SizeGB)
			}
		}
	}
	return all
}

// isLinked reports whether a container that is still to be made shares the disk of
// the template that it is cloned from.
func (s *survey) isLinked(j *job) bool {
	if j.c.FullClone != nil && *j.c.FullClone || !s.host.LinksClones(j.c.StoragePool) {
		return false
	}
	i := slices.IndexFunc(s.jobs, func(other *job) bool { return other.c.CTID == j.c.CloneFrom })
	return i >= 0 && s.jobs[i].c.IsTemplate && s.jobs[i].c.StoragePool == j.c.StoragePool
}

func (s *survey) storages(ctx context.Context) []point {
	status, err := s.storage()
	var points []point
	if err != nil {
		points = append(points, leftOut("%v", err))
	}
	for _, n := range s.needs() {
		for _, p := range s.checkNeed(n, status) {
			points = append(points, p.named("storage %s", n.name))
		}
	}
	return points
}

// roomOfSystem is what a small system with what phx installs takes, in GiB.
const roomOfSystem = 1

// checkNeed compares what is asked of a storage with what it is. status is that of
// all storages, nil where that is not known.
func (s *survey) checkNeed(n *need, status map[string]pve.StorageStatus) []point {
	if err := s.host.CheckStorage(n.name); err != nil {
		return []point{fails(err)}
	}
	var points []point
	if len(n.snapshots) > 0 && !s.host.TakesSnapshots(n.name) {
		points = append(points, warns("choose a storage of the type zfspool, lvmthin, btrfs or rbd, or take "+
			"enable_lifecycle_snapshots and template_snapshot_name out of the configuration",
			"it takes no snapshots of containers, so that these get none: %s", idsOf(n.snapshots)))
	}
	if len(n.templates) > 0 && !s.host.TakesTemplates(n.name) {
		points = append(points, bad("choose another one, or take is_template out of the configuration",
			"pct makes no template on a storage of its type, and these are to be templates: %s", idsOf(n.templates)))
	}
	now, known := status[n.name]
	switch {
	case status == nil:
		return append(points, leftOut("how it is and what is free is not known: see storages"))
	case !known:
		return append(points, bad("see those of this host with: pvesm status; and correct the configuration",
			"pvesm status does not have it"))
	}
	const gigabyte = 1 << 30
	free := fmt.Sprintf("%.1f GiB free", float64(now.Available)/gigabyte)
	makeRoom := "see what is on it with: pvesm list " + n.name + "; make room, or choose smaller disks"
	full := int64(n.gigabytes)*gigabyte > now.Available
	switch {
	case now.State != "active":
		points = append(points, bad("see why with: pvesm status --storage "+n.name, "it is %s", now.State))
	case full && s.host.AllocatesAtOnce(n.name):
		points = append(points, bad(makeRoom, "%s, and %s of %d GiB in all are still to be made on it",
			free, count(n.disks, "disk"), n.gigabytes))
	case int64(n.disks)*roomOfSystem*gigabyte > now.Available:
		points = append(points, warns(makeRoom,
			"%s, and %s of %d GiB in all are still to be made on it: they take room only as they are filled, "+
				"but a system alone takes about %d GiB", free, count(n.disks, "disk"), n.gigabytes, roomOfSystem))
	}
	if len(points) > 0 {
		return points
	}
	text := "active, " + free
	if n.disks > 0 {
		text += fmt.Sprintf("; %s of %d GiB in all still to be made", count(n.disks, "disk"), n.gigabytes)
	}
	if full {
		text += ", which take room only as they are filled"
	}
	return []point{good("%s", text)}
}

// archives looks for what missing containers are created from.
func (s *survey) archives(context.Context) []point {
	var points []point
	var done []string
	for i, j := range s.jobs {
		if s.wrong[i] != nil || !j.isMissing() || j.c.Template == "" || slices.Contains(done, j.c.Template) {
			continue
		}
		done = append(done, j.c.Template)
		err := s.host.CheckArchive(j.c.Template)
		p := good("the archive is there")
		if err != nil && s.options.download && s.host.LacksArchive(j.c.Template) {
			p = good("it is missing, and --download lets a run fetch it")
		} else if err != nil {
			p = fails(err)
		} else if !s.host.LocatesArchive(j.c.Template) {
			p = leftOut("the definition of its storage does not say where it is")
		}
		points = append(points, p.named("template %s", strings.TrimSpace(j.c.Template)))
	}
	return points
}
