package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// profileFile returns the place of a profile's file below dest, the content
// that it should have, which is that of the file of the same name in source,
// and the content that it has, nil if it is not there.
func profileFile(source, dest, name string) (path string, want, have []byte, err error) {
	want, err = os.ReadFile(filepath.Join(source, name))
	if err != nil {
		return "", nil, nil, fmt.Errorf("AppArmor profile %s: %w: put the profile there, or name its directory by --apparmor", name, err)
	}
	path = filepath.Join(dest, name)
	have, err = os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, nil, fmt.Errorf("AppArmor profile %s: %w", name, err)
	}
	return path, want, have, nil
}
