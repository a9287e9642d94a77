package pve

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

var (
	haHeader = regexp.MustCompile(`^(\S+?):\s*(\S+)\s*$`)
	haState  = regexp.MustCompile(`^\s+state\s+(\S+)\s*$`)
)

// HAState returns the state that a container is to have according to HA's
// configuration: started, stopped, disabled or ignored. managed reports
// whether it stands there at all.
func (h *Host) HAState(ctid int) (state string, managed bool, err error) {
	text, err := readIfThere(filepath.Join(h.PVERoot, "ha/resources.cfg"))
	if err != nil {
		return "", false, fmt.Errorf("read HA's configuration: %w", err)
	}
	ours := false
	for line := range strings.Lines(string(text)) {
		if m := haHeader.FindStringSubmatch(line); m != nil {
			if ours = m[1] == "ct" && m[2] == fmt.Sprint(ctid); ours {
				state, managed = "started", true
			}
		} else if m := haState.FindStringSubmatch(line); m != nil && ours && m[1] != "enabled" { // an old name of started
			state = m[1]
		}
	}
	return state, managed, nil
}
