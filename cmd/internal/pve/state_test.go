package pve

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestState(t *testing.T) {
	h := &Host{PVERoot: t.TempDir()}
	s := h.State("ca")
	dir := filepath.Join(h.PVERoot, "priv/phx/ca")
	if _, err := s.Read("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read of a file that is not there: %v", err)
	}
	release, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for _, content := range []string{"a", "b"} {
		if err := s.Write("x", []byte(content)); err != nil {
			t.Fatal(err)
		}
		if have, err := s.Read("x"); err != nil || string(have) != content {
			t.Errorf("%q, %v", have, err)
		}
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, s.Path("x"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if err := s.Write("long", []byte(strings.Repeat("x", maxState+1))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read("long"); err == nil || !strings.Contains(err.Error(), "longer than 65536 bytes") {
		t.Errorf("read of a long file: %v", err)
	}
	if names, err := s.List(); err != nil || !slices.Equal(names, []string{"long", "x"}) {
		t.Errorf("%q, %v", names, err)
	}
	if err := s.Remove("none", "x", "long"); err != nil {
		t.Error(err)
	}
	if names, err := s.List(); err != nil || len(names) != 0 {
		t.Errorf("left: %q, %v", names, err)
	}
}
