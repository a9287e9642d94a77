package scripttest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	printedUsage = regexp.MustCompile(`(?s)\nusage='(.*?)'\n|\n\tcat <<'EOF'\n(.*?)\nEOF\n`)
	programUsage = regexp.MustCompile("(?s)\nconst usage = `(.*?)\n`\n")
	variable     = regexp.MustCompile(`\b(?:(?:PHX|PHOENIX|XDG)_[A-Z_]+|DRY_RUN)\b`)
	option       = regexp.MustCompile(`--[a-z][a-z-]+`)
	// A variable that is read: the second group is not empty where it may be unset.
	readVariable = regexp.MustCompile(`\$\{?(` + variable.String() + `)(:?[-+?])?`)
	// An option in a pattern of case, or in a comparison.
	readOption = regexp.MustCompile(`(?m)^\t*(--[a-z-]+)\*?(?: \||\))|(?:\bin|\||==) (--[a-z-]+)\*?[ )]`)
	// Options in a pattern of case, such as --@(dry-run|quiet)).
	readOptions = regexp.MustCompile(`--@\(([a-z|-]+)\)`)
	getenv      = regexp.MustCompile(`os\.(?:Getenv|LookupEnv)\("(PHX_[A-Z_]+)"\)`)
)

// TestUsage: the usage text of a script, which is the comment at its top and what it prints as its usage, names each
// environment variable and each option that the script reads. What it names exists, there or in what the script runs.
func TestUsage(t *testing.T) {
	scripts, err := filepath.Glob("../../*")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, path := range append(scripts, "../tools/build") {
		text := readFile(t, path)
		if !strings.HasPrefix(text, "#!") && !strings.HasPrefix(text, "# shellcheck shell=") {
			continue
		}
		checked++
		name := filepath.Base(path)
		usage, code := splitUsage(text)
		if !strings.Contains(usage, "Usage:") {
			t.Errorf("%s has no usage text", name)
		}
		if strings.Contains(code, `/phoenix_assets.sh"`) && !strings.Contains(usage, "phoenix_assets.sh") {
			t.Errorf("%s: the usage text does not say that the variables of phoenix_assets.sh count", name)
		}
		run := usagesOf(t, code)
		compare(t, name+": variable", variablesOf(code), variable.FindAllString(usage, -1), run)
		compare(t, name+": option", optionsOf(code), option.FindAllString(usage, -1), run)
		if pages, _ := filepath.Glob("../../../docs/man/" + name + ".*.md"); len(pages) > 0 {
			page := readFile(t, pages[0])
			compare(t, pages[0]+": variable", variablesOf(code), variable.FindAllString(page, -1), run)
			compare(t, pages[0]+": option", optionsOf(code), option.FindAllString(page, -1), run)
		}
	}
	if checked < 15 {
		t.Errorf("%d scripts", checked)
	}
}

// splitUsage returns the usage text of a script, and its lines of code.
func splitUsage(text string) (usage, code string) {
	lines := strings.SplitAfter(text, "\n")
	for len(lines) > 0 && strings.HasPrefix(lines[0], "#") {
		usage += lines[0]
		lines = lines[1:]
	}
	code = strings.Join(lines, "")
	for _, m := range printedUsage.FindAllStringSubmatch(code, -1) {
		usage += m[1] + m[2]
	}
	code = printedUsage.ReplaceAllString(code, "\n")
	return usage, regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAllString(code, "")
}

// variablesOf returns the variables that a script takes from its environment: those that it reads, but for those that
// it always sets itself.
func variablesOf(code string) map[string]bool {
	variables := map[string]bool{}
	for _, m := range readVariable.FindAllStringSubmatch(code, -1) {
		set := regexp.MustCompile(`(?m)(?:^|\s)` + m[1] + `=`).MatchString(code)
		if m[2] != "" || !set {
			variables[m[1]] = true
		}
	}
	return variables
}

func optionsOf(code string) map[string]bool {
	options := map[string]bool{}
	for _, m := range readOption.FindAllStringSubmatch(code, -1) {
		options[m[1]+m[2]] = true
	}
	for _, m := range readOptions.FindAllStringSubmatch(code, -1) {
		for name := range strings.SplitSeq(m[1], "|") {
			options["--"+name] = true
		}
	}
	return options
}

// usagesOf returns the usage texts of the programs of phx that a script runs, and the variables of the tests.
func usagesOf(t *testing.T, code string) string {
	t.Helper()
	var all strings.Builder
	programs, err := filepath.Glob("../../../cmd/phx-*/main.go")
	if err != nil || len(programs) != 6 {
		t.Fatalf("%q, %v", programs, err)
	}
	for _, path := range programs {
		program := filepath.Base(filepath.Dir(path))
		if regexp.MustCompile(program + `\b`).MatchString(code) {
			all.WriteString(programUsage.FindString(readFile(t, path)))
			pages, err := filepath.Glob("../../../docs/man/" + program + ".*.md")
			if err != nil || len(pages) != 1 {
				t.Fatalf("%s: manual pages: %q, %v", program, pages, err)
			}
			all.WriteString(readFile(t, pages[0]))
		}
	}
	for _, m := range regexp.MustCompile(`\./scripts/internal/([\w-]+)`).FindAllStringSubmatch(code, -1) {
		tests, err := filepath.Glob("../" + m[1] + "/*_test.go")
		if err != nil || len(tests) == 0 {
			t.Fatalf("%s: %q, %v", m[1], tests, err)
		}
		for _, path := range tests {
			for _, m := range getenv.FindAllStringSubmatch(readFile(t, path), -1) {
				all.WriteString(" " + m[1])
			}
		}
	}
	return all.String()
}

// compare compares what a script reads with what its usage text names. A name may also stand in the usage texts of what
// the script runs.
func compare(t *testing.T, what string, read map[string]bool, named []string, run string) {
	t.Helper()
	isNamed := map[string]bool{}
	for _, name := range named {
		isNamed[name] = true
	}
	for name := range read {
		if !isNamed[name] {
			t.Errorf("%s %s is not in the usage text", what, name)
		}
	}
	for name := range isNamed {
		if !read[name] && !regexp.MustCompile(name+`\b`).MatchString(run) {
			t.Errorf("%s %s is in the usage text, and does not exist", what, name)
		}
	}
}

// readFile returns the text of a file, or nothing for a directory.
func readFile(t *testing.T, path string) string {
	t.Helper()
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return ""
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
