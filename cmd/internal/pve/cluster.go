package pve

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// notQuorate matches what Proxmox VE's file of the cluster's members has where this
// node is not among the majority of them.
var notQuorate = regexp.MustCompile(`"quorate":\s*0\b`)

// CheckClusterFiles returns why Proxmox VE's configuration cannot be worked on, nil if
// it can.
func (h *Host) CheckClusterFiles() error {
	dir := filepath.Join(h.PVERoot, "lxc")
	switch info, err := os.Stat(dir); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case err != nil, !info.IsDir():
		return remedy.Errorf("run phx on the Proxmox VE host, and see what keeps it from being there with: "+
			"systemctl status pve-cluster", "there is no directory %s", dir)
	}
	text, err := readIfThere(filepath.Join(h.PVERoot, ".members"))
	if err == nil && notQuorate.Match(text) {
		return remedy.Errorf("bring up the other nodes, and see them with: pvecm status",
			"the cluster has no quorum, and nothing can be written to %s", h.PVERoot)
	}
	return nil
}
