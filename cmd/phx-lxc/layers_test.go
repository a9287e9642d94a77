package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers has, for each file, those whose functions, types, fields and constants
// it may use.
var layers = map[string]string{
	"main.go": "schedule.go assets.go job.go check.go",
	"check.go": "survey.go check_containers.go check_host.go check_storage.go check_network.go schedule.go " +
		"actions.go recreate.go stages.go create.go mounts.go scripts.go job.go desired.go",
	"check_containers.go": "survey.go inputs.go job.go desired.go",
	"check_host.go":       "survey.go scripts.go inputs.go schedule.go job.go",
	"check_storage.go":    "survey.go check_containers.go schedule.go template.go job.go volumes.go",
	"check_network.go":    "survey.go schedule.go job.go firewall.go networks.go",
	"survey.go":           "schedule.go job.go",
	"schedule.go":         "recreation.go early.go actions.go assets.go job.go",
	"recreation.go":       "schedule.go recreate.go actions.go stages.go job.go",
	"early.go":            "actions.go stages.go health.go job.go",
	"assets.go":           "job.go",
	"recreate.go":         "actions.go stages.go create.go mounts.go scripts.go template.go job.go desired.go",
	"actions.go":          "status.go stages.go job.go desired.go",
	"status.go":           "stages.go job.go desired.go",
	"stages.go": "create.go mounts.go scripts.go health.go template.go job.go desired.go volumes.go " +
		"firewall.go networks.go",
	"create.go":   "mounts.go template.go job.go desired.go volumes.go networks.go",
	"template.go": "scripts.go job.go desired.go volumes.go firewall.go networks.go",
	"mounts.go":   "job.go desired.go",
	"health.go":   "scripts.go job.go desired.go",
	"scripts.go":  "inputs.go job.go desired.go",
	"inputs.go":   "job.go desired.go",
	"job.go":      "desired.go firewall.go networks.go",
	"desired.go":  "volumes.go devices.go firewall.go networks.go",
	"volumes.go":  "",
	"devices.go":  "",
	"firewall.go": "networks.go",
	"networks.go": "",
}

// Files that read and change nothing: what they may import, and what of pve they
// may not use.
var (
	pure        = []string{"desired.go", "volumes.go", "devices.go", "firewall.go", "networks.go"}
	pureImports = strings.Fields(`cmp errors fmt maps net/netip slices strconv strings
		thinkheads.ai/phx/cmd/internal/ca thinkheads.ai/phx/cmd/internal/config thinkheads.ai/phx/cmd/internal/pve
		thinkheads.ai/phx/cmd/internal/remedy`)
	impure = []string{"Command", "Container", "Host", "Preview", "Records", "Sleep"}
)

func TestLayers(t *testing.T) {
	for _, arrow := range upward(t, layers) {
		t.Error(arrow)
	}
	// The test can fail.
	less := maps.Clone(layers)
	less["stages.go"] = strings.ReplaceAll(layers["stages.go"], "desired.go ", "")
	if arrows := upward(t, less); !slices.Contains(arrows, "stages.go uses rawLines of desired.go") {
		t.Errorf("stages.go may not use desired.go, and that is not found: %q", arrows)
	}
	less["stages.go"] = strings.ReplaceAll(layers["stages.go"], "create.go ", "")
	if arrows := upward(t, less); !slices.Contains(arrows, "stages.go uses define of create.go") {
		t.Errorf("stages.go may not use create.go, and that is not found: %q", arrows)
	}
}

// upward returns what the program's files use of others against a table.
func upward(t *testing.T, table map[string]string) []string {
	t.Helper()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	var files []*ast.File
	arrows := map[string]bool{}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		if _, known := table[path]; !known {
			t.Errorf("%s is in no layer", path)
		}
		if !slices.Contains(pure, path) {
			continue
		}
		for _, i := range file.Imports {
			if !slices.Contains(pureImports, strings.Trim(i.Path.Value, `"`)) {
				arrows[path+" imports "+i.Path.Value] = true
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains(impure, s.Sel.Name) {
				if of, ok := s.X.(*ast.Ident); ok && of.Name == "pve" {
					arrows[path+" uses pve."+s.Sel.Name] = true
				}
			}
			return true
		})
	}
	// Other packages are empty: only what the program itself declares is resolved.
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: noImports{}, Error: func(error) {}}
	conf.Check("main", set, files, info)
	for ident, object := range info.Uses {
		from := filepath.Base(set.Position(ident.Pos()).Filename)
		to := filepath.Base(set.Position(object.Pos()).Filename)
		if !object.Pos().IsValid() || from == to {
			continue
		}
		if !slices.Contains(strings.Fields(table[from]), to) {
			arrows[fmt.Sprintf("%s uses %s of %s", from, object.Name(), to)] = true
		}
	}
	return slices.Sorted(maps.Keys(arrows))
}

type noImports struct{}

func (noImports) Import(path string) (*types.Package, error) {
	p := types.NewPackage(path, filepath.Base(path))
	p.MarkComplete()
	return p, nil
}
