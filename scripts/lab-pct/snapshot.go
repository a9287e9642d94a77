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
		if strings.HasPrefix(k, "unused") || slices.Contains([]string{"snapstate", "snaptime", "lock", "description"}, k) {
			delete(s.values, k)
		}
	}
	return s
}

func (c *call) snapshot() error {
	name := c.p["snapname"]
	if name == "current" {
		return die(255, "unable to use snapshot name 'current' (reserved name)")
	}
	if name == "vzdump" {
		return die(255, "unable to use snapshot name 'vzdump' (reserved name)")
	}
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
			if v.kind != "btrfs" {
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
		return inWorker(err)
	}
	err = c.copyToSnapshot(name, disks)
	c.calm()
	if err != nil {
		removeSnapshot(name, disks)
	}
	if e := c.edit(c.vmid, func(conf *config) error {
		delete(conf.values, "lock")
		if err != nil {
			delete(conf.snapshots, name)
			return nil
		}
		delete(conf.snapshots[name].values, "snapstate")
		conf.values["parent"] = name
		return nil
	}); err == nil {
		err = e
	}
	return inWorker(err)
}

func (c *call) copyToSnapshot(name string, disks []volume) error {
	if err := c.fault(); err != nil {
		return err
	}
	if c.running() {
		if err := c.backend.freeze(c.vmid, true); err != nil {
			return err
		}
		defer c.backend.freeze(c.vmid, false)
	}
	for _, v := range disks {
		if err := c.copyTree(v.dir(), v.snapshotDir(name)); err != nil {
			return err
		}
	}
	return nil
}

func removeSnapshot(name string, disks []volume) error {
	var errs []error
	for _, v := range disks {
		errs = append(errs, os.RemoveAll(v.snapshotDir(name)))
		os.Remove(filepath.Dir(v.snapshotDir(name))) // once empty
	}
	return errors.Join(errs...)
}

func (c *call) delsnapshot() error {
	name := c.p["snapname"]
	return inWorker(c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		s := conf.snapshots[name]
		if s == nil {
			return die(255, "snapshot '%s' does not exist", name)
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		if err := c.fault(); err != nil {
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
		if err := removeSnapshot(name, disks); err != nil && !c.p.bool("force") {
			return workerDie("%v", err)
		}
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
		return c.save(conf)
	}))
}

func (c *call) rollback() error {
	name := c.p["snapname"]
	var disks []volume
	err := c.edit(c.vmid, func(conf *config) error {
		if conf.isTemplate() {
			return die(255, "you can't rollback if vm is a template")
		}
		s := conf.snapshots[name]
		if s == nil {
			return die(255, "snapshot '%s' does not exist", name)
		}
		if s.values["snapstate"] != "" {
			return die(255, "unable to rollback to incomplete snapshot (snapstate = %s)", s.values["snapstate"])
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
		return inWorker(err)
	}
	if err := c.fault(); err != nil {
		return err // the real one leaves the lock, too
	}
	for _, v := range disks {
		if err := c.copyTree(v.snapshotDir(name), v.dir()); err != nil {
			return inWorker(err)
		}
	}
	err = c.edit(c.vmid, func(conf *config) error {
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
	if err == nil && c.p.bool("start") {
		err = c.locked(c.vmid, func() error { return c.startLocked(false) })
	}
	return inWorker(err)
}
