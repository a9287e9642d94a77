package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

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
	if err := c.manage(); err != nil {
		return err
	}
	if err := c.fault(); err != nil {
		return outside(err)
	}
	status := "stopped"
	pid := 0
	if c.running() {
		status, pid = "running", c.backend.pid(c.vmid)
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
		stat["uptime"] = strconv.Itoa(int(c.backend.uptime(c.vmid).Seconds()))
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
	if err := c.manage(); err != nil {
		return err
	}
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
	header := false
	for _, id := range ids {
		conf, err := c.lab.load(id)
		if err != nil {
			continue // destroyed meanwhile
		}
		if !header {
			fmt.Fprintf(c.stdout, row, "VMID", "Status", "Lock", "Name")
			header = true
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
		return outside(err)
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

func (c *call) unlock() error {
	return c.edit(c.vmid, func(conf *config) error {
		if conf.values["lock"] == "" {
			return die(255, "no lock found trying to remove any lock")
		}
		delete(conf.values, "lock")
		return nil
	})
}

// setLock marks a container that nothing is at work on.
func (l *lab) setLock(vmid int, lock string) error {
	return l.edit(vmid, func(conf *config) error {
		if err := conf.checkLock(); err != nil {
			return err
		}
		conf.values["lock"] = lock
		return nil
	})
}

// removeLock takes a lock off again after work; another lock stays.
func (l *lab) removeLock(vmid int, lock string) error {
	return l.edit(vmid, func(conf *config) error {
		switch conf.values["lock"] {
		case lock:
			delete(conf.values, "lock")
			return nil
		case "":
			return die(255, "no lock found trying to remove '%s' lock", lock)
		}
		return die(255, "found lock '%s' trying to remove '%s' lock", conf.values["lock"], lock)
	})
}

func (c *call) start() error {
	if c.running() {
		return die(255, "CT %d already running", c.vmid)
	}
	if managed, err := c.managed(); err != nil {
		return err
	} else if managed {
		return inWorker(c.requestStart())
	}
	return inWorker(c.locked(c.vmid, func() error { return c.startLocked(c.p.bool("skiplock")) }))
}

// startLocked starts the container, if nothing is at work on it.
func (c *call) startLocked(skiplock bool) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	if conf.isTemplate() {
		return die(255, "you can't start a CT if it's a template")
	}
	if !skiplock {
		if err := conf.checkLockBut("mounted"); err != nil {
			return err
		}
	}
	return c.boot(conf, skiplock)
}

// boot starts the container, pending changes first.
func (c *call) boot(conf *config, skiplock bool) error {
	if len(conf.pending.values) > 0 {
		c.apply(conf, false, func(string) bool { return true })
		if err := c.save(conf); err != nil {
			return err
		}
	}
	if err := c.writeConfig(conf, c.stdout); err != nil {
		return err
	}
	for _, id := range conf.volumes() {
		v, err := c.volume(id)
		if err == nil {
			err = v.activate("")
		}
		if err != nil {
			return err
		}
	}
	if h := conf.values["hookscript"]; h != "" {
		if err := c.hook(h, "pre-start"); err != nil {
			return err
		}
	}
	// The hook that LXC runs before the start.
	if err := conf.checkLockBut("mounted"); err != nil && !skiplock {
		fmt.Fprintln(c.stdout, "run_buffer: 571 Script exited with status 255")
		fmt.Fprintf(c.stdout, "lxc_init: 845 Failed to run lxc.hook.pre-start for container \"%d\"\n", c.vmid)
		return die(255, "startup for container '%d' failed", c.vmid)
	}
	err := c.fault()
	if err == nil {
		err = c.backend.start(conf)
	}
	if errors.Is(err, errInterrupted) {
		return err
	}
	c.warnNesting(conf)
	if err != nil {
		fmt.Fprintf(c.stdout, "lxc-start: %d: %v\n", c.vmid, err)
		return die(255, "startup for container '%d' failed", c.vmid)
	}
	return nil
}

// writeConfig writes LXC's own configuration, and a warning about what the raw lines override.
func (c *call) writeConfig(conf *config, warnings io.Writer) error {
	features, _ := parseProperties("features", "features", conf.values["features"])
	var overridden []string
	for _, f := range []string{"fuse", "nesting", "mount"} {
		if v := features[f]; v != "" && v != "0" {
			overridden = append(overridden, "features:"+f)
		}
	}
	own := slices.ContainsFunc(conf.raw, func(r rawLine) bool { return r.key == "lxc.apparmor.profile" })
	if own && len(overridden) > 0 {
		fmt.Fprintf(warnings, "explicitly configured lxc.apparmor.profile overrides the following settings: %s\n",
			strings.Join(overridden, ", "))
	}
	return c.backend.writeConfig(conf)
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
	if managed, err := c.managed(); err != nil {
		return err
	} else if managed {
		if c.p.bool("overrule-shutdown") {
			return c.cmd.invalid(map[string]string{"overrule-shutdown": "Not applicable for HA resources."})
		}
		return inWorker(c.requestStop(0))
	}
	return inWorker(c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		if !c.p.bool("skiplock") {
			if err := conf.checkLockBut("mounted"); err != nil {
				return err
			}
		}
		if err := c.fault(); err != nil {
			return err
		}
		return c.backend.stop(c.vmid)
	}))
}

func (c *call) shutdown() error {
	if !c.running() {
		return die(255, "CT %d not running", c.vmid)
	}
	timeout := 60
	if c.p.has("timeout") {
		timeout, _ = strconv.Atoi(c.p["timeout"])
	}
	if managed, err := c.managed(); err != nil {
		return err
	} else if managed {
		return inWorker(c.requestStop(timeout))
	}
	return inWorker(c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		if err = c.fault(); err == nil {
			err = c.backend.shutdown(c.vmid, timeout)
		}
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
		if !c.running() {
			return nil
		}
		if err := c.backend.shutdown(c.vmid, timeout); err != nil {
			if errors.Is(err, errInterrupted) {
				return err
			}
			if err := c.backend.stop(c.vmid); err != nil {
				return err
			}
		}
		// Whether the container is locked is found out by the start.
		conf, err := c.load()
		if err != nil {
			return err
		}
		return c.boot(conf, false)
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
		return outside(err)
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
		v, err := c.volume(m.volume())
		if err != nil {
			return err
		}
		if err := v.setSize(m.values["size"]); err != nil {
			return err
		}
		return inWorker(c.save(conf))
	})
}
