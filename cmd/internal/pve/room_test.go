package pve

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// outside are the files of other packages that use a path of Proxmox VE's, and
// why they may. No other may: what a file below Proxmox's root says is for this
// package to read and to change.
var outside = map[string]string{
	"cmd/phx-lxc/create.go": "names the root as a place that no container may own",
}

func TestNobodyElseOpensProxmoxsFiles(t *testing.T) {
	const root = "../../.."
	found := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(root, "cmd"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil || file.Name.Name == "pve" {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			// A pve.Host that is made there has PVERoot as a key, and is none.
			s, ok := n.(*ast.SelectorExpr)
			if ok && slices.Contains([]string{"PVERoot", "PVELock"}, s.Sel.Name) {
				found[filepath.ToSlash(name)] = true
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range found {
		if outside[name] == "" {
			t.Errorf("%s uses a path of Proxmox VE's: let a method of Host do that", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(outside)) {
		if !found[name] {
			t.Errorf("%s uses no path of Proxmox VE's any more: take it out of the list", name)
		}
	}
}
