package service

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Of a program with two halves, host.go alone knows Proxmox VE, the events and
// the CA's state; main.go knows the filter's options.
func TestHalvesAreApart(t *testing.T) {
	const internal = "thinkheads.ai/phx/cmd/internal/"
	hosts := []string{"cahost", "event", "pve", "service"}
	for _, program := range []string{"phx-nginx", "phx-traefik"} {
		files, err := filepath.Glob("../../" + program + "/*.go")
		if err != nil || !slices.Contains(files, "../../"+program+"/host.go") ||
			!slices.Contains(files, "../../"+program+"/guest.go") {
			t.Fatalf("%q, %v", files, err)
		}
		for _, path := range files {
			name := filepath.Base(path)
			if name == "host.go" || strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range file.Imports {
				imported, _ := strconv.Unquote(spec.Path.Value)
				pkg, _ := strings.CutPrefix(imported, internal)
				if slices.Contains(hosts, pkg) && (name != "main.go" || pkg != "service") {
					t.Errorf("%s imports %s", path, imported)
				}
			}
		}
	}
}
