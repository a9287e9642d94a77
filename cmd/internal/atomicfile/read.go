package atomicfile

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// Read reads the file at path whole. It must be a regular file of limit bytes at
// most: anything else could keep its reader waiting, or be without end.
func Read(path string, limit int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(data) > limit {
		err = fmt.Errorf("%s: longer than %d bytes", path, limit)
	}
	return data, err
}
