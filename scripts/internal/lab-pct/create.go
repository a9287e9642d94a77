package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func (c *call) create() error {
	if err := c.unused(c.vmid); err != nil {
		return err
	}
	if c.p.bool("restore") {
		return die(255, "ERROR: 'pct create --restore' is not part of the lab")
	}
	if pool := c.p["pool"]; pool != "" {
		return die(255, "pool '%s' does not exist", pool)
	}
	mounts, options := make(params), make(params)
	for k, v := range c.p {
		switch {
		case slices.Contains([]string{"vmid", "ostemplate", "storage", "pool", "password",
			"ssh-public-keys", "start", "force",
			"bwlimit", "ignore-unpack-errors", "ha-managed", "restore", "unique", "unprivileged"}, k):
		case strings.HasPrefix(k, "unused"):
			fmt.Fprintf(c.stderr, "ignoring '%s', cannot create/restore with unused volume\n", k)
		case mountKeyRE.MatchString(k):
			if compiled(`^\d+(?:\.\d+)?$`).MatchString(v) {
				v = c.storageID() + ":" + v
			}
			mounts[k] = v
		default:
			options[k] = v
		}
	}
	if len(mounts) > 0 && !mounts.has("rootfs") {
		return die(255, "mount points configured, but 'rootfs' not set - aborting")
	}
	if len(mounts) == 0 {
		mounts["rootfs"] = c.storageID() + ":4"
	}
	conf := newConfig(c.vmid)
	for k, v := range mounts {
		m, err := parseMount(k, v)
		if err != nil {
			return die(255, "%v", err)
		}
		if m.kind() != "volume" {
			continue
		}
		sid, _, ok := strings.Cut(m.volume(), ":")
		if !ok {
			return die(255, "unable to parse volume ID '%s'", m.volume())
		}
		s, err := c.storage(sid)
		if err != nil {
			return err
		}
		if !s.holds("rootdir") {
			return c.cmd.invalid(map[string]string{
				"storage": fmt.Sprintf("storage '%s' does not support container directories", sid),
			})
		}
	}
	if failed, err := c.change(conf, false, options, nil, nil); err != nil {
		return err
	} else if len(failed) > 0 {
		return c.cmd.invalid(failed)
	}
	if !c.p.has("unprivileged") || c.p.bool("unprivileged") {
		conf.values["unprivileged"] = "1"
	}
	if err := c.createLocked(c.vmid); err != nil {
		return err
	}
	var made []volume
	err := c.locked(c.vmid, func() error {
		err := c.fill(conf, mounts, &made)
		if err == nil {
			err = c.save(conf)
		}
		return err
	})
	if err != nil {
		c.calm()
		for _, v := range made {
			v.remove()
		}
		os.Remove(c.confPath(c.vmid))
		os.RemoveAll(c.backend.dir(c.vmid))
		return workerDie("unable to create CT %d - %v", c.vmid, err)
	}
	if c.p.bool("start") {
		if err := c.nested((*call).start); err != nil {
			return err
		}
	}
	if c.p.bool("ha-managed") {
		fmt.Fprintln(c.stdout, "Add as HA resource")
		state := "stopped"
		if c.p.bool("start") {
			state = "started"
		}
		if err := c.setResource(c.vmid, state); err != nil {
			return inWorker(err)
		}
	}
	return nil
}

func (c *call) storageID() string {
	if s := c.p["storage"]; s != "" {
		return s
	}
	return "local"
}

// unused refuses an ID that a guest of the cluster has.
func (l *lab) unused(vmid int) error {
	if _, err := os.Stat(l.confPath(vmid)); err == nil {
		return die(255, "CT %d already exists on node '%s'", vmid, l.node)
	}
	for dir, kind := range map[string]string{"qemu-server": "VM", "lxc": "CT"} {
		found, err := filepath.Glob(filepath.Join(l.dir, "pve", "nodes", "*", dir, strconv.Itoa(vmid)+".conf"))
		if err != nil {
			return die(255, "%v", err)
		}
		for _, f := range found {
			return die(255, "%s %d already exists on node '%s'", kind, vmid,
				filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return nil
}

// createLocked reserves an ID with a configuration that holds nothing but the lock.
func (c *call) createLocked(vmid int) error {
	return c.locked(vmid, func() error {
		if err := c.unused(vmid); err != nil {
			return err
		}
		conf := newConfig(vmid)
		conf.values["lock"] = "create"
		return c.save(conf)
	})
}

// saveCreated saves the configuration of a container that is still being created.
func (c *call) saveCreated(conf *config) error {
	return c.locked(conf.vmid, func() error {
		have, err := c.lab.load(conf.vmid)
		if err != nil {
			return err
		}
		if have.values["lock"] != "create" {
			return die(255, "Lost 'create' config lock, aborting.")
		}
		return c.save(conf)
	})
}

// fill makes a new container's disks and unpacks the template.
func (c *call) fill(conf *config, mounts params, made *[]volume) error {
	for _, k := range slices.Sorted(maps.Keys(mounts)) {
		m, err := parseMount(k, mounts[k])
		if err != nil {
			return err
		}
		v, isNew, err := c.allocate(m, c.vmid)
		if err != nil {
			return err
		}
		if isNew {
			*made = append(*made, v)
		}
		conf.values[k] = m.String()
	}
	if err := c.fault(); err != nil {
		return err
	}
	archive, err := c.findTemplate(c.p["ostemplate"])
	if err != nil {
		return err
	}
	root, err := c.rootfs(conf)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "extracting archive '%s'\n", archive)
	if err := c.backend.extract(archive, root); err != nil {
		return err
	}
	defaults := map[string]string{
		"arch": "amd64", "hostname": "CT" + strconv.Itoa(c.vmid), "memory": "512", "swap": "512",
		"ostype": detectOS(root),
	}
	fmt.Fprintf(c.stdout, "Detected container architecture: %s\n", defaults["arch"])
	for k, v := range defaults {
		if conf.values[k] == "" {
			conf.values[k] = v
		}
	}
	if err := clearIdentity(root); err != nil {
		return err
	}
	if err := c.backend.credentials(root, c.p["password"], c.p["ssh-public-keys"]); err != nil {
		return err
	}
	c.warnNesting(conf)
	return nil
}

// authorizeKeys lets the owners of the keys in a file log in as root; "" is no file.
func authorizeKeys(rootfs, keysFile string) error {
	if keysFile == "" {
		return nil
	}
	keys, err := os.ReadFile(keysFile)
	if err != nil {
		return workerDie("%v", err)
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return workerDie("%v", err)
	}
	defer root.Close()
	if err := root.MkdirAll("root/.ssh", 0o700); err != nil {
		return workerDie("%v", err)
	}
	if err := root.WriteFile("root/.ssh/authorized_keys", keys, 0o600); err != nil {
		return workerDie("%v", err)
	}
	return nil
}

// findTemplate finds the archive of a volume such as local:vztmpl/NAME, or of a path.
func (c *call) findTemplate(id string) (string, error) {
	path := id
	if !strings.HasPrefix(id, "/") {
		sid, name, ok := strings.Cut(id, ":")
		if !ok {
			return "", die(255, "unable to parse volume ID '%s'", id)
		}
		s, err := c.storage(sid)
		if err != nil {
			return "", err
		}
		rel, ok := strings.CutPrefix(name, "vztmpl/")
		if !ok || strings.Contains(rel, "/") {
			return "", die(255, "unable to parse directory volume name '%s'", name)
		}
		path = filepath.Join(s.path, "template", "cache", rel)
	}
	if _, err := os.Stat(path); err != nil {
		return "", die(255, "volume '%s' does not exist", id)
	}
	return path, nil
}

// rootfs is the directory of a container's root file system.
func (l *lab) rootfs(conf *config) (string, error) {
	m, err := parseMount("rootfs", conf.values["rootfs"])
	if err != nil {
		return "", die(255, "%v", err)
	}
	if m.kind() != "volume" {
		return m.volume(), nil
	}
	v, err := l.volume(m.volume())
	if err != nil {
		return "", err
	}
	return v.dir(), nil
}

// warn prints a warning that the end of the task counts.
func (l *lab) warn(format string, a ...any) {
	l.warnings++
	fmt.Fprintf(l.stdout, "WARN: "+format+"\n", a...)
}

// finish prints how many warnings a task has given.
func (l *lab) finish() {
	if l.warnings > 0 {
		fmt.Fprintf(l.stderr, "Task finished with %d warning(s)!\n", l.warnings)
	}
}

// warnNesting warns of a guest that wants nesting.
func (c *call) warnNesting(conf *config) {
	root, err := c.rootfs(conf)
	if err != nil {
		return
	}
	v := systemdVersion(root)
	f, err := parseProperties("features", "features", conf.values["features"])
	if v > 241 && err == nil && f["nesting"] != "1" {
		c.warn("Systemd %d detected. You may need to enable nesting.", v)
	}
}

func (c *call) clone() error {
	newid, _ := strconv.Atoi(c.p["newid"])
	snap, target := c.p["snapname"], c.p["storage"]
	if pool := c.p["pool"]; pool != "" {
		return die(255, "pool '%s' does not exist", pool)
	}
	if n := c.p["target"]; n != "" && n != c.node && n != "localhost" {
		return die(255, "no such cluster node '%s'", n)
	}
	if target != "" {
		s, err := c.storage(target)
		if err != nil {
			return err
		}
		if !s.holds("rootdir") {
			return die(255, "storage '%s' does not support content-type 'rootdir'", target)
		}
	}
	if err := c.setLock(c.vmid, "disk"); err != nil {
		return err
	}
	src, err := c.load()
	if err != nil {
		return err
	}
	unlock := func() {
		if err := c.removeLock(c.vmid, "disk"); err != nil {
			fmt.Fprintf(c.stderr, "Failed to remove source CT config lock - %v\n", err)
		}
	}
	if err := c.createLocked(newid); err != nil {
		unlock()
		return err
	}
	forget := func() {
		os.Remove(c.confPath(newid))
		os.Remove(c.firewallPath(newid))
	}
	conf, disks, full, err := c.cloneConfig(src, newid, snap)
	if err == nil {
		err = c.saveCreated(conf)
	}
	if err != nil {
		unlock()
		forget()
		return err
	}

	var made []volume
	err = c.cloneDisks(conf, disks, full, snap, &made)
	c.calm()
	unlock()
	if err != nil {
		for _, v := range made {
			v.remove()
		}
		forget()
		if errors.Is(err, errInterrupted) {
			err = errors.New("interrupted by signal")
		}
		return workerDie("clone failed: %v", err)
	}
	return inWorker(c.removeLock(newid, "create"))
}

// cloneConfig makes the configuration of a clone, disks still to be copied.
func (c *call) cloneConfig(src *config, newid int, snap string) (conf *config, disks []mount, full bool, err error) {
	full = !src.isTemplate()
	if c.p.has("full") {
		full = c.p.bool("full")
	}
	if err := copyFile(c.firewallPath(c.vmid), c.firewallPath(newid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, full, die(255, "%v", err)
	}
	if c.p.has("storage") && !full {
		return nil, nil, full, die(2, "parameter 'storage' not allowed for linked clones")
	}
	from := &src.section
	if snap != "" {
		if from = src.snapshots[snap]; from == nil {
			return nil, nil, full, die(2, "snapshot '%s' does not exist", snap)
		}
	}
	conf = newConfig(newid)
	conf.section = from.clone()
	for k := range conf.values {
		if strings.HasPrefix(k, "unused") {
			delete(conf.values, k)
		}
	}
	for _, m := range from.mounts() {
		if m.kind() != "volume" {
			return nil, nil, full, die(2, "unable to clone mountpoint '%s' (type %s)", m.key, m.kind())
		}
		if full && snap == "" && c.running() {
			return nil, nil, full, die(2, "Full clone of a running container is only possible from a snapshot")
		}
		v, err := c.volume(m.volume())
		if err != nil {
			return nil, nil, full, err
		}
		if !full && !v.clones(v.isBase(), snap != "") {
			return nil, nil, full, die(2, "Linked clone feature for '%s' is not available", v)
		}
		disks = append(disks, m)
		delete(conf.values, m.key)
	}
	for k, v := range conf.values {
		if strings.HasPrefix(k, "net") {
			if conf.values[k], err = canonicalNet(v, true); err != nil {
				return nil, nil, full, die(255, "%v", err)
			}
		}
	}
	for _, k := range []string{"parent", "snaptime", "snapstate", "template"} {
		delete(conf.values, k)
	}
	conf.values["lock"] = "create"
	for _, k := range []string{"hostname", "description"} {
		if v := c.p[k]; v != "" {
			conf.values[k] = v
		}
	}
	return conf, disks, full, nil
}

// cloneDisks is the long part of a clone. The source is locked only by its configuration's lock
// key, the target by its own, so that other calls see what is going on.
func (c *call) cloneDisks(conf *config, disks []mount, full bool, snap string, made *[]volume) error {
	fmt.Fprintf(c.stdout, "creating a clone of container %d with ID %d\n", c.vmid, conf.vmid)
	for _, m := range disks {
		v, err := c.volume(m.volume())
		if err == nil {
			err = v.activate(snap)
		}
		if err != nil {
			return err
		}
	}
	for _, m := range disks {
		v, err := c.volume(m.volume())
		if err != nil {
			return err
		}
		from := v.dir()
		if snap != "" {
			from = v.snapshotDir(snap)
		}
		s := v.storage
		if full {
			fmt.Fprintf(c.stdout, "create full clone of mountpoint %s (%s)\n", m.key, v)
		} else {
			fmt.Fprintf(c.stdout, "create linked clone of mount point %s (%s)\n", m.key, v)
		}
		if target := c.p["storage"]; target != "" {
			if s, err = c.storage(target); err != nil {
				return err
			}
		}
		if err := c.usable(s); err != nil {
			return err
		}
		to, err := s.newVolume(conf.vmid)
		if err != nil {
			return err
		}
		if !full && s.onBases() && snap == "" {
			to.base = v.name
			if err := os.WriteFile(to.baseFile(), []byte(v.name), 0o644); err != nil {
				return workerDie("%v", err)
			}
		}
		*made = append(*made, to)
		if err := c.fault(); err != nil {
			return err
		}
		if err := c.copyTree(from, to.dir()); err != nil {
			return err
		}
		if full {
			if err := c.printStatistics(to.dir()); err != nil {
				return err
			}
		}
		m.values["volume"] = to.String()
		conf.values[m.key] = m.String()
		if err := to.setSize(m.values["size"]); err != nil {
			return err
		}
		if err := c.saveCreated(conf); err != nil {
			return err
		}
	}
	root, err := c.rootfs(conf)
	if err != nil {
		return err
	}
	if err := clearIdentity(root); err != nil {
		return err
	}
	c.warnNesting(conf)
	return nil
}

// printStatistics prints what rsync does at the end of a copy.
func (c *call) printStatistics(dir string) error {
	var files, regular, size int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		files++
		if d.Type().IsRegular() {
			fi, err := d.Info()
			if err != nil {
				return err
			}
			regular++
			size += fi.Size()
		}
		return nil
	})
	if err != nil {
		return workerDie("%v", err)
	}
	fmt.Fprintf(c.stdout, "\nNumber of files: %d (reg: %d)\nNumber of created files: %d\nTotal file size: %d bytes\n",
		files, regular, files, size)
	fmt.Fprintf(c.stdout, "\nsent %d bytes  received %d bytes\ntotal size is %d  speedup is 1.00\n",
		size, 19*regular, size)
	return nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o640)
}

// destroyable refuses what destroy does not touch, and reports whether HA leads the container.
func (c *call) destroyable(conf *config) (configured bool, err error) {
	if conf.values["protection"] == "1" {
		return false, die(255, "can't remove CT %d - protection mode enabled", c.vmid)
	}
	if err := conf.checkLock(); err != nil {
		return false, err
	}
	all, err := c.resources()
	if err != nil {
		return false, err
	}
	_, configured = all[c.vmid]
	if configured && !c.p.bool("purge") {
		return true, die(255, "unable to remove CT %d - used in HA resources and purge parameter not set.", c.vmid)
	}
	jobs, err := os.ReadFile(filepath.Join(c.dir, "pve", "replication.cfg"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return configured, err
	}
	for _, m := range compiled(`(?m)^\S+:\s*(\d+)-(\d+)\s*$`).FindAllStringSubmatch(string(jobs), -1) {
		if m[1] == strconv.Itoa(c.vmid) && !c.p.bool("purge") {
			return configured, die(255, "There is a replication job '%s-%s' for guest '%d' - Please remove that first.",
				m[1], m[2], c.vmid)
		}
	}
	return configured, nil
}

func (c *call) destroy() error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	if _, err := c.destroyable(conf); err != nil {
		return err
	}
	if c.running() && !c.p.bool("force") {
		return die(255, "unable to destroy CT %d - container is running", c.vmid)
	}
	return inWorker(c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		configured, err := c.destroyable(conf)
		if err != nil {
			return err
		}
		if c.running() && !c.p.bool("force") {
			return die(255, "unable to destroy CT %d - container is running", c.vmid)
		}
		if err := c.fault(); err != nil {
			return err
		}
		if c.running() {
			fmt.Fprintf(c.stdout, "forced to stop CT %d before destroying!\n", c.vmid)
			if err := c.backend.stop(c.vmid); err != nil {
				return err
			}
		}
		for _, id := range conf.ownVolumes() {
			v, err := c.volume(id)
			if err != nil {
				return err
			}
			if v.owner != c.vmid {
				fmt.Fprintf(c.stdout, "ignore deletion of '%s', CT %d isn't the owner!\n", v, c.vmid)
				continue
			}
			if used, err := v.inUse(); err != nil {
				return err
			} else if used {
				return workerDie("base volume '%s' is still in use by linked clones", v.name)
			}
			if err := v.remove(); err != nil {
				return workerDie("%v", err)
			}
			if err := os.RemoveAll(filepath.Join(v.path, "snapshots", strconv.Itoa(c.vmid))); err != nil {
				return workerDie("%v", err)
			}
		}
		if c.p.bool("destroy-unreferenced-disks") {
			all, err := c.storages()
			if err != nil {
				return err
			}
			for _, s := range all {
				if err := os.RemoveAll(filepath.Join(s.path, "images", strconv.Itoa(c.vmid))); err != nil {
					return workerDie("%v", err)
				}
			}
		}
		if err := os.RemoveAll(c.backend.dir(c.vmid)); err != nil {
			return workerDie("%v", err)
		}
		// Until the end the ID stays taken.
		zombie := newConfig(c.vmid)
		zombie.values["lock"] = "destroyed"
		if err := c.save(zombie); err != nil {
			return err
		}
		os.Remove(c.firewallPath(c.vmid))
		if c.p.bool("purge") {
			fmt.Fprintf(c.stdout, "purging CT %d from related configurations..\n", c.vmid)
			if configured {
				if err := c.setResource(c.vmid, ""); err != nil {
					return err
				}
				fmt.Fprintf(c.stdout, "NOTE: removed CT %d from HA resource configuration.\n", c.vmid)
			}
		}
		if err := os.Remove(c.confPath(c.vmid)); err != nil {
			return workerDie("%v", err)
		}
		return nil
	}))
}

func (c *call) template() error {
	return c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		switch {
		case len(conf.snapshots) > 0:
			return die(255, "unable to create template, because CT contains snapshots")
		case conf.isTemplate():
			return die(255, "you can't convert a template to a template")
		case c.running():
			return die(255, "you can't convert a CT to template if the CT is running")
		}
		return inWorker(c.makeTemplate(conf))
	})
}

// makeTemplate makes the volumes those of a template, and then marks the container. Whatever stops
// it between leaves a container that is none, with volumes that cannot be made so again.
func (c *call) makeTemplate(conf *config) error {
	var disks []volume
	mounts := conf.mounts()
	for _, m := range mounts {
		if m.kind() != "volume" {
			return workerDie("Template feature is not available for '%s'", m.volume())
		}
		v, err := c.volume(m.volume())
		if err != nil {
			return err
		}
		if !v.templates() {
			return workerDie("Template feature is not available for '%s'", v)
		}
		disks = append(disks, v)
	}
	for i, m := range mounts {
		base, err := disks[i].makeBase()
		if err != nil {
			return err
		}
		m.values["volume"] = base.String()
		conf.values[m.key] = m.String()
	}
	if err := c.save(conf); err != nil {
		return err
	}
	if err := c.fault(); err != nil {
		return err
	}
	conf.values["template"] = "1"
	return c.save(conf)
}
