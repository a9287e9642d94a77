package pve

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLinkedClones(t *testing.T) {
	h := &Host{PVERoot: t.TempDir()}
	for name, text := range map[string]string{
		"lxc/900.conf":            "rootfs: zfs:basevol-900-disk-0,size=4G\ntemplate: 1\n",
		"lxc/901.conf":            "rootfs: zfs:basevol-900-disk-0/basevol-901-disk-0,size=4G\ntemplate: 1\n",
		"lxc/101.conf":            "rootfs: rbd:vm-101-disk-0\nmp3: rbd:base-900-disk-1/vm-101-disk-1,mp=/data\n",
		"nodes/pve2/lxc/102.conf": "rootfs: zfs:basevol-901-disk-0/subvol-102-disk-0,size=4G\n",
		"lxc/103.conf":            "unused0: dir:900/base-900-disk-0.raw/103/vm-103-disk-0.qcow2\n",
		"lxc/104.conf":            "#zfs:basevol-900-disk-0/subvol-104-disk-0\nrootfs: zfs:subvol-104-disk-0\n",
		"lxc/105.conf": "rootfs: zfs:basevol-9001-disk-0/subvol-105-disk-0\n" +
			"mp0: /srv/base-900-disk-0/x,mp=/x\n",
	} {
		path := filepath.Join(h.PVERoot, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for ctid, want := range map[int][]int{900: {101, 102, 103, 901}, 901: {102}, 104: {}} {
		got, err := h.LinkedClones(ctid)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%d: %v, want %v, %v", ctid, got, want, err)
		}
	}
}

func TestHasBaseVolumes(t *testing.T) {
	for rootfs, want := range map[string]bool{
		"zfs:basevol-900-disk-0,size=4G":                      true,
		"lab:900/base-900-disk-0.raw,size=4G":                 true,
		"volume=thin:base-900-disk-0":                         true,
		"zfs:basevol-900-disk-0/basevol-901-disk-0":           true,
		"zfs:basevol-900-disk-0/subvol-101-disk-0":            false,
		"dir:900/base-900-disk-0.raw/101/vm-101-disk-0.qcow2": false,
		"lab:101/vm-101-disk-0.raw":                           false,
		"base-storage:vm-101-disk-0":                          false,
		"":                                                    false,
	} {
		s := &Section{Values: map[string]string{"rootfs": rootfs}}
		if got := s.HasBaseVolumes(); got != want {
			t.Errorf("%q: %v", rootfs, got)
		}
	}
}
