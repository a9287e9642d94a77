package pve

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckSubordinate: whatever ids root may not map, the lines that are told
// are all that is missing.
func TestCheckSubordinate(t *testing.T) {
	maps := []string{"u 0 100000 65536", "g 0 100000 33", "g 33 33 2", "g 35 100035 65501"}
	for _, tt := range []struct {
		users, groups string
		want          []string // lines of users, and of groups with a "g" before them
	}{
		{"root:100000:65536\n", "root:100000:65536\nroot:33:2\n", nil},
		{"0:100000:65536", "0:33:1\n\n# no\nroot:34:1\nother:5:5\n root:100000:65536\n", nil},
		{"root:100000:30000\nroot:130000:100000\n", "root:100035:65501\nroot:0:100035\n", nil},
		{"root:100000:65536\n", "root:100000:65536\nroot:33:1\n", []string{"groot:33:2"}},
		{"root:100000:65535\n", "root:100000:65536\nroot:33:2\n", []string{"root:100000:65536"}},
		{"me:100000:65536\nroot:x:1\nroot:1\n", "", []string{"root:100000:65536", "groot:100000:33", "groot:33:2",
			"groot:100035:65501"}},
	} {
		dir := t.TempDir()
		users, groups := filepath.Join(dir, "subuid"), filepath.Join(dir, "subgid")
		write := func(users, groups string) {
			for path, text := range map[string]string{filepath.Join(dir, "subuid"): users,
				filepath.Join(dir, "subgid"): groups} {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		write(tt.users, tt.groups)
		err := CheckSubordinate(maps, "id_maps asks for", users, groups)
		if (err != nil) != (tt.want != nil) {
			t.Errorf("%q, %q: %v", tt.users, tt.groups, err)
			continue
		}
		for _, line := range tt.want {
			line, isGroup := strings.CutPrefix(line, "g")
			if !strings.Contains(err.Error(), line) {
				t.Errorf("%q, %q: lacks %s: %v", tt.users, tt.groups, line, err)
			}
			if isGroup {
				tt.groups += "\n" + line
			} else {
				tt.users += "\n" + line
			}
		}
		write(tt.users, tt.groups)
		if err := CheckSubordinate(maps, "id_maps asks for", users, groups); err != nil {
			t.Errorf("with the lines that were told: %v", err)
		}
	}
	if err := CheckSubordinate(maps[:1], "id_maps asks for", "/nowhere/subuid", "/nowhere/subgid"); err == nil ||
		!strings.Contains(err.Error(), "/nowhere/subuid does not let root") {
		t.Errorf("no files: %v", err)
	}
}
