package scripts

import (
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// defaultDirs are phx's own directories on a Proxmox VE host, of the Debian package
// and of scripts/install, and that of the scripts that phx replaces.
const defaultDirs = "/usr/share/phx:/usr/local/phoenix_hypervisor/scripts:/usr/local/phoenix_hypervisor/bin"

// Flag is the value of --scripts: directories, several of them separated by
// colons, or given one by one. Those of PHX_SCRIPTS count only without the flag.
type Flag struct {
	dirs       []string
	ofVariable bool // they are those of PHX_SCRIPTS
}

// String returns the directories in the form that Set takes.
func (d *Flag) String() string { return strings.Join(d.dirs, ":") }

// Set adds directories.
func (d *Flag) Set(value string) error {
	switch {
	case d.ofVariable:
		*d = Flag{}
	case d.dirs == nil:
		d.ofVariable = value == os.Getenv("PHX_SCRIPTS") // which cli sets first
	}
	for dir := range strings.SplitSeq(value, ":") {
		if dir != "" {
			d.dirs = append(d.dirs, dir)
		}
	}
	return nil
}

// FromFlag returns the directories of --scripts, or the default ones.
func FromFlag(c *cli.Context) Dirs {
	given := c.Generic("scripts").(*Flag).dirs
	if len(given) == 0 {
		given = strings.Split(defaultDirs, ":")
	}
	var dirs Dirs
	for _, dir := range given {
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}
