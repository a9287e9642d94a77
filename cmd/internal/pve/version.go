package pve

import (
	"bufio"
	"os"
	"strings"
)

// packageStatus has the Debian packages of this host. It is changed by tests.
var packageStatus = "/var/lib/dpkg/status"

// ContainerVersion returns the version of the package pve-container, which has
// pct: "6.1.10", or "" where it is not installed.
func ContainerVersion() string {
	f, err := os.Open(packageStatus)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // of the longest line
	ours, installed, version := false, false, ""
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		switch key {
		case "Package":
			ours = value == "pve-container"
		case "Status":
			installed = ours && strings.HasSuffix(value, " installed")
		case "Version":
			version = value
		case "": // between packages
			if ours && installed {
				return version
			}
			ours, installed, version = false, false, ""
		}
	}
	if ours && installed {
		return version
	}
	return ""
}
