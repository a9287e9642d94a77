package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func (c *call) load() (*config, error) { return c.lab.load(c.vmid) }

func (c *call) running() bool { return c.backend.running(c.vmid) }

// status, list, config, pending, listsnapshot: they only read.

func (c *call) status() error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	if err := c.fault(); err != nil {
		return inWorker(err)
	}
	status := "stopped"
	pid := c.backend.pid(c.vmid)
	if pid != 0 {
		status = "running"
	}
	if !c.p.bool("verbose") {
		fmt.Fprintf(c.stdout, "status: %s\n", status)
		return nil
	}
	_, name := conf.hostname()
	mib := func(key string) string {
		n, err := strconv.ParseInt(conf.values[key], 10, 64)
		if err != nil {
			n = 512
		}
		return strconv.FormatInt(n<<20, 10)
	}
	stat := map[string]string{
		"cpus": conf.values["cores"], "disk": "0", "diskread": "0", "diskwrite": "0", "maxdisk": "0",
		"maxmem": mib("memory"), "maxswap": mib("swap"), "mem": "0", "name": name, "netin": "0", "netout": "0",
		"status": status, "swap": "0", "type": "lxc", "uptime": "0", "vmid": strconv.Itoa(c.vmid),
	}
	for _, m := range conf.mounts() {
		if m.key == "rootfs" {
			stat["maxdisk"] = strconv.FormatInt(parseSize(m.values["size"]), 10)
		}
	}
	if pid != 0 {
		stat["pid"] = strconv.Itoa(pid)
		if fi, err := os.Stat("/proc/" + stat["pid"]); err == nil {
			stat["uptime"] = strconv.Itoa(int(time.Since(fi.ModTime()).Seconds()))
		}
	}
	for _, k := range []string{"lock", "tags"} {
		if v := conf.values[k]; v != "" {
			stat[k] = v
		}
	}
	for _, k := range slices.Sorted(maps.Keys(stat)) {
		if stat[k] != "" {
			fmt.Fprintf(c.stdout, "%s: %s\n", k, stat[k])
		}
	}
	return nil
}

func (c *call) list() error {
	files, err := filepath.Glob(filepath.Join(c.dir, "pve", "lxc", "*.conf"))
	if err != nil {
		return die(255, "%v", err)
	}
	var ids []int
	for _, f := range files {
		if id, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(f), ".conf")); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	const row = "%-10s %-10s %-12s %-20s\n"
	for i, id := range ids {
		conf, err := c.lab.load(id)
		if err != nil {
			return err
		}
		if i == 0 {
			fmt.Fprintf(c.stdout, row, "VMID", "Status", "Lock", "Name")
		}
		status := "stopped"
		if c.backend.running(id) {
			status = "running"
		}
		_, name := conf.hostname()
		fmt.Fprintf(c.stdout, row, strconv.Itoa(id), status, conf.values["lock"], name)
	}
	return nil
}

func (c *call) config() error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	if err := c.fault(); err != nil {
		return inWorker(err)
	}
	s := conf.section
	if name := c.p["snapshot"]; name != "" {
		if c.p.bool("current") {
			return c.cmd.invalid(map[string]string{"snapshot": "cannot use 'snapshot' parameter with 'current'"})
		}
		if conf.snapshots[name] == nil {
			return die(255, "snapshot '%s' does not exist", name)
		}
		s = *conf.snapshots[name]
	} else if !c.p.bool("current") {
		s = s.clone()
		for k, v := range conf.pending.values {
			s.values[k] = v
		}
		for _, k := range conf.pendingDeletes() {
			delete(s.values, k)
		}
		delete(s.values, "delete")
	}
	for _, k := range slices.Sorted(maps.Keys(s.values)) {
		v := s.values[k]
		if k == "description" {
			v = encodeText(v)
		}
		fmt.Fprintf(c.stdout, "%s: %s\n", k, v)
	}
	for _, r := range s.raw {
		fmt.Fprintf(c.stdout, "%s: %s\n", r.key, r.value)
	}
	return nil
}

func (c *call) pending() error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	deleted := conf.pendingDeletes()
	keys := maps.Clone(conf.values)
	maps.Copy(keys, conf.pending.values)
	delete(keys, "delete")
	text := func(k, v string) string {
		if k == "description" {
			v = encodeText(v)
		}
		return v
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		cur, has := conf.values[k]
		next, queued := conf.pending.values[k]
		switch {
		case has && slices.Contains(deleted, k):
			fmt.Fprintf(c.stdout, "del %s: %s\n", k, text(k, cur))
			continue
		case has:
			fmt.Fprintf(c.stdout, "cur %s: %s\n", k, text(k, cur))
		}
		if queued {
			fmt.Fprintf(c.stdout, "new %s: %s\n", k, text(k, next))
		}
	}
	return nil
}

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
		slices.SortFunc(next, func(a, b string) int {
			if when(a) < when(b) || when(a) == when(b) && a > b {
				return -1
			}
			return 1
		})
		for _, n := range next {
			show(n, indent+" ")
		}
	}
	roots := children[""]
	slices.SortFunc(roots, func(a, b string) int {
		if when(a) < when(b) {
			return -1
		}
		return 1
	})
	for _, r := range roots {
		show(r, "")
	}
	return nil
}

func (c *call) unlock() error {
	return c.edit(c.vmid, func(conf *config) error {
		if conf.values["lock"] == "" {
			return die(255, "no lock found trying to remove any lock")
		}
		delete(conf.values, "lock")
		return nil
	})
}

// removeLock takes a lock off again after work; another lock stays.
func (l *lab) removeLock(vmid int, lock string) error {
	return l.edit(vmid, func(conf *config) error {
		if conf.values["lock"] != lock {
			return die(255, "no lock found trying to remove '%s' lock", lock)
		}
		delete(conf.values, "lock")
		return nil
	})
}

func (c *call) set() error {
	p := maps.Clone(c.p)
	delete(p, "vmid")
	if len(p) == 0 {
		return die(255, "no options specified")
	}
	deletes, reverts, digest := splitList(p["delete"]), splitList(p["revert"]), p["digest"]
	delete(p, "delete")
	delete(p, "revert")
	delete(p, "digest")
	for _, k := range deletes {
		o := c.cmd.options[k]
		if o == nil || slices.Contains([]string{"delete", "digest", "revert", "vmid"}, k) {
			return c.cmd.invalid(map[string]string{"delete": fmt.Sprintf("unknown option '%s'", k)})
		}
		if p.has(k) {
			return c.cmd.invalid(map[string]string{"delete": fmt.Sprintf("unable to use '-%s' and '-delete %s' at the same time", k, k)})
		}
	}
	return c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		if digest != "" && digest != conf.digest {
			return die(255, "detected modified configuration - file changed by other user? Try again.")
		}
		running := c.running()
		failed, err := c.change(conf, running, p, deletes, reverts)
		if err != nil {
			return err
		}
		if err := c.save(conf); err != nil {
			return err
		}
		// From here on the change is stored, whatever happens.
		if err := c.fault(); err != nil {
			return die(2, "bridge 'vmbr0' does not exist")
		}
		if err := c.backend.writeConfig(conf); err != nil {
			return err
		}
		if len(failed) > 0 {
			return c.cmd.invalid(failed)
		}
		return nil
	})
}

// change queues changes of a configuration and applies those that can be applied now. failed
// says by option what could not be applied.
func (c *call) change(conf *config, running bool, set params, deletes, reverts []string) (failed map[string]string, err error) {
	for _, k := range reverts {
		delete(conf.pending.values, k)
		conf.unqueueDelete(k)
	}
	touched := make(map[string]bool)
	for _, k := range deletes {
		_, has := conf.values[k]
		_, queued := conf.pending.values[k]
		if !has && !queued {
			fmt.Fprintf(c.stderr, "cannot delete '%s' - not set in current configuration!\n", k)
			continue
		}
		switch {
		case k == "memory" || k == "rootfs" || k == "ostype":
			return nil, die(255, "unable to delete required option '%s'", k)
		case k == "unprivileged":
			return nil, die(255, "unable to delete read-only option: '%s'", k)
		case (strings.HasPrefix(k, "mp") || strings.HasPrefix(k, "unused")) && conf.values["protection"] == "1":
			return nil, die(255, "can't remove CT %d drive '%s' - protection mode enabled", conf.vmid, k)
		}
		touched[k] = true
		delete(conf.pending.values, k)
		conf.setPendingDeletes(append(conf.pendingDeletes(), k))
	}
	for _, k := range slices.Sorted(maps.Keys(set)) {
		v := set[k]
		switch {
		case mountKeyRE.MatchString(k):
			if conf.values["protection"] == "1" {
				return nil, die(255, "can't update CT %d drive '%s' - protection mode enabled", conf.vmid, k)
			}
			m, err := parseMount(k, v)
			if err != nil {
				return nil, die(255, "%v", err)
			}
			if m.kind() == "volume" {
				sid, _, ok := strings.Cut(m.volume(), ":")
				if !ok {
					return nil, die(255, "unable to parse volume ID '%s'", m.volume())
				}
				s, err := c.storage(sid)
				if err != nil {
					return nil, err
				}
				if !s.holds("rootdir") {
					return nil, die(255, "storage '%s' does not allow content type 'rootdir' (Container)", sid)
				}
			}
		case k == "unprivileged":
			return nil, die(255, "unable to modify read-only option: '%s'", k)
		case k == "nameserver" || k == "searchdomain":
			v = strings.Join(splitList(v), " ")
		case k == "tags":
			v = uniqueTags(v)
		case k == "hookscript":
			if err := c.checkHookscript(v); err != nil {
				return nil, err
			}
		case strings.HasPrefix(k, "dev"):
			dev, err := parseProperties("dev", k, v)
			if err != nil {
				return nil, die(255, "%v", err)
			}
			fi, err := os.Stat(dev["path"])
			if err != nil {
				return nil, die(255, "Device %s does not exist", dev["path"])
			}
			if fi.Mode()&os.ModeDevice == 0 {
				return nil, die(255, "%s is not a device", dev["path"])
			}
		}
		touched[k] = true
		conf.pending.values[k] = v
		conf.unqueueDelete(k)
	}
	conf.cleanPending()
	return c.apply(conf, running, func(k string) bool { return touched[k] }), nil
}

func (c *call) checkHookscript(id string) error {
	sid, name, _ := strings.Cut(id, ":")
	s, err := c.storage(sid)
	if err != nil {
		return err
	}
	rel, ok := strings.CutPrefix(name, "snippets/")
	if !ok {
		return die(255, "'%s' is not in the snippets directory", id)
	}
	fi, err := os.Stat(filepath.Join(s.path, "snippets", rel))
	if err != nil {
		return die(255, "script '%s' does not exist", id)
	}
	if fi.Mode()&0o111 == 0 {
		return die(255, "script '%s' is not executable", id)
	}
	return nil
}

// live are the options whose change a running container needs nothing for.
var live = []string{"cores", "description", "hookscript", "hostname", "lock", "onboot", "protection", "startup", "tags"}

// errQueued marks a change that waits for the next start.
var errQueued = errors.New("queued")

// apply moves queued changes into the head of the configuration: all that are selected for a
// stopped container, those that can be made live for a running one.
func (c *call) apply(conf *config, running bool, selected func(key string) bool) (failed map[string]string) {
	failed = make(map[string]string)
	note := func(k string, err error) {
		if errors.Is(err, errQueued) {
			return
		}
		if running {
			failed[k] = fmt.Sprintf("unable to hotplug %s: %v\n", k, err)
			return
		}
		failed[k] = fmt.Sprintf("unable to apply pending change %s : %v\n", k, err)
		fmt.Fprint(c.stderr, failed[k])
	}
	for _, k := range conf.pendingDeletes() {
		if !selected(k) {
			continue
		}
		if err := c.applyDelete(conf, running, k); err != nil {
			note(k, err)
			continue
		}
		delete(conf.values, k)
		conf.unqueueDelete(k)
	}
	for _, k := range slices.Sorted(maps.Keys(conf.pending.values)) {
		if k == "delete" || !selected(k) {
			continue
		}
		v, err := c.applyValue(conf, running, k, conf.pending.values[k])
		if err != nil {
			note(k, err)
			continue
		}
		conf.values[k] = v
		delete(conf.pending.values, k)
	}
	return failed
}

func (c *call) applyDelete(conf *config, running bool, k string) error {
	old := conf.values[k]
	switch {
	case strings.HasPrefix(k, "unused"):
		delete(conf.values, k)
		defer func() { conf.values[k] = old }()
		if conf.inUse(old) {
			return nil
		}
		v, err := c.volume(old)
		if err != nil {
			return err
		}
		return v.remove()
	case running && slices.Contains(live, k):
		return nil
	case running && (k == "swap" || k == "cpulimit" || k == "cpuunits" || strings.HasPrefix(k, "net")):
		return c.backend.hotplug(conf, k, "")
	case running:
		return errQueued
	case mountKeyRE.MatchString(k):
		m, err := parseMount(k, old)
		if err != nil {
			return err
		}
		delete(conf.values, k)
		defer func() { conf.values[k] = old }()
		if m.kind() == "volume" && !conf.inUse(m.volume()) {
			conf.addUnused(m.volume())
		}
	}
	return nil
}

func (c *call) applyValue(conf *config, running bool, k, v string) (string, error) {
	old, had := conf.values[k]
	switch {
	case running && slices.Contains(live, k):
		return v, nil
	case strings.HasPrefix(k, "net"):
		v, err := canonicalNet(v, false)
		if err == nil && running {
			err = c.backend.hotplug(conf, k, v)
		}
		return v, err
	case strings.HasPrefix(k, "mp"):
		if running && had {
			return "", errQueued
		}
		m, err := parseMount(k, v)
		if err != nil {
			return "", err
		}
		disk, made, err := c.allocate(m, conf.vmid)
		if err != nil {
			return "", err
		}
		if running {
			if err := c.backend.hotplug(conf, k, m.String()); err != nil {
				if made {
					disk.remove()
				}
				return "", err
			}
		}
		if had {
			delete(conf.values, k)
			if m, err := parseMount(k, old); err == nil && m.kind() == "volume" && !conf.inUse(m.volume()) {
				conf.addUnused(m.volume())
			}
		}
		return m.String(), nil
	case running && (k == "memory" || k == "swap" || k == "cpulimit" || k == "cpuunits"):
		return v, c.backend.hotplug(conf, k, v)
	case running:
		return "", errQueued
	}
	return v, nil
}

func (c *call) create() error {
	if _, err := os.Stat(c.confPath(c.vmid)); err == nil {
		return die(255, "CT %d already exists on node '%s'", c.vmid, c.node)
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
		case slices.Contains([]string{"vmid", "ostemplate", "storage", "pool", "password", "ssh-public-keys", "start", "force",
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
			return c.cmd.invalid(map[string]string{"storage": fmt.Sprintf("storage '%s' does not support container directories", sid)})
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
		for _, v := range made {
			v.remove()
		}
		os.Remove(c.confPath(c.vmid))
		os.RemoveAll(c.backend.dir(c.vmid))
		return workerDie("unable to create CT %d - %v", c.vmid, err)
	}
	warned := c.warnNesting(conf)
	if c.p.bool("start") {
		if err := c.locked(c.vmid, func() error { return c.startLocked(false) }); err != nil {
			return inWorker(err)
		}
	}
	c.taskWarnings(warned)
	return nil
}

func (c *call) storageID() string {
	if s := c.p["storage"]; s != "" {
		return s
	}
	return "local"
}

// createLocked reserves an ID with a configuration that holds nothing but the lock.
func (c *call) createLocked(vmid int) error {
	return c.locked(vmid, func() error {
		if _, err := os.Stat(c.confPath(vmid)); err == nil {
			return die(255, "CT %d already exists on node '%s'", vmid, c.node)
		}
		conf := newConfig(vmid)
		conf.values["lock"] = "create"
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
		"arch": "amd64", "hostname": "CT" + strconv.Itoa(c.vmid), "memory": "512", "swap": "512", "ostype": detectOS(root),
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
	return c.backend.credentials(root, c.p["password"], c.p["ssh-public-keys"])
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

// warnNesting prints the warning about guests that want nesting.
func (c *call) warnNesting(conf *config) bool {
	root, err := c.rootfs(conf)
	if err != nil {
		return false
	}
	v := systemdVersion(root)
	f, err := parseProperties("features", "features", conf.values["features"])
	if v < 232 || err != nil || f["nesting"] == "1" {
		return false
	}
	fmt.Fprintf(c.stdout, "WARN: Systemd %d detected. You may need to enable nesting.\n", v)
	return true
}

func (c *call) taskWarnings(warned bool) {
	if warned {
		fmt.Fprintln(c.stderr, "Task finished with 1 warning(s)!")
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
	var src *config
	err := c.edit(c.vmid, func(conf *config) error {
		if err := conf.checkLock(); err != nil {
			return err
		}
		conf.values["lock"] = "disk"
		src = conf
		return nil
	})
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
		err = c.locked(newid, func() error { return c.save(conf) })
	}
	if err != nil {
		unlock()
		forget()
		return err
	}

	var made []volume
	err = c.cloneDisks(conf, disks, full, snap, &made)
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
	if err := c.removeLock(newid, "create"); err != nil {
		return inWorker(err)
	}
	c.taskWarnings(c.warnNesting(conf))
	return nil
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
	if full {
		fmt.Fprintf(c.stdout, "creating a clone of container %d with ID %d\n", c.vmid, conf.vmid)
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
		to, err := s.newVolume(conf.vmid)
		if err != nil {
			return err
		}
		*made = append(*made, to)
		if err := c.copyTree(from, to.dir()); err != nil {
			return err
		}
		m.values["volume"] = to.String()
		conf.values[m.key] = m.String()
		if err := c.locked(conf.vmid, func() error { return c.save(conf) }); err != nil {
			return err
		}
	}
	if err := c.fault(); err != nil {
		return err
	}
	root, err := c.rootfs(conf)
	if err != nil {
		return err
	}
	return clearIdentity(root)
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o640)
}

func (c *call) destroy() error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	if err := conf.checkLock(); err != nil {
		return err
	}
	if conf.values["protection"] == "1" {
		return die(255, "can't remove CT %d - protection mode enabled", c.vmid)
	}
	if c.running() && !c.p.bool("force") {
		return die(255, "unable to destroy CT %d - container is running", c.vmid)
	}
	return inWorker(c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		if err := conf.checkLock(); err != nil {
			return err
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
		for _, id := range c.containerVolumes(conf) {
			v, err := c.volume(id)
			if err != nil {
				return err
			}
			if v.owner != c.vmid {
				continue
			}
			if err := v.remove(); err != nil {
				return workerDie("%v", err)
			}
			if err := os.RemoveAll(filepath.Join(v.path, "snapshots", strconv.Itoa(c.vmid))); err != nil {
				return workerDie("%v", err)
			}
		}
		if c.p.bool("purge") {
			fmt.Fprintf(c.stdout, "purging CT %d from related configurations..\n", c.vmid)
		}
		if err := os.RemoveAll(c.backend.dir(c.vmid)); err != nil {
			return workerDie("%v", err)
		}
		os.Remove(c.firewallPath(c.vmid))
		if err := os.Remove(c.confPath(c.vmid)); err != nil {
			return workerDie("%v", err)
		}
		return nil
	}))
}

func (c *call) start() error {
	if c.running() {
		return die(255, "CT %d already running", c.vmid)
	}
	return inWorker(c.locked(c.vmid, func() error { return c.startLocked(c.p.bool("skiplock")) }))
}

// startLocked starts the container, pending changes first.
func (c *call) startLocked(skiplock bool) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	if !skiplock {
		if err := conf.checkLock(); err != nil {
			return err
		}
	}
	if conf.isTemplate() {
		return die(255, "you can't start a CT if it's a template")
	}
	if len(conf.pending.values) > 0 {
		c.apply(conf, false, func(string) bool { return true })
		if err := c.save(conf); err != nil {
			return err
		}
	}
	if err := c.backend.writeConfig(conf); err != nil {
		return err
	}
	if h := conf.values["hookscript"]; h != "" {
		if err := c.hook(h, "pre-start"); err != nil {
			return err
		}
	}
	warned := c.warnNesting(conf)
	err = c.fault()
	if err == nil {
		err = c.backend.start(conf)
	}
	if errors.Is(err, errInterrupted) {
		return err
	}
	if err != nil {
		fmt.Fprintf(c.stdout, "lxc-start: %d: %v\n", c.vmid, err)
		return die(255, "startup for container '%d' failed", c.vmid)
	}
	c.taskWarnings(warned)
	return nil
}

func (c *call) hook(id, phase string) error {
	sid, name, _ := strings.Cut(id, ":")
	s, err := c.storage(sid)
	if err != nil {
		return err
	}
	path := filepath.Join(s.path, filepath.FromSlash(name))
	if err := c.tool(path, strconv.Itoa(c.vmid), phase); err != nil {
		return die(255, "hookscript error for %d on %s: %v", c.vmid, phase, err)
	}
	return nil
}

func (c *call) stop() error {
	if !c.running() {
		return die(255, "CT %d not running", c.vmid)
	}
	if err := c.fault(); err != nil {
		return err
	}
	return inWorker(c.locked(c.vmid, func() error { return c.backend.stop(c.vmid) }))
}

func (c *call) shutdown() error {
	if !c.running() {
		return die(255, "CT %d not running", c.vmid)
	}
	timeout := 60
	if c.p.has("timeout") {
		timeout, _ = strconv.Atoi(c.p["timeout"])
	}
	if err := c.fault(); err != nil {
		return workerDie("container did not stop")
	}
	return inWorker(c.locked(c.vmid, func() error {
		err := c.backend.shutdown(c.vmid, timeout)
		if err == nil || errors.Is(err, errInterrupted) {
			return err
		}
		if c.p.bool("forceStop") {
			return c.backend.stop(c.vmid)
		}
		fmt.Fprintln(c.stdout, err)
		return workerDie("container did not stop")
	}))
}

func (c *call) reboot() error {
	if !c.running() {
		return die(255, "VM %d not running", c.vmid)
	}
	timeout := 60
	if c.p.has("timeout") {
		timeout, _ = strconv.Atoi(c.p["timeout"])
	}
	return inWorker(c.locked(c.vmid, func() error {
		if err := c.backend.shutdown(c.vmid, timeout); err != nil {
			if errors.Is(err, errInterrupted) {
				return err
			}
			if err := c.backend.stop(c.vmid); err != nil {
				return err
			}
		}
		// The start that follows is another worker's: all that is told of its failure is this.
		if err := c.startLocked(false); err != nil {
			return workerDie("startup for container '%d' failed", c.vmid)
		}
		return nil
	}))
}

func (c *call) exec() error {
	if _, err := c.load(); err != nil {
		return err
	}
	if !c.running() {
		return die(255, "container '%d' not running!", c.vmid)
	}
	if len(c.extra) == 0 {
		return die(255, "missing command at /usr/share/perl5/PVE/CLI/pct.pm line 246.")
	}
	if err := c.fault(); err != nil {
		return inWorker(err)
	}
	return c.backend.exec(c.vmid, !c.p.has("keep-env") || c.p.bool("keep-env"), c.extra)
}

// ownership is what push and pull may be told about the file they write.
type ownership struct {
	perms    string // octal, "" for none
	uid, gid string
}

func (c *call) ownership() (o ownership, err error) {
	if p := c.p["perms"]; p != "" {
		if !strings.HasPrefix(p, "0") {
			p = "0" + p
		}
		n, err := strconv.ParseUint(p, 0, 32)
		if err != nil {
			return o, workerDie("invalid mode: '%s'", p)
		}
		o.perms = strconv.FormatUint(n, 8)
	}
	if u := c.p["user"]; u != "" {
		o.uid = u
		if _, err := strconv.Atoi(u); err != nil {
			entry, err := user.Lookup(u)
			if err != nil {
				return o, workerDie("failed to get uid for: %s", u)
			}
			o.uid = entry.Uid
		}
	}
	if g := c.p["group"]; g != "" {
		o.gid = g
		if _, err := strconv.Atoi(g); err != nil {
			entry, err := user.LookupGroup(g)
			if err != nil {
				return o, workerDie("failed to get gid for: %s", g)
			}
			o.gid = entry.Gid
		}
	}
	return o, nil
}

func (c *call) push() error {
	if !c.running() {
		return die(255, "can only push files to a running CT")
	}
	return inWorker(c.locked(c.vmid, func() error {
		in, err := os.Open(c.p["file"])
		if err != nil {
			return workerDie("failed to open %s for reading: %s", c.p["file"], reason(err))
		}
		defer in.Close()
		o, err := c.ownership()
		if err != nil {
			return err
		}
		if err := c.fault(); err != nil {
			return err
		}
		return c.backend.push(c.vmid, in, c.p["destination"], o)
	}))
}

// pull empties the destination before it looks at the source, as the real one does.
func (c *call) pull() error {
	if !c.running() {
		return die(255, "can only pull files from a running VM at /usr/share/perl5/PVE/CLI/pct.pm line 446.")
	}
	return inWorker(c.locked(c.vmid, func() error {
		o, err := c.ownership()
		if err != nil {
			return err
		}
		dest := c.p["destination"]
		out, err := os.OpenFile(dest, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		if err != nil {
			return workerDie("failed to create file: %s: %s", dest, reason(err))
		}
		defer out.Close()
		if o.perms != "" {
			n, _ := strconv.ParseUint(o.perms, 8, 32)
			out.Chmod(fs.FileMode(n))
		}
		id := func(s string) int {
			n, err := strconv.Atoi(s)
			if err != nil {
				return -1
			}
			return n
		}
		if err := out.Chown(id(o.uid), id(o.gid)); err != nil {
			return workerDie("failed to change file owner: %s", reason(err))
		}
		if err := c.fault(); err != nil {
			return err
		}
		return c.backend.pull(c.vmid, c.p["path"], out)
	}))
}

// reason is the text of errno in C's words, which are those of Perl.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		s := errno.Error()
		return strings.ToUpper(s[:1]) + s[1:]
	}
	return err.Error()
}

func (c *call) resize() error {
	return c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		if d := c.p["digest"]; d != "" && d != conf.digest {
			return die(255, "detected modified configuration - file changed by other user? Try again.")
		}
		key := c.p["disk"]
		m, err := parseMount(key, conf.values[key])
		if err != nil {
			return die(255, "%v", err)
		}
		if m.kind() != "volume" {
			return die(255, "unable to parse volume ID '%s'", m.volume())
		}
		text, grow := strings.CutPrefix(c.p["size"], "+")
		size, old := parseSize(text), parseSize(m.values["size"])
		if grow {
			size += old
		}
		switch {
		case size < old:
			return die(255, "unable to shrink disk size")
		case size == old:
			return die(255, "disk is already at specified size")
		}
		if err := c.fault(); err != nil {
			return err
		}
		m.values["size"] = formatSize(size)
		conf.values[key] = m.String()
		return inWorker(c.save(conf))
	})
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
		if err := c.fault(); err != nil {
			return err
		}
		conf.values["template"] = "1"
		return inWorker(c.save(conf))
	})
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
