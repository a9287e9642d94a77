package hostdir

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// A directory that is given to an owner is given away with all that is in it.
// That is for directories of data: of a directory of the system it would take
// the host apart.

var (
	// systemTops are directories that are never given away. What is in them may
	// be, unless it is in one of systemTrees.
	systemTops = strings.Fields(`/ /root /home /opt /srv /mnt /media /tmp /var /lost+found
		/usr/local /mnt/pve /var/backups /var/cache /var/crash /var/games /var/lib /var/local /var/log /var/mail
		/var/opt /var/spool /var/tmp`)

	// systemTrees are never given away, nor is anything in them.
	systemTrees = strings.Fields(`/bin /boot /dev /efi /etc /lib /lib32 /lib64 /libx32 /proc /run /sbin /selinux /sys
		/usr /root/.ssh /var/lock /var/run /var/lib/apt /var/lib/corosync /var/lib/dpkg /var/lib/lxc /var/lib/lxcfs
		/var/lib/pve-cluster /var/lib/pve-firewall /var/lib/pve-manager /var/lib/qemu-server /var/lib/systemd
		/var/lib/ucf /var/spool/cron`)

	// localTrees are those of /usr/local, in which all else is a program's own.
	localTrees = strings.Fields("bin etc games include lib libexec man sbin share src")
)

// systemDirectory returns why the directory at a clean path must not be given
// away, "" if it may be.
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
	What string // as in "the configuration file"
	Tree bool   // what is in it is guarded, too
}

// GuardedPlaces returns the places of a host that no container may own: the
// configuration file, the scripts, the running program, Proxmox VE's
// configuration, and its storages, given as directories by name. A place to
// which a symbolic link leads is guarded by both names.
func GuardedPlaces(file, pveRoot string, scripts []string, storages map[string]string) []Guarded {
	all := []Guarded{
		{file, "the configuration file", false},
		{pveRoot, "the configuration of Proxmox VE", true},
	}
	for _, dir := range scripts {
		all = append(all, Guarded{dir, "the scripts", true})
	}
	if program, err := os.Executable(); err == nil {
		all = append(all, Guarded{filepath.Dir(program), "the programs of phx", true})
	}
	for _, name := range slices.Sorted(maps.Keys(storages)) {
		dir := storages[name]
		all = append(all, Guarded{dir, "the storage " + name, false})
		for _, sub := range []string{"images", "private", "template", "dump", "snippets", "import"} {
			all = append(all, Guarded{filepath.Join(dir, sub), "what the storage " + name + " keeps", true})
		}
	}
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

// A place is a directory that is there.
type place struct {
	path string
	info os.FileInfo
}

// systemPlaces returns the directories of the system that this host has.
func systemPlaces() []place {
	var places []place
	for _, dir := range slices.Concat(systemTops, systemTrees) {
		if info, err := os.Stat(dir); err == nil {
			places = append(places, place{dir, info})
		}
	}
	return places
}

// OwnerCheck returns a function that returns an error unless the directory at a
// clean path may be given to an owner, with all that is in it: it must be no
// directory of the system, by whatever name, nor hold or belong to a guarded
// place. Whether a package has it, [Packaged] reports.
//
// The function looks for the directories of the system once, at its first call.
func OwnerCheck(guarded []Guarded) func(dir string) error {
	system := sync.OnceValue(systemPlaces)
	return func(dir string) error {
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
			for _, other := range system() {
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
}

func ownerError(why string) error {
	return remedy.Errorf("make a directory of its own for the container's data, or leave owner_uid and owner_gid out",
		"%s: all in it would change its owner", why)
}

// dpkgInfo has a list of the files of each Debian package of the host.
var dpkgInfo = "/var/lib/dpkg/info"

// Packaged returns the Debian packages of those of the directories that belong
// to one, by path.
func Packaged(dirs []string) (map[string]string, error) {
	lists, err := filepath.Glob(filepath.Join(dpkgInfo, "*.list"))
	if err != nil || len(dirs) == 0 {
		return nil, err
	}
	wanted := make(map[string]bool, len(dirs))
	for _, dir := range dirs {
		wanted[dir] = true
	}
	packages := map[string]string{}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			return nil, fmt.Errorf("look for the package of a directory: %w", err)
		}
		for line := range bytes.Lines(text) {
			if dir := bytes.TrimSuffix(line, []byte("\n")); wanted[string(dir)] {
				packages[string(dir)] = strings.TrimSuffix(filepath.Base(list), ".list")
			}
		}
	}
	return packages, nil
}

// PackagedError is the error of [OwnerCheck]'s function for a directory that
// belongs to a package.
func PackagedError(dir, name string) error {
	return ownerError(dir + " belongs to the package " + name)
}
