package main

import (
	"bufio"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// What pct changes inside a root file system. All paths are resolved within it, so that a
// guest's symbolic links lead nowhere else.

// clearIdentity makes a new guest draw a machine ID of its own at its first boot.
func clearIdentity(rootfs string) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return workerDie("%v", err)
	}
	defer root.Close()
	if _, err := root.Stat("etc/machine-id"); err != nil {
		return nil
	}
	if fi, err := root.Lstat("var/lib/dbus/machine-id"); err == nil && fi.Mode().IsRegular() {
		if err := root.Remove("var/lib/dbus/machine-id"); err != nil {
			return workerDie("%v", err)
		}
	}
	// Empty and not "uninitialized": the latter makes systemd apply its presets, and with them
	// enable the network services that would compete with the addresses LXC sets.
	if err := root.WriteFile("etc/machine-id", nil, 0o444); err != nil {
		return workerDie("%v", err)
	}
	return nil
}

// configureGuest writes what pct writes before every start: the host name, its line in
// /etc/hosts and the name servers.
func configureGuest(rootfs string, conf *config) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return workerDie("%v", err)
	}
	defer root.Close()
	if _, err := root.Stat("etc"); err != nil {
		return nil
	}
	short, full := conf.hostname()
	servers, domains := conf.values["nameserver"], conf.values["searchdomain"]
	if servers == "" && domains == "" {
		servers, domains = hostResolver()
	}
	names := full + " " + short
	if short == full {
		names = short
		for _, d := range slices.Backward(splitList(domains)) {
			names = short + "." + d + " " + names
		}
	}
	resolver := ""
	if domains != "" {
		resolver += "search " + strings.Join(splitList(domains), " ") + "\n"
	}
	for _, s := range splitList(servers) {
		resolver += "nameserver " + s + "\n"
	}
	if err := root.WriteFile("etc/hostname", []byte(short+"\n"), 0o644); err != nil {
		return workerDie("%v", err)
	}
	hosts, err := root.ReadFile("etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return workerDie("%v", err)
	}
	own := ""
	if !compiled(`(?m)^127\.0\.0\.1\s`).Match(blockRE.ReplaceAll(hosts, nil)) {
		own = "127.0.0.1 localhost.localnet localhost\n::1 localhost.localnet localhost\n"
	}
	if err := root.WriteFile("etc/hosts", withBlock(hosts, own+conf.primaryIP()+" "+names+"\n"), 0o644); err != nil {
		return workerDie("%v", err)
	}
	if fi, err := root.Lstat("etc/resolv.conf"); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		if err := root.Remove("etc/resolv.conf"); err != nil {
			return workerDie("%v", err)
		}
	}
	if err := root.WriteFile("etc/resolv.conf", withBlock(nil, resolver), 0o644); err != nil {
		return workerDie("%v", err)
	}
	return nil
}

var blockRE = regexp.MustCompile(`(?s)# --- BEGIN PVE ---\n.*?# --- END PVE ---\n`)

// withBlock puts text into the block of a file that belongs to pct, made at its end if missing.
func withBlock(file []byte, text string) []byte {
	block := "# --- BEGIN PVE ---\n" + text + "# --- END PVE ---\n"
	if at := blockRE.FindIndex(file); at != nil {
		return slices.Concat(file[:at[0]], []byte(block), file[at[1]:])
	}
	if len(file) > 0 && file[len(file)-1] != '\n' {
		file = append(file, '\n')
	}
	return append(file, block...)
}

// primaryIP is the first fixed IPv4 address, or else IPv6, or what Debian uses for none.
func (c *config) primaryIP() string {
	for _, family := range []string{"ip", "ip6"} {
		for _, n := range c.nets() {
			if p, err := netip.ParsePrefix(n.values[family]); err == nil {
				return p.Addr().String()
			}
		}
	}
	return "127.0.1.1"
}

// nic is a parsed netN value.
type nic struct {
	index  int
	values map[string]string
}

func (c *config) nets() []nic {
	var all []nic
	for i := range 32 {
		if v := c.values["net"+strconv.Itoa(i)]; v != "" {
			if n, err := parseProperties("net", "net", v); err == nil {
				all = append(all, nic{i, n})
			}
		}
	}
	return all
}

// hostResolver are the host's own name servers and search domains.
func hostResolver() (servers, domains string) {
	f, err := os.Open("/etc/resolv.conf")
	if err != nil {
		return "", ""
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		switch f := strings.Fields(in.Text()); {
		case len(f) < 2:
		case f[0] == "nameserver":
			servers += f[1] + " "
		case f[0] == "search" || f[0] == "domain":
			domains = strings.Join(f[1:], " ")
		}
	}
	return strings.TrimSpace(servers), domains
}

var osIDRE = regexp.MustCompile(`(?m)^ID="?([a-z]+)"?$`)

// detectOS finds the ostype of a root file system; an empty one, of tests, passes for Debian.
func detectOS(rootfs string) string {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return "unmanaged"
	}
	defer root.Close()
	data, err := root.ReadFile("etc/os-release")
	if err != nil {
		return "debian"
	}
	if m := osIDRE.FindSubmatch(data); m != nil && slices.Contains(table().Options["ostype"].Enum, string(m[1])) {
		return string(m[1])
	}
	return "unmanaged"
}

// systemdVersion is the major version of a guest's systemd, or 0.
func systemdVersion(rootfs string) int {
	for _, pattern := range []string{"usr/lib/systemd/libsystemd-shared-*.so",
		"usr/lib/*/systemd/libsystemd-shared-*.so"} {
		found, _ := filepath.Glob(filepath.Join(rootfs, pattern))
		for _, f := range found {
			if m := compiled(`-shared-(\d+)`).FindStringSubmatch(filepath.Base(f)); m != nil {
				n, _ := strconv.Atoi(m[1])
				return n
			}
		}
	}
	return 0
}
