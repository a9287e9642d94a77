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
	"cmd/phx-lxc/mounts.go": "names the root as a place that no container may own",
	"cmd/phx-plan/main.go":  "names the root as a place that no container may own",
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
		if usesRoot(file) {
			found[filepath.ToSlash(name)] = true
		}
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

// usesRoot reports whether a file does more with Proxmox's root than give a flag
// for it to a Host that it makes.
func usesRoot(file *ast.File) (uses bool) {
	fields := []string{"PVERoot", "PVELock"}
	flags := []string{`"pve-root"`, `"pve-lock"`}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && slices.Contains(append(fields, "Name"), key.Name) {
				return false // of a Host, or of the flag itself
			}
		case *ast.SelectorExpr:
			uses = uses || slices.Contains(fields, n.Sel.Name)
		case *ast.BasicLit:
			isText := strings.Contains(n.Value, "\n") // as a usage text
			for _, part := range []string{"/etc/pve/", "priv/phx", "cluster.fw", "resources.cfg", "storage.cfg"} {
				uses = uses || !isText && strings.Contains(n.Value, part)
			}
			uses = uses || slices.Contains(flags, n.Value)
		}
		return true
	})
	return uses
}

func TestUsesRoot(t *testing.T) {
	for body, want := range map[string]bool{
		`_ = &pve.Host{PCT: c.String("pct"), PVERoot: c.String("pve-root")}`: false,
		`_ = &cli.StringFlag{Name: "pve-root", Value: "/etc/pve"}`:           false,
		`os.ReadFile(host.PVERoot + "/x")`:                                   true,
		`root := c.String("pve-root"); os.ReadFile(root)`:                    true,
		`os.ReadFile("/etc/pve/storage.cfg")`:                                true,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() { "+body+" }", 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := usesRoot(file); got != want {
			t.Errorf("%s: %t", body, got)
		}
	}
}
