package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
)

// WriteFile gives a file this content and mode, atomically, and reports
// whether it had another. Missing directories are made with mode 0755, which
// phx's own have afterwards if the file is for others.
func (s *Setup) WriteFile(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	if mode&0o004 != 0 {
		if err := s.openDirs(path); err != nil {
			return false, err
		}
	}
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, content) {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm() == mode {
			return false, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	if err := atomicfile.Write(path, content, mode); err != nil {
		return false, err
	}
	s.Changed("wrote %s", path)
	return true, nil
}

// ownDirs are directories that phx has made, or whose files it writes.
var ownDirs = []string{"/etc/phx", "/etc/traefik"}

// openDirs lets others enter those of phx's own directories above path that are
// there: they may have been made under another umask.
func (s *Setup) openDirs(path string) error {
	for _, top := range ownDirs {
		if !strings.HasPrefix(path, top+"/") {
			continue
		}
		for dir := filepath.Dir(path); len(dir) >= len(top); dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm()&0o055 == 0o055 {
				continue
			}
			if err == nil {
				err = os.Chmod(dir, info.Mode().Perm()|0o755)
			}
			if err != nil {
				return err
			}
			s.Changed("let others enter %s", dir)
		}
	}
	return nil
}

// WriteState keeps v in a file, for the next run: [ReadState] reads it.
func (s *Setup) WriteState(file string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = s.WriteFile(file, append(text, '\n'), 0o644)
	return err
}

// ReadState returns what [Setup.WriteState] has left in a file.
func ReadState[T any](file string) (v T, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return v, fmt.Errorf("%s: %w", file, err)
	}
	return v, nil
}
