package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// section is the head, the [pve:pending] section or one snapshot of a configuration file.
type section struct {
	values map[string]string // description included, decoded, its lines ended by \n
	raw    []rawLine
}

// rawLine is one lxc.* line.
type rawLine struct{ key, value string }

// config is a container's configuration, $LAB/pve/lxc/ID.conf.
type config struct {
	section
	vmid      int
	digest    string
	pending   section // values["delete"]: the keys that the next start removes
	snapshots map[string]*section
}

func newSection() section { return section{values: make(map[string]string)} }

func newConfig(vmid int) *config {
	return &config{vmid: vmid, section: newSection(), pending: newSection(), snapshots: make(map[string]*section)}
}

func (s *section) clone() section {
	return section{values: maps.Clone(s.values), raw: slices.Clone(s.raw)}
}

func (l *lab) confPath(vmid int) string {
	return filepath.Join(l.dir, "pve", "lxc", strconv.Itoa(vmid)+".conf")
}

func (l *lab) firewallPath(vmid int) string {
	return filepath.Join(l.dir, "pve", "firewall", strconv.Itoa(vmid)+".fw")
}

// load reads a configuration. Its failure for want of the file carries status 2, as in pct.
func (l *lab) load(vmid int) (*config, error) {
	data, err := os.ReadFile(l.confPath(vmid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, die(2, "Configuration file 'nodes/%s/lxc/%d.conf' does not exist", l.node, vmid)
	}
	if err != nil {
		return nil, die(255, "%v", err)
	}
	warnings := l.stderr
	if bytes.Equal(data, l.warned[vmid]) {
		warnings = io.Discard // pct keeps what it has parsed, and so warns once
	}
	l.warned[vmid] = data
	return parseConfig(vmid, data, warnings), nil
}

// save writes a configuration. The real /etc/pve knows no other mode than 0640.
func (l *lab) save(c *config) error {
	used := c.volumes()
	maps.DeleteFunc(c.values, func(k, v string) bool {
		return strings.HasPrefix(k, "unused") && slices.Contains(used, v)
	})
	if err := os.MkdirAll(filepath.Dir(l.confPath(c.vmid)), 0o755); err != nil {
		return die(255, "%v", err)
	}
	if err := renameio.WriteFile(l.confPath(c.vmid), c.print(), 0o640, renameio.IgnoreUmask()); err != nil {
		return die(255, "%v", err)
	}
	return nil
}

// edit loads, changes and saves a configuration under its lock.
func (l *lab) edit(vmid int, change func(*config) error) error {
	return l.locked(vmid, func() error {
		c, err := l.load(vmid)
		if err != nil {
			return err
		}
		if err := change(c); err != nil {
			return err
		}
		return l.save(c)
	})
}

const lockTimeout = 10 * time.Second

// locked runs f while holding the lock on a container's configuration file.
func (l *lab) locked(vmid int, f func() error) error {
	return l.lockedFile(fmt.Sprintf("pve-config-%d.lock", vmid), f)
}

func (l *lab) lockedFile(name string, f func() error) error {
	path := filepath.Join(l.dir, "lock", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return die(255, "%v", err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return die(255, "can't open lock file '%s' - %v", path, err)
	}
	defer file.Close()
	deadline := time.Now().Add(lockTimeout)
	for waiting := false; ; waiting = true {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if waiting {
				fmt.Fprintln(l.stderr, " OK")
			}
			return f()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return die(255, "can't lock file '%s' - %v", path, err)
		}
		if !waiting {
			fmt.Fprint(l.stderr, "trying to acquire lock...")
		}
		if time.Now().After(deadline) {
			return die(4, "can't lock file '%s' - got timeout", path)
		}
		if err := l.sleep(50 * time.Millisecond); err != nil {
			return err
		}
	}
}

// staleAfter is the age at which a lock of the cluster is free.
const staleAfter = 120 * time.Second

// freeClusterLocks does what the file system of a real /etc/pve does when a lock is asked for: one
// of a program that died is free after two minutes. Its age is that of the directory: whoever waits for
// it sets its other times.
func (l *lab) freeClusterLocks(expiry time.Duration) {
	locks, _ := filepath.Glob(filepath.Join(l.dir, "pve", "priv", "lock", "*"))
	for _, path := range locks {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &st); err != nil ||
			st.Mask&unix.STATX_BTIME == 0 {
			continue
		}
		if time.Since(time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))) > expiry {
			os.Remove(path)
		}
	}
}

// checkLock refuses a container whose configuration says that something is at work on it.
func (c *config) checkLock() error { return c.checkLockBut("") }

// checkLockBut lets one kind of work pass.
func (c *config) checkLockBut(harmless string) error {
	if lock := c.values["lock"]; lock != harmless && lock != "" {
		return die(255, "CT is locked (%s)", lock)
	}
	return nil
}

var (
	pendingRE  = regexp.MustCompile(`(?i)^\[pve:pending\]\s*$`)
	snapshotRE = regexp.MustCompile(`(?i)^\[([a-z][a-z0-9_-]+)\]\s*$`)
	rawRE      = regexp.MustCompile(`^(lxc\.[a-z0-9_\-.]+)(?::|\s*=)\s*(.*?)\s*$`)
	descRE     = regexp.MustCompile(`^description:\s*(.*\S)\s*$`)
	stateRE    = regexp.MustCompile(`snapstate:\s*(prepare|delete)\s*$`)
	deleteRE   = regexp.MustCompile(`^delete:\s*(.*\S)\s*$`)
	keyRE      = regexp.MustCompile(`^([a-z][a-z_]*\d*):\s*(.+?)\s*$`)
)

// parseConfig reads a configuration file as pct does: lines that it cannot use are reported to
// warnings and left out, so that the next write deletes them.
func parseConfig(vmid int, data []byte, warnings io.Writer) *config {
	warn := func(format string, a ...any) {
		fmt.Fprintf(warnings, "vm %d - "+format+"\n", append([]any{vmid}, a...)...)
	}
	c := newConfig(vmid)
	c.digest = fmt.Sprintf("%x", sha1.Sum(data))
	cur := &c.section
	var desc string
	flush := func() {
		if desc != "" {
			cur.values["description"] = desc
		}
		desc = ""
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		if pendingRE.MatchString(line) {
			flush()
			c.pending = newSection()
			cur = &c.pending
			continue
		}
		if m := snapshotRE.FindStringSubmatch(line); m != nil {
			flush()
			s := newSection()
			c.snapshots[m[1]] = &s
			cur = &s
			continue
		}
		if text, ok := strings.CutPrefix(line, "#"); ok {
			desc += decodeText(text) + "\n"
			continue
		}
		if m := rawRE.FindStringSubmatch(line); m != nil {
			key, value := m[1], m[2]
			ok, note := rawKey(key)
			switch {
			case note != "":
				warn("%s", note)
			case !ok:
				warn("unable to parse config: %s", line)
			}
			switch {
			case key == "lxc.environment.runtime" && ok:
				if env := cur.values["env"]; env != "" {
					value = env + "\x00" + value
				}
				cur.values["env"] = value
			case ok:
				cur.raw = append(cur.raw, rawLine{key, value})
			}
			continue
		}
		if m := descRE.FindStringSubmatch(line); m != nil {
			desc += decodeText(m[1])
			continue
		}
		if m := stateRE.FindStringSubmatch(line); m != nil {
			cur.values["snapstate"] = m[1]
			continue
		}
		if m := deleteRE.FindStringSubmatch(line); m != nil {
			if cur == &c.pending {
				cur.values["delete"] = m[1]
			} else {
				warn("property 'delete' is only allowed in [pve:pending]")
			}
			continue
		}
		if m := keyRE.FindStringSubmatch(line); m != nil {
			value, err := checkType(m[1], m[2])
			if err != nil {
				warn("unable to parse value of '%s' - %v", m[1], err)
				value = m[2]
			}
			cur.values[m[1]] = value
			continue
		}
		warn("unable to parse config: %s", line)
	}
	flush()
	delete(c.values, "snapstate")
	return c
}

// checkType is the check of a value in a file: types and formats, but no ranges.
func checkType(key, value string) (string, error) {
	o := table().Commands["set"].options[key]
	switch {
	case key == "parent":
		return value, checkFormat("pve-configid", value)
	case key == "snaptime":
		o = &option{Type: "integer"}
	case key == "delete", key == "digest", key == "revert", key == "vmid", o == nil:
		return value, fmt.Errorf("unknown setting '%s'", key)
	}
	bad := fmt.Errorf("type check ('%s') failed - got '%s'", o.Type, value)
	switch o.Type {
	case "boolean":
		b, ok := parseBool(value)
		if !ok {
			return value, bad
		}
		return b, nil
	case "integer":
		n, err := strconv.ParseUint(value, 10, 63)
		if err != nil {
			return value, bad
		}
		return strconv.FormatUint(n, 10), nil
	case "number":
		if !compiled(`^\d+(?:\.\d+)?$`).MatchString(value) {
			return value, bad
		}
	case "string":
		if o.Properties != "" {
			_, err := parseProperties(o.Properties, key, value)
			return value, err
		}
		if o.Format != "" {
			return value, checkFormat(o.Format, value)
		}
	}
	return value, nil
}

// rawKeys are the lxc.* keys that pct keeps (pve-container 6.1).
var rawKeys = regexp.MustCompile(`^lxc\.(?:` + strings.Join([]string{
	`apparmor\.(?:profile|allow_incomplete|allow_nesting|raw)`, `selinux\.context`, `include`, `arch`, `uts\.name`,
	`signal\.(?:halt|reboot|stop)`, `init\.(?:cmd|cwd|uid|gid|groups)`, `pty\.max`, `console\.(?:logfile|path)`,
	`tty\.max`, `devtty\.dir`,
	`hook\.(?:autodev|pre-start|pre-mount|mount|start|stop|post-stop|clone|destroy|version)`, `autodev`, `kmsg`,
	`mount\.(?:fstab|entry|auto)`, `rootfs\.mount`, `cap\.(?:drop|keep)`,
	`seccomp\.(?:profile|notify\.(?:proxy|cookie))`,
	`idmap`, `log\.(?:level|file)`, `start\.(?:auto|delay|order)`, `group`, `environment(?:\.(?:runtime|hooks))?`,
	`sysctl\.(?:fs\.mqueue|kernel\.(?:msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced))`,
	`cgroup2\..*`, `prlimit\..*`, `net\..*`,
}, "|") + `)$`)

// renamedKeys are the names of LXC 2, still taken with a warning.
var renamedKeys = map[string]string{
	"lxc.aa_profile": "lxc.apparmor.profile", "lxc.aa_allow_incomplete": "lxc.apparmor.allow_incomplete",
	"lxc.console": "lxc.console.path", "lxc.devttydir": "lxc.tty.dir", "lxc.haltsignal": "lxc.signal.halt",
	"lxc.rebootsignal": "lxc.signal.reboot", "lxc.stopsignal": "lxc.signal.stop", "lxc.id_map": "lxc.idmap",
	"lxc.init_cmd": "lxc.init.cmd", "lxc.loglevel": "lxc.log.level", "lxc.logfile": "lxc.log.file",
	"lxc.mount": "lxc.mount.fstab", "lxc.network.type": "lxc.net.INDEX.type",
	"lxc.network.flags": "lxc.net.INDEX.flags",
	"lxc.network.link":  "lxc.net.INDEX.link", "lxc.network.mtu": "lxc.net.INDEX.mtu",
	"lxc.network.name":   "lxc.net.INDEX.name",
	"lxc.network.hwaddr": "lxc.net.INDEX.hwaddr", "lxc.network.ipv4": "lxc.net.INDEX.ipv4.address",
	"lxc.network.ipv4.gateway": "lxc.net.INDEX.ipv4.gateway", "lxc.network.ipv6": "lxc.net.INDEX.ipv6.address",
	"lxc.network.ipv6.gateway": "lxc.net.INDEX.ipv6.gateway", "lxc.network.script.up": "lxc.net.INDEX.script.up",
	"lxc.network.script.down": "lxc.net.INDEX.script.down", "lxc.pts": "lxc.pty.max",
	"lxc.se_context": "lxc.selinux.context",
	"lxc.seccomp":    "lxc.seccomp.profile", "lxc.tty": "lxc.tty.max", "lxc.utsname": "lxc.uts.name",
}

// rawKey reports whether pct keeps a raw key, and returns the warning that it prints about it.
func rawKey(key string) (ok bool, note string) {
	switch {
	case key == "lxc.rootfs.path":
		return false, key + ": lxc.rootfs.path is auto generated from rootfs"
	case key == "lxc.rootfs.options":
		return false, key + `: lxc.rootfs.options is not supported, please use mount point options in the "rootfs" key`
	case strings.HasPrefix(key, "lxc.limit."):
		return true, key + ": lxc.limit.* was renamed to lxc.prlimit.*"
	case strings.HasPrefix(key, "lxc.cgroup."):
		return true, key + ": lxc.cgroup.* is deprecated, this will be a hard error in the future!"
	case renamedKeys[key] != "":
		return true, key + " is deprecated and was renamed to " + renamedKeys[key]
	}
	return rawKeys.MatchString(key), ""
}

// print is the text of a configuration file.
func (c *config) print() []byte {
	var b strings.Builder
	c.section.print(&b)
	if len(c.pending.values) > 0 {
		b.WriteString("\n[pve:pending]\n")
		c.pending.print(&b)
	}
	for _, name := range slices.Sorted(maps.Keys(c.snapshots)) {
		b.WriteString("\n[" + name + "]\n")
		c.snapshots[name].print(&b)
	}
	return []byte(b.String())
}

func (s *section) print(b *strings.Builder) {
	if desc := strings.TrimRight(s.values["description"], "\n"); desc != "" {
		for line := range strings.SplitSeq(desc, "\n") {
			b.WriteString("#" + encodeText(line) + "\n")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.values)) {
		if k != "description" {
			b.WriteString(k + ": " + s.values[k] + "\n")
		}
	}
	for _, r := range s.raw {
		b.WriteString(r.key + ": " + r.value + "\n")
	}
}

// encodeText percent-encodes control characters, '%', ':' and every byte above ASCII.
func encodeText(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' || c == ':' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

var escapeRE = regexp.MustCompile(`%[0-9a-fA-F]{2}`)

func decodeText(s string) string {
	return escapeRE.ReplaceAllStringFunc(s, func(e string) string {
		n, _ := strconv.ParseUint(e[1:], 16, 8)
		return string([]byte{byte(n)})
	})
}

// canonicalNet is the form in which a netN value is stored: it always has a type and an address.
func canonicalNet(value string, fresh bool) (string, error) {
	net, err := parseProperties("net", "net", value)
	if err != nil {
		return "", err
	}
	net["type"] = "veth"
	if net["hwaddr"] == "" || fresh {
		net["hwaddr"] = randomMAC()
	}
	return printProperties("net", net), nil
}

// randomMAC draws an address with Proxmox's prefix.
func randomMAC() string {
	var b [3]byte
	rand.Read(b[:])
	return fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])
}

// uniqueTags is the stored form of tags: lower case, sorted, each once.
func uniqueTags(value string) string {
	tags := splitList(strings.ToLower(value))
	slices.Sort(tags)
	return strings.Join(slices.Compact(tags), ";")
}

// pendingDeletes are the keys that the next start removes.
func (c *config) pendingDeletes() []string {
	return splitList(strings.ReplaceAll(c.pending.values["delete"], "!", ""))
}

func (c *config) setPendingDeletes(keys []string) {
	slices.Sort(keys)
	if keys = slices.Compact(keys); len(keys) == 0 {
		delete(c.pending.values, "delete")
		return
	}
	c.pending.values["delete"] = strings.Join(keys, ",")
}

func (c *config) unqueueDelete(key string) {
	c.setPendingDeletes(slices.DeleteFunc(c.pendingDeletes(), func(k string) bool { return k == key }))
}

// cleanPending drops what is queued but would change nothing.
func (c *config) cleanPending() {
	for k, v := range c.pending.values {
		if old, ok := c.values[k]; ok && old == v && k != "delete" {
			delete(c.pending.values, k)
		}
	}
	c.setPendingDeletes(slices.DeleteFunc(c.pendingDeletes(), func(k string) bool {
		_, ok := c.values[k]
		return !ok
	}))
}

var mountKeyRE = regexp.MustCompile(`^(?:rootfs|mp\d+)$`)

// mount is a parsed rootfs or mpN value.
type mount struct {
	key    string
	values map[string]string
}

func parseMount(key, value string) (mount, error) {
	kind := "mp"
	if key == "rootfs" {
		kind = "rootfs"
	}
	v, err := parseProperties(kind, key, value)
	return mount{key, v}, err
}

func (m mount) volume() string { return m.values["volume"] }

// kind is volume, bind or device.
func (m mount) kind() string {
	switch v := m.volume(); {
	case strings.HasPrefix(v, "/dev/"):
		return "device"
	case strings.HasPrefix(v, "/"):
		return "bind"
	}
	return "volume"
}

func (m mount) target() string {
	if m.key == "rootfs" {
		return "/"
	}
	return m.values["mp"]
}

func (m mount) String() string {
	if m.key == "rootfs" {
		return printProperties("rootfs", m.values)
	}
	return printProperties("mp", m.values)
}

// mounts are a section's rootfs and mount points in the order of their numbers.
func (s *section) mounts() []mount {
	var all []mount
	for k, v := range s.values {
		if mountKeyRE.MatchString(k) {
			if m, err := parseMount(k, v); err == nil {
				all = append(all, m)
			}
		}
	}
	order := func(key string) int {
		n, _ := strconv.Atoi(strings.TrimPrefix(key, "mp"))
		if key == "rootfs" {
			n = -1
		}
		return n
	}
	slices.SortFunc(all, func(a, b mount) int { return order(a.key) - order(b.key) })
	return all
}

// volumes are the storage volumes among the mounts.
func (s *section) volumes() []string {
	var all []string
	for _, m := range s.mounts() {
		if m.kind() == "volume" {
			all = append(all, m.volume())
		}
	}
	return all
}

// inUse reports whether a volume belongs to the head, a snapshot or a pending change.
func (c *config) inUse(volume string) bool {
	if slices.Contains(c.volumes(), volume) || slices.Contains(c.pending.volumes(), volume) {
		return true
	}
	for _, s := range c.snapshots {
		if slices.Contains(s.volumes(), volume) {
			return true
		}
	}
	return false
}

// addUnused keeps a volume that nothing refers to any more as unusedN.
func (s *section) addUnused(volume string) {
	free := ""
	for i := 255; i >= 0; i-- {
		key := "unused" + strconv.Itoa(i)
		switch s.values[key] {
		case volume:
			return
		case "":
			free = key
		}
	}
	s.values[free] = volume
}

func (c *config) isTemplate() bool { return c.values["template"] == "1" }

// hostname is the name inside the container: pct splits a configured name at its first dot.
func (c *config) hostname() (short, full string) {
	full = c.values["hostname"]
	if full == "" {
		full = "CT" + strconv.Itoa(c.vmid)
	}
	short, _, _ = strings.Cut(full, ".")
	return short, full
}
