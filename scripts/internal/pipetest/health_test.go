package pipetest

import (
	"os"
	"strings"
	"testing"
)

// A container says by its exit status whether it has the program of a health check,
// and the host's runs otherwise: but none that a container may have written.
func TestHealthCheckThatAContainerMayHaveWritten(t *testing.T) {
	const check = "#!/bin/sh\necho \"$*\" >>$PHX_WORK/checked\n"
	for _, tt := range []struct {
		name, prepare string
		mounts        []any
		says          string // "" where it runs
	}{
		{name: "of the installation"},
		{name: "a link of root",
			prepare: "mv scripts/health_checks elsewhere; ln -s ../elsewhere scripts/health_checks"},
		{name: "of root's group", prepare: "chmod 0775 scripts/health_checks; chgrp 50 scripts/health_checks"},
		{name: "in its mount point", mounts: []any{map[string]any{
			"host_path": "$WORK/scripts/health_checks", "container_path": "/mnt/x"}},
			says: "containers have $WORK/scripts/health_checks as a mount point"},
		{name: "in a mount point that it cannot write", mounts: []any{map[string]any{
			"host_path": "$WORK/scripts/health_checks", "container_path": "/mnt/x", "read_only": true}}},
		{name: "in its mount point by a link", prepare: "ln -s scripts/health_checks shared",
			mounts: []any{map[string]any{"host_path": "$WORK/shared", "container_path": "/mnt/x"}},
			says:   "containers have $WORK/scripts/health_checks as a mount point"},
		{name: "of somebody else", prepare: "chown 100000 scripts/health_checks/own.sh",
			says: "others than root may write $WORK/scripts/health_checks/own.sh"},
		{name: "in a directory of somebody else", prepare: "chown 100000 scripts/health_checks",
			says: "others than root may write $WORK/scripts/health_checks"},
		{name: "for all to write", prepare: "chmod 0777 scripts/health_checks",
			says: "others than root may write $WORK/scripts/health_checks"},
		{name: "a link to somebody else's", prepare: "mv scripts/health_checks elsewhere; chown 1000 elsewhere; " +
			"ln -s ../elsewhere scripts/health_checks", says: "others than root may write $WORK/elsewhere"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if os.Geteuid() != 0 {
				t.Skip("only root may give files away")
			}
			h := newHost(t)
			h.write("scripts/health_checks/own.sh", check)
			h.write("inside", "#!/bin/sh\necho no such program >&2; exit 127\n")
			h.bash("chmod 0755 scripts/health_checks/own.sh inside; " + tt.prepare)
			h.configure(map[string]any{"mount_points": append([]any{}, tt.mounts...), "health_check": map[string]any{
				"command": "$WORK/scripts/health_checks/own.sh 500", "retries": 1}})
			_, _, status, stderr := h.run()
			ran, says := h.read("checked"), strings.ReplaceAll(tt.says, "$WORK", h.dir)
			switch {
			case tt.says == "" && (status != 0 || ran != "500\n"):
				t.Errorf("status %d, has run: %q\n%s", status, ran, stderr)
			case tt.says != "" && (status != 1 || ran != "" ||
				!strings.Contains(stderr, "it is there on the host, and does not run there: "+says)):
				t.Errorf("status %d, has run: %q, want %q\n%s", status, ran, says, stderr)
			}
		})
	}
}
