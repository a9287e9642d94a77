package pve

import (
	"context"
	"io"
	"path/filepath"
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
func (h *Host) RunFeature(ctx context.Context, dir, feature string, ctid int, caURL string, log io.Writer, env ...string) error {
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
