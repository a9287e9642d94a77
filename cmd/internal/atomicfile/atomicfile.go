// Package atomicfile replaces files whole.
package atomicfile

import (
	"io/fs"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Write gives the file at path this content and mode, whatever the umask and
// the mode of a file that is there. Readers see the old file or the new one,
// never a part; a file that is not for others is so from the start. After a
// power failure it may be the old one again.
//
// [renameio.WriteFile] would keep the mode of the old file.
func Write(path string, content []byte, mode fs.FileMode) error {
	f, err := renameio.NewPendingFile(path,
		renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(mode), renameio.IgnoreUmask())
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}
