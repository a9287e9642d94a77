package pve

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCheckClusterFiles(t *testing.T) {
	dir := t.TempDir()
	h := &Host{PVERoot: dir}
	check := func(want string) {
		t.Helper()
		switch err := h.CheckClusterFiles(); {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%v, want %q", err, want)
		}
	}
	check("there is no directory " + filepath.Join(dir, "lxc"))
	if err := os.Mkdir(filepath.Join(dir, "lxc"), 0o755); err != nil {
		t.Fatal(err)
	}
	check("")
	for text, want := range map[string]string{
		`{"cluster": {"quorate": 1}}`: "", `{"cluster": {"quorate": 0}}`: "the cluster has no quorum",
	} {
		if err := os.WriteFile(filepath.Join(dir, ".members"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		check(want)
	}
	h.PVERoot = filepath.Join(dir, ".members") // what cannot be looked at may be there
	check("not a directory")
}

func TestSnapshotNames(t *testing.T) {
	c := &Container{Conf: ParseConf([]byte("memory: 1\n\n[late]\nsnaptime: 1700000300\n\n" +
		"[early]\nsnaptime: 900000000\n\n[unfinished]\nsnaptime: 1700000100\nsnapstate: prepare\n"))}
	if have := c.SnapshotNames(); !slices.Equal(have, []string{"early", "late"}) {
		t.Errorf("have %q", have)
	}
}
