// Package doctest checks what is written about the project against the project:
// the packages in docs/architecture.md, package comments, links, and the length
// of lines. It reads files and runs nothing.
package doctest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const repo = "../../../"

// module is the path of the packages in imports.
const module = "thinkheads.ai/phx/"

// A goPackage is what the Go files of a directory have, tests included.
type goPackage struct {
	comment string
	imports []string // of the module, without tests'
}

// packages returns the packages below cmd and scripts/internal, by directory.
// Modules of their own, such as the tools, are left out.
func packages(t *testing.T) map[string]*goPackage {
	t.Helper()
	all := map[string]*goPackage{}
	walk := func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(repo, filepath.Dir(path))
		if err != nil {
			return err
		}
		p := all[dir]
		if p == nil {
			p = &goPackage{}
			all[dir] = p
		}
		p.comment += file.Doc.Text()
		if !strings.HasSuffix(path, "_test.go") {
			p.imports = append(p.imports, ownImports(file)...)
		}
		return nil
	}
	for _, dir := range []string{"cmd", "scripts/internal", "scripts/phoenix-view"} {
		if err := filepath.WalkDir(repo+dir, walk); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func ownImports(file *ast.File) []string {
	var own []string
	for _, spec := range file.Imports {
		if dir, ok := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module); ok {
			own = append(own, dir)
		}
	}
	return own
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(repo + file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestPackages: docs/architecture.md has each package once in its table, and
// those of cmd once in its layers, where none imports a package of its own
// layer or of one above.
func TestPackages(t *testing.T) {
	text := read(t, "docs/architecture.md")
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:cmd|scripts)/[^`]+)` \\|").FindAllStringSubmatch(text, -1) {
		listed = append(listed, m[1])
	}
	_, rest, _ := strings.Cut(text, "imports only packages of lines below its own:\n\n")
	layers, _, _ := strings.Cut(rest, "\n\n")
	layer := map[string]int{}
	for i, line := range strings.Split(layers, "\n") {
		for name := range strings.FieldsSeq(line) {
			if !strings.HasPrefix(name, "phx-") {
				name = "internal/" + name
			}
			layer["cmd/"+name] = i + 1
		}
	}
	all := packages(t)
	for dir, p := range all {
		if !slices.Contains(listed, dir) {
			t.Errorf("docs/architecture.md, Packages: %s is not in the table", dir)
		}
		if !strings.HasPrefix(dir, "cmd/") {
			continue
		}
		if layer[dir] == 0 {
			t.Errorf("docs/architecture.md, Packages: %s is in no line of the layers", dir)
		}
		for _, imported := range p.imports {
			if layer[imported] <= layer[dir] {
				t.Errorf("docs/architecture.md, Packages: %s imports %s: it has to stand on a line above that",
					dir, imported)
			}
		}
	}
	for i, dir := range listed {
		if all[dir] == nil || slices.Contains(listed[:i], dir) {
			t.Errorf("%s is in the table twice, or not there", dir)
		}
	}
	for dir := range layer {
		if all[dir] == nil {
			t.Errorf("%s is in a layer, and not there", dir)
		}
	}
}

// TestPackageComments: each package has a comment that says more than its name.
func TestPackageComments(t *testing.T) {
	for dir, p := range packages(t) {
		if n := strings.Count(strings.TrimSpace(p.comment), "\n") + 1; p.comment == "" || n < 2 {
			t.Errorf("%s: the package comment has %d lines, want 2 or more: what it is for, what it must not know:\n%s",
				dir, n, p.comment)
		}
	}
}

// fences are what may stand behind ```: commands that the tests run in the lab,
// commands for a Proxmox VE host, others to read, what a terminal showed, and data.
var fences = []string{"sh", "sh host", "sh norun", "console", "json", "yaml"}

// notRun is what blocks begin with that are neither run in the lab nor for a host:
// what the tests are, what they run elsewhere, and programs that they take out of
// the page.
var notRun = []string{"./scripts/", "go ", "PHX_TEST_LAB=1 go test ", "#!/bin/"}

// TestPages: links of the pages lead to files, lines have 120 columns at most, but
// for tables and blocks of code, and each of these says what it is. README.md is
// short.
func TestPages(t *testing.T) {
	pages, err := filepath.Glob(repo + "docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	manual, err := filepath.Glob(repo + "docs/man/*.md")
	if err != nil || len(manual) < 7 {
		t.Fatalf("%d manual pages, %v", len(manual), err)
	}
	pages = append(pages, manual...)
	manuals, err := filepath.Glob(repo + "docs/man/*.md")
	if err != nil || len(manuals) == 0 {
		t.Fatalf("%q, %v", manuals, err)
	}
	pages = append(pages, manuals...)
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} {
		pages = append(pages, repo+name)
	}
	link := regexp.MustCompile(`\]\(([^):#]+)(#[^)]*)?\)`)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		code := false
		lines := strings.Split(string(text), "\n")
		if page == repo+"README.md" && len(lines) > 121 {
			t.Errorf("%s has %d lines, want 120 at most", page, len(lines)-1)
		}
		for i, line := range lines {
			if fence, ok := strings.CutPrefix(line, "```"); ok {
				if code = !code; code && !slices.Contains(fences, fence) {
					t.Errorf("%s:%d: %q is none of %q", page, i+1, fence, fences)
				}
				isNotRun := func(begin string) bool { return strings.HasPrefix(lines[i+1], begin) }
				if fence == "sh norun" && !slices.ContainsFunc(notRun, isNotRun) {
					t.Errorf("%s:%d: is run by no test, and is not for a host", page, i+2)
				}
			}
			if n := utf8.RuneCountInString(line); n > 120 && !code && !strings.HasPrefix(line, "|") {
				t.Errorf("%s:%d: %d columns", page, i+1, n)
			}
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
					t.Errorf("%s:%d: %v", page, i+1, err)
				}
			}
		}
	}
}
