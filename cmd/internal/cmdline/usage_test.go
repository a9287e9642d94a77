package cmdline

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	usageText    = regexp.MustCompile("(?s)\nconst usage = `(.*?)\n`\n")
	flagLiteral  = regexp.MustCompile(`&cli\.\w+Flag\{Name: "([a-z-]+)"(.*)`)
	envVars      = regexp.MustCompile(`EnvVars: \[\]string\{"(\w+)"\}`)
	flagInText   = regexp.MustCompile(`(?m)^ +--([a-z-]+)\b`)
	envVarInText = regexp.MustCompile(`\bPHX_[A-Z_]+\b`)
)

// The usage text of each program names its flags and their variables, and no
// others.
func TestUsageNamesEveryFlag(t *testing.T) {
	shared, err := os.ReadFile("../service/filter.go")
	if err != nil {
		t.Fatal(err)
	}
	programs, err := filepath.Glob("../../phx-*/main.go")
	if err != nil || len(programs) != 6 {
		t.Fatalf("%q, %v", programs, err)
	}
	for _, path := range programs {
		program := filepath.Base(filepath.Dir(path))
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m := usageText.FindSubmatch(source)
		if m == nil {
			t.Fatalf("%s: no usage text", program)
		}
		usage, code := string(m[1]), string(source)
		if strings.Contains(code, "service.Flags()") {
			code += string(shared)
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
		compare(t, program+": flag", flags, flagInText.FindAllStringSubmatch(usage, -1))
		compare(t, program+": variable", variables, envVarInText.FindAllStringSubmatch(usage, -1))
	}
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
			t.Errorf("%s %s is not in the usage text", what, name)
		}
	}
	for name := range named {
		if !have[name] {
			t.Errorf("%s %s is in the usage text, and does not exist", what, name)
		}
	}
}
