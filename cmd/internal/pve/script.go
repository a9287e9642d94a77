package pve

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// FeatureScript is the place of a feature's script in a directory of scripts.
func FeatureScript(dir, feature string) string {
	return filepath.Join(dir, "phoenix_hypervisor_feature_install_"+feature+".sh")
}

// RunFeature runs a feature's script for a container: SCRIPT CTID, and the
// CA's URL unless it is ""; env is added to its environment. What the script
// prints, which is mostly what the container says, goes to log.
func (h *Host) RunFeature(ctx context.Context, dir, feature string, ctid int, caURL string,
	log io.Writer, env ...string) error {
	argv := []string{FeatureScript(dir, feature), strconv.Itoa(ctid)}
	if caURL != "" {
		argv = append(argv, caURL)
	}
	_, err := h.Run(ctx, Command{
		Argv:     argv,
		Env:      append([]string{"PHX_PCT=" + h.PCT, "PHX_PVE_ROOT=" + h.PVERoot}, env...),
		Stdout:   log,
		Stderr:   log,
		Guest:    true,
		Patience: 10 * time.Second,
	})
	return err
}

// runInside puts a script and the container's own part of the configuration
// into a private directory of the container, and runs the script there.
// Its arguments: script name, CTID, the script's size, the configuration's
// size, then the environment.
const runInside = `set -eu
umask 077
dir=$(mktemp -d /run/phx.XXXXXX)
trap 'rm -rf "$dir"' EXIT
trap 'exit 143' TERM
cd "$dir"
name=$1 ctid=$2 script_size=$3 config_size=$4
shift 4
head -c "$script_size" >"$name"
head -c "$config_size" >phoenix_lxc_configs.json
[ "$(wc -c <phoenix_lxc_configs.json)" -eq "$config_size" ] || { echo "the transfer of $name broke off" >&2; exit 1; }
chmod 0700 "$name"
umask 022
env HOME=/root "$@" "./$name" "$ctid" </dev/null`

// RunApplication runs an application script inside a container: SCRIPT CTID, in
// a directory that has object in phoenix_lxc_configs.json, with env in its
// environment. What the script prints, which may be anything, goes to log.
func (h *Host) RunApplication(ctx context.Context, name string, text, object []byte, ctid int,
	log io.Writer, env ...string) error {
	argv := []string{"/bin/sh", "-c", runInside, "sh", name, strconv.Itoa(ctid)}
	argv = append(argv, strconv.Itoa(len(text)), strconv.Itoa(len(object)))
	c := h.Exec(ctid, append(argv, env...)...)
	c.Label = fmt.Sprintf("pct exec %d (%s)", ctid, name)
	c.Stdin = bytes.NewReader(slices.Concat(text, object))
	c.Stdout, c.Stderr = log, log
	_, err := h.Run(ctx, c)
	return err
}
