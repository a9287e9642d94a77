package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"thinkheads.ai/phx/cmd/internal/config"
)

// An id of -1 leaves an owner or a group as it is, as in chown(2).

// ownerDiffers tells whether the directory at path, the top of a mount point,
// has another owner or group than these.
func ownerDiffers(path string, uid, gid int) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return false, fmt.Errorf("owner of a mount point: %w", err)
	}
	return differs(info, uid, gid), nil
}

func differs(info fs.FileInfo, uid, gid int) bool {
	stat := info.Sys().(*syscall.Stat_t)
	return uid != -1 && int(stat.Uid) != uid || gid != -1 && int(stat.Gid) != gid
}

// chownTree gives the directory at path and all below it this owner and
// group. Symbolic links change their own owner and are not followed, nor does
// it leave the file system of path. A container may be at work in the tree:
// whatever it replaces meanwhile, nothing outside is reached. What has the
// owner already is not touched. The top comes last, so that [ownerDiffers]
// holds until all is done.
func chownTree(path string, uid, gid int) error {
	top, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("chown a mount point: %w", err)
	}
	if !top.IsDir() {
		return fmt.Errorf("chown a mount point: %s is not a directory: name the directory itself", path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("chown a mount point: %w", err)
	}
	defer root.Close()
	if opened, err := root.Stat("."); err != nil || !os.SameFile(top, opened) {
		return fmt.Errorf("chown a mount point: %s is being replaced", path)
	}
	device := top.Sys().(*syscall.Stat_t).Dev
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if name == "." {
			return err
		}
		var info fs.FileInfo
		if err == nil {
			info, err = root.Lstat(name)
		}
		if err == nil && info.Sys().(*syscall.Stat_t).Dev != device {
			if info.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if err == nil && differs(info, uid, gid) {
			err = root.Lchown(name, uid, gid)
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		return err
	})
	if err == nil && differs(top, uid, gid) {
		err = root.Chown(".", uid, gid)
	}
	if err != nil {
		return fmt.Errorf("chown the mount point %s: %w", path, err)
	}
	return nil
}

// mappedOwner returns the host's ids of an owner and a group in the container:
// by its maps of ids, or else shifted by 100000 if it is unprivileged, as it
// is unless the configuration says otherwise.
func mappedOwner(c *config.Container, uid, gid int) (hostUID, hostGID int, err error) {
	var maps []string
	for _, l := range wantedRaw(c) {
		if l.Key == idMapKey {
			maps = append(maps, l.Value)
		}
	}
	if maps == nil {
		if c.Unprivileged != nil && !*c.Unprivileged {
			return uid, gid, nil
		}
		maps = []string{"u 0 100000 65536", "g 0 100000 65536"}
	}
	if hostUID, err = mapped(maps, "u", uid); err != nil {
		return 0, 0, err
	}
	if hostGID, err = mapped(maps, "g", gid); err != nil {
		return 0, 0, err
	}
	return hostUID, hostGID, nil
}

func mapped(maps []string, kind string, id int) (int, error) {
	if id == -1 {
		return id, nil
	}
	for _, m := range maps {
		var first, host, count int
		if _, err := fmt.Sscanf(m, kind+" %d %d %d", &first, &host, &count); err == nil && first <= id && id < first+count {
			return host + id - first, nil
		}
	}
	what := map[string]string{"u": "user", "g": "group"}[kind]
	return 0, fmt.Errorf("%s %d of the container is in none of its maps of ids (%s): nothing on the host can belong to it", what, id, strings.Join(maps, "; "))
}
