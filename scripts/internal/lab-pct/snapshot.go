package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (c *call) listsnapshot() error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	children := make(map[string][]string)
	for name, s := range conf.snapshots {
		parent := s.values["parent"]
		if conf.snapshots[parent] == nil {
			parent = ""
		}
		children[parent] = append(children[parent], name)
	}
	parent := conf.values["parent"]
	if conf.snapshots[parent] == nil {
		parent = ""
	}
	const current = "\x00" // no snapshot has this name
	children[parent] = append(children[parent], current)
	when := func(name string) int64 {
		if name == current {
			return 1<<63 - 1
		}
		t, _ := strconv.ParseInt(conf.snapshots[name].values["snaptime"], 10, 64)
		return t
	}
	byTime := func(a, b string) int { return cmp.Or(cmp.Compare(when(a), when(b)), strings.Compare(a, b)) }
	var show func(name, indent string)
	show = func(name, indent string) {
		label, date, desc := "current", "", "You are here!"
		if name != current {
			label, date = name, time.Unix(when(name), 0).Format(time.DateTime)
			if desc, _, _ = strings.Cut(conf.snapshots[name].values["description"], "\n"); desc == "" {
				desc = "no-description"
			}
		}
		fmt.Fprintf(c.stdout, "%s`-> %-*s %-23s %s\n", indent, 27-len(indent), label, date, desc)
		next := children[name]
		slices.SortFunc(next, byTime)
		for _, n := range next {
			show(n, indent+" ")
		}
	}
	roots := children[""]
	slices.SortFunc(roots, byTime)
	for _, r := range roots {
		show(r, "")
	}
	return nil
}

// copyConfig is what a snapshot records of a configuration, and a rollback takes from it: not
// the description, which is the container's or the snapshot's own.
func copyConfig(from section) section {
	s := from.clone()
	for k := range s.values {
		if strings.HasPrefix(k, "unused") ||
			slices.Contains([]string{"snapstate", "snaptime", "lock", "description"}, k) {
			delete(s.values, k)
		}
	}
	return s
}

func (c *call) snapshot() error {
	name := c.p["snapname"]
	if name == "current" || name == "vzdump" {
		return die(255, "unable to use snapshot name '%s' (reserved name)", name)
	}
	return inWorker(c.takeSnapshot(name))
}

func (c *call) takeSnapshot(name string) error {
	var disks []volume
	err := c.edit(c.vmid, func(conf *config) error {
		if conf.isTemplate() {
			return die(255, "you can't take a snapshot if it's a template")
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		if conf.snapshots[name] != nil {
			return die(255, "snapshot name '%s' already used", name)
		}
		for _, m := range conf.mounts() {
			if m.kind() != "volume" {
				return die(255, "snapshot feature is not available")
			}
			v, err := c.volume(m.volume())
			if err != nil {
				return err
			}
			if !v.snapshots() {
				return die(255, "snapshot feature is not available")
			}
			disks = append(disks, v)
		}
		s := copyConfig(conf.section)
		s.values["snapstate"] = "prepare"
		s.values["snaptime"] = strconv.FormatInt(time.Now().Unix(), 10)
		if d := c.p["description"]; d != "" {
			s.values["description"] = d
		}
		conf.snapshots[name] = &s
		conf.values["lock"] = "snapshot"
		return nil
	})
	if err != nil {
		return err
	}
	done, err := c.copyToSnapshot(name, disks)
	c.calm()
	if err != nil {
		fmt.Fprintln(c.stdout, "snapshot create failed: starting cleanup")
		if e := c.deleteSnapshot(name, "snapshot", true, done); e != nil {
			fmt.Fprintln(c.stdout, e)
		}
		return err
	}
	return c.edit(c.vmid, func(conf *config) error {
		if conf.values["lock"] != "snapshot" {
			return die(255, "missing snapshot lock")
		}
		s := conf.snapshots[name]
		if s == nil {
			return die(255, "snapshot '%s' does not exist", name)
		}
		if s.values["snapstate"] != "prepare" {
			return die(255, "wrong snapshot state")
		}
		delete(s.values, "snapstate")
		delete(conf.values, "lock")
		conf.values["parent"] = name
		return nil
	})
}

// copyToSnapshot returns the volumes that are in the snapshot now.
func (c *call) copyToSnapshot(name string, disks []volume) (done []volume, err error) {
	if c.running() {
		if err := c.backend.freeze(c.vmid, true); err != nil {
			return nil, err
		}
		defer c.backend.freeze(c.vmid, false)
	}
	for _, v := range disks {
		if err := c.fault(); err != nil {
			return done, err
		}
		if err := c.copyTree(v.dir(), v.snapshotDir(name)); err != nil {
			return done, err
		}
		done = append(done, v)
	}
	return done, nil
}

func (v volume) removeSnapshot(name string) error {
	dir := v.snapshotDir(name)
	if _, err := os.Stat(dir); err != nil {
		return workerDie("command 'btrfs subvolume delete -- %s' failed: exit code 1", dir)
	}
	err := os.RemoveAll(dir)
	os.Remove(filepath.Dir(dir)) // once empty
	return err
}

func (c *call) delsnapshot() error {
	name := c.p["snapname"]
	return inWorker(func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		s := conf.snapshots[name]
		if s == nil {
			return die(255, "snapshot '%s' does not exist", name)
		}
		if err := c.setLock(c.vmid, "snapshot-delete"); err != nil {
			return err
		}
		var disks []volume
		for _, id := range s.volumes() {
			v, err := c.volume(id)
			if err != nil {
				return err
			}
			disks = append(disks, v)
		}
		return c.deleteSnapshot(name, "snapshot-delete", c.p.bool("force"), disks)
	}())
}

// deleteSnapshot deletes a snapshot and, of its volumes, those that are named, under a lock that
// is there already. Each step is stored, so that what is left of a deletion that stopped can be
// deleted again.
func (c *call) deleteSnapshot(name, lock string, force bool, disks []volume) error {
	edit := func(change func(conf *config, s *section)) error {
		return c.edit(c.vmid, func(conf *config) error {
			if conf.values["lock"] != lock {
				return die(255, "encountered invalid lock, expected '%s'", lock)
			}
			s := conf.snapshots[name]
			if s == nil {
				return die(255, "snapshot '%s' does not exist", name)
			}
			if conf.isTemplate() {
				return die(255, "you can't delete a snapshot if vm is a template")
			}
			change(conf, s)
			return nil
		})
	}
	if err := edit(func(_ *config, s *section) { s.values["snapstate"] = "delete" }); err != nil {
		return err
	}
	var gone []string
	for _, v := range disks {
		err := c.fault()
		if err == nil {
			err = v.removeSnapshot(name)
		}
		switch {
		case err == nil:
			gone = append(gone, v.String())
		case !force, errors.Is(err, errInterrupted):
			return err
		default:
			fmt.Fprintln(c.stdout, err)
		}
		if force {
			continue
		}
		if err := edit(func(_ *config, s *section) {
			for _, m := range s.mounts() {
				if m.volume() == v.String() {
					delete(s.values, m.key)
					s.addUnused(m.volume())
				}
			}
		}); err != nil {
			return err
		}
	}
	return edit(func(conf *config, s *section) {
		relink := func(values map[string]string) {
			if values["parent"] != name {
				return
			}
			delete(values, "parent")
			if p := s.values["parent"]; p != "" {
				values["parent"] = p
			}
		}
		for _, other := range conf.snapshots {
			relink(other.values)
		}
		relink(conf.values)
		delete(conf.snapshots, name)
		delete(conf.values, "lock")
		for _, id := range gone {
			conf.addUnused(id)
		}
	})
}

func (c *call) rollback() error {
	err := c.rollBack(c.p["snapname"])
	if err == nil && c.p.bool("start") {
		err = c.nested((*call).start)
	}
	return inWorker(err)
}

func (c *call) rollBack(name string) error {
	var disks []volume
	err := c.edit(c.vmid, func(conf *config) error {
		if conf.isTemplate() {
			return die(255, "you can't rollback if vm is a template")
		}
		s := conf.snapshots[name]
		if s == nil {
			return die(255, "snapshot '%s' does not exist", name)
		}
		if state := s.values["snapstate"]; state != "" {
			return die(255, "unable to rollback to incomplete snapshot (snapstate = %s)", state)
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		for _, id := range s.volumes() {
			v, err := c.volume(id)
			if err != nil {
				return err
			}
			disks = append(disks, v)
		}
		if c.running() {
			if err := c.backend.stop(c.vmid); err != nil {
				return err
			}
		}
		conf.values["lock"] = "rollback"
		return nil
	})
	if err != nil {
		return err
	}
	// Whatever fails from here on leaves the lock.
	for _, v := range disks {
		if err := c.fault(); err != nil {
			return err
		}
		if err := c.copyTree(v.snapshotDir(name), v.dir()); err != nil {
			return err
		}
	}
	return c.edit(c.vmid, func(conf *config) error {
		if conf.values["lock"] != "rollback" {
			return die(255, "got wrong lock")
		}
		s := conf.snapshots[name]
		head := copyConfig(*s)
		for k, v := range conf.values {
			if k == "description" || strings.HasPrefix(k, "unused") {
				head.values[k] = v
			}
		}
		head.values["parent"] = name
		old := conf.volumes()
		conf.section, conf.pending = head, newSection()
		for _, v := range old {
			if !slices.Contains(conf.volumes(), v) {
				conf.addUnused(v)
			}
		}
		return nil
	})
}
