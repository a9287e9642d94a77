package cmdline

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

var (
	usageText    = regexp.MustCompile("(?s)\nconst usage = `(.*?)\n`\n")
	flagLiteral  = regexp.MustCompile(`&cli\.\w+Flag\{Name: "([a-z-]+)"(.*)`)
	envVars      = regexp.MustCompile(`"(PHX_[A-Z_]+)"`)
	getenv       = regexp.MustCompile(`os\.(?:Getenv|LookupEnv)\("(PHX_[A-Z_]+)"\)`)
	unknownEnv   = regexp.MustCompile(`os\.(?:Getenv|LookupEnv)\([^"].*`)
	flagInText   = regexp.MustCompile(`(?m)^ +--([a-z-]+)\b`)
	envVarInText = regexp.MustCompile(`\bPHX_[A-Z_]+\b`)
	flagInPage   = regexp.MustCompile(`(?m)^#### \*\*--([a-z-]+)\*\*`)
)

// The usage text of each program names its flags and their variables, and the manual page also the other variables that
// the program reads, in whatever package of the module; and neither names anything else.
func TestUsageNamesEveryFlag(t *testing.T) {
	ofService, ofHost := sources(t, "../service"), sources(t, "../pve")
	programs, err := filepath.Glob("../../phx-*/main.go")
	if err != nil || len(programs) != 6 {
		t.Fatalf("%q, %v", programs, err)
	}
	for _, path := range append(programs, "../../../scripts/phoenix-view/main.go") {
		program := filepath.Base(filepath.Dir(path))
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m := usageText.FindSubmatch(source)
		if m == nil {
			t.Fatalf("%s: no usage text", program)
		}
		usage, code := string(m[1]), sources(t, filepath.Dir(path))
		if strings.Contains(code, "service.Flags()") {
			code += ofService
		}
		if strings.Contains(code, "pve.Flags()") {
			code += ofHost
		}
		flags, variables := map[string]bool{"help": true, "version": true}, map[string]bool{}
		for _, f := range flagLiteral.FindAllStringSubmatch(code, -1) {
			if strings.Contains(f[2], "Hidden: true") {
				continue
			}
			flags[f[1]] = true
			if v := envVars.FindStringSubmatch(f[2]); v != nil {
				variables[v[1]] = true
			}
		}
		compare(t, program+": the usage text: variable", variables,
			envVarInText.FindAllStringSubmatch(usage, -1))
		for _, dir := range packages(t, filepath.Dir(path)) {
			source := sources(t, dir)
			for _, m := range getenv.FindAllStringSubmatch(source, -1) {
				variables[m[1]] = true
			}
			if call := unknownEnv.FindString(source); call != "" {
				t.Errorf("%s: %s: which variable this reads cannot be seen", dir, call)
			}
		}
		for line := range strings.SplitSeq(usage, "\n") {
			shown := strings.ReplaceAll(line, "` + cmdline.DefaultDomain + `", DefaultDomain)
			if utf8.RuneCountInString(shown) > 80 {
				t.Errorf("%s: wider than 80 columns: %s", program, shown)
			}
		}
		page := manual(t, program)
		compare(t, program+": the usage text: flag", flags, flagInText.FindAllStringSubmatch(usage, -1))
		compare(t, program+": the manual page: flag", flags, flagInPage.FindAllStringSubmatch(page, -1))
		compare(t, program+": the manual page: variable", variables, envVarInText.FindAllStringSubmatch(page, -1))
	}
}

// manual returns the manual page of a program, which the usage text names.
func manual(t *testing.T, program string) string {
	t.Helper()
	pages, err := filepath.Glob("../../../docs/man/" + program + ".*.md")
	if err != nil || len(pages) != 1 {
		t.Fatalf("%s: manual pages: %q, %v", program, pages, err)
	}
	page, err := os.ReadFile(pages[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// packages returns the directories of the packages of this module that the program in a directory is built from.
func packages(t *testing.T, dir string) []string {
	t.Helper()
	list := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if .Main}}{{$.Dir}}{{end}}{{end}}", ".")
	list.Dir = dir
	out, err := list.Output()
	dirs := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(dirs) < 1 {
		t.Fatalf("%s: go list: %q, %v", dir, out, err)
	}
	return dirs
}

// sources returns the package in a directory without its tests.
func sources(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(dir + "/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %q, %v", dir, files, err)
	}
	var all strings.Builder
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// compare compares what there is with the last group of each match.
func compare(t *testing.T, what string, have map[string]bool, matches [][]string) {
	t.Helper()
	named := map[string]bool{}
	for _, m := range matches {
		named[m[len(m)-1]] = true
	}
	for name := range have {
		if !named[name] {
			t.Errorf("%s %s is missing", what, name)
		}
	}
	for name := range named {
		if !have[name] {
			t.Errorf("%s %s does not exist", what, name)
		}
	}
}
