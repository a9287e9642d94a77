package config

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A directory that is given to an owner is given away with all that is in it.
// That is for directories of data: of a directory of the system it would take
// the host apart.

var (
	// systemTops are directories that are never given away. What lies in them
	// may be, if it is not in one of systemTrees.
	systemTops = strings.Fields(`/ /root /home /opt /srv /mnt /media /tmp /var /lost+found
		/usr/local /mnt/pve /var/backups /var/cache /var/crash /var/games /var/lib /var/local /var/log /var/mail
		/var/opt /var/spool /var/tmp`)

	// systemTrees are never given away, nor is anything in them.
	systemTrees = strings.Fields(`/bin /boot /dev /efi /etc /lib /lib32 /lib64 /libx32 /proc /run /sbin /selinux /sys /usr
		/root/.ssh /var/lock /var/run /var/lib/apt /var/lib/corosync /var/lib/dpkg /var/lib/lxc /var/lib/lxcfs
		/var/lib/pve-cluster /var/lib/pve-firewall /var/lib/pve-manager /var/lib/qemu-server /var/lib/systemd
		/var/lib/ucf /var/spool/cron`)

	// localTrees are those of /usr/local, in which all else is a program's own.
	localTrees = strings.Fields("bin etc games include lib libexec man sbin share src")
)

// systemDirectory returns why the directory at a clean path is not data, "" if
// it may be.
func systemDirectory(dir string) string {
	if slices.Contains(systemTops, dir) {
		return dir + " is a directory of the system"
	}
	if below, ok := strings.CutPrefix(dir, "/usr/local/"); ok {
		first, _, _ := strings.Cut(below, "/")
		if !slices.Contains(localTrees, first) {
			return ""
		}
	}
	for _, tree := range systemTrees {
		if dir == tree {
			return dir + " is a directory of the system"
		}
		if strings.HasPrefix(dir, tree+"/") {
			return dir + " belongs to the system, in " + tree
		}
	}
	return ""
}

// A Guarded place holds more than the data of a container.
type Guarded struct {
	Path string
	What string // the configuration file
	Tree bool   // nothing in it is data, either
}

// GuardedPlaces returns the places of a host that no container may own: the
// configuration file, the scripts, the programs, and what Proxmox VE keeps,
// its storages included.
func GuardedPlaces(file, scripts, pveRoot string) []Guarded {
	all := []Guarded{
		{file, "the configuration file", false},
		{scripts, "the scripts", true},
		{pveRoot, "the configuration of Proxmox VE", true},
	}
	if program, err := os.Executable(); err == nil {
		all = append(all, Guarded{filepath.Dir(program), "the programs of phx", true})
	}
	all = append(all, storages(filepath.Join(pveRoot, "storage.cfg"))...)
	for _, g := range slices.Clone(all) {
		if real, err := filepath.EvalSymlinks(g.Path); err == nil && real != g.Path {
			g.Path = real
			all = append(all, g)
		}
	}
	for i, g := range all {
		if absolute, err := filepath.Abs(g.Path); err == nil && g.Path != "" {
			all[i].Path = absolute
		}
	}
	return slices.DeleteFunc(all, func(g Guarded) bool { return g.Path == "" })
}

// storages returns the directories of Proxmox VE's storages.
func storages(file string) []Guarded {
	f, err := os.Open(file)
	if err != nil {
		return nil // not on the host
	}
	defer f.Close()
	var all []Guarded
	kind, name, place := "", "", ""
	end := func() {
		switch {
		case place != "":
		case slices.Contains([]string{"nfs", "cifs", "cephfs", "glusterfs"}, kind):
			place = "/mnt/pve/" + name
		}
		if place != "" {
			all = append(all, Guarded{place, "the storage " + name, false})
			for _, sub := range []string{"images", "private", "template", "dump", "snippets", "import"} {
				all = append(all, Guarded{path.Join(place, sub), "what the storage " + name + " keeps", true})
			}
		}
		kind, name, place = "", "", ""
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2 || strings.HasPrefix(line, "#"):
		case strings.TrimLeft(line, " \t") == line:
			end()
			kind, name = strings.TrimSuffix(fields[0], ":"), fields[1]
		case fields[0] == "path" || fields[0] == "mountpoint":
			place = path.Clean(strings.Join(fields[1:], " "))
		}
	}
	end()
	return all
}

// A place is a directory that is there.
type place struct {
	path string
	info os.FileInfo
}

// systemPlaces returns the directories of the system that this host has.
func systemPlaces() []place {
	places := []place{}
	for _, dir := range append(slices.Clone(systemTops), systemTrees...) {
		if info, err := os.Stat(dir); err == nil {
			places = append(places, place{dir, info})
		}
	}
	return places
}

// CheckOwner returns an error unless the directory at a clean path may be
// given to an owner, with all that is in it.
func CheckOwner(dir string, guarded []Guarded) error {
	return checkOwner(dir, guarded, systemPlaces())
}

func checkOwner(dir string, guarded []Guarded, system []place) error {
	why := systemDirectory(dir)
	for _, g := range guarded {
		switch {
		case why != "":
		case dir == g.Path:
			why = dir + " holds " + g.What
		case strings.HasPrefix(g.Path, dir+"/"):
			why = fmt.Sprintf("%s holds %s, %s", dir, g.What, g.Path)
		case g.Tree && strings.HasPrefix(dir, g.Path+"/"):
			why = fmt.Sprintf("%s belongs to %s, %s", dir, g.What, g.Path)
		}
	}
	if info, err := os.Stat(dir); err == nil && why == "" {
		// Also by another name.
		for _, other := range system {
			if os.SameFile(info, other.info) {
				why = dir + " is " + other.path
			}
		}
	}
	if why == "" {
		return nil
	}
	return ownerError(why)
}

func ownerError(why string) error {
	return fmt.Errorf("%s: all in it would change its owner: make a directory of its own for the container's data, or leave owner_uid and owner_gid out", why)
}

// dpkgInfo has a list of the files of each Debian package of the host.
var dpkgInfo = "/var/lib/dpkg/info"

// Packaged returns by path which of the directories belong to a Debian package.
func Packaged(dirs []string) (map[string]string, error) {
	lists, err := filepath.Glob(filepath.Join(dpkgInfo, "*.list"))
	if err != nil || len(dirs) == 0 {
		return nil, err
	}
	wanted := make(map[string]bool, len(dirs))
	for _, dir := range dirs {
		wanted[dir] = true
	}
	owners := map[string]string{}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			return nil, fmt.Errorf("look for the package of a directory: %w", err)
		}
		for line := range bytes.Lines(text) {
			if dir := bytes.TrimSuffix(line, []byte("\n")); wanted[string(dir)] {
				owners[string(dir)] = strings.TrimSuffix(filepath.Base(list), ".list")
			}
		}
	}
	return owners, nil
}

// An ownedPath is a host_path that gets an owner, with its place in the file.
type ownedPath struct {
	at        int
	path, dir string
}

// packaged refuses to give directories of packages away.
func (p *parser) packaged() error {
	dirs := make([]string, len(p.owned))
	for i, o := range p.owned {
		dirs[i] = o.dir
	}
	owners, err := Packaged(dirs)
	for _, o := range p.owned {
		if owner := owners[o.dir]; owner != "" {
			p.mistakes.add(o.at, func() note { return note{o.at, o.path, PackagedError(o.dir, owner).Error(), -1} })
		}
	}
	return err
}

// PackagedError is the error of [CheckOwner] for a directory of a package.
func PackagedError(dir, owner string) error {
	return ownerError(dir + " belongs to the package " + owner)
}
