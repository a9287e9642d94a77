package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A module whose licence nobody has read is not passed on, and what a licence wants to come with a program does.
func TestLicenses(t *testing.T) {
	apache, err := os.ReadFile("../../../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	const bsd = "Redistributions in binary form must reproduce it.\n"
	for _, test := range []struct {
		name    string
		files   map[string]string
		ids     string
		passed  []string // in the file copyright
		refused string
	}{
		{name: "no licence", files: map[string]string{"README.md": "MIT"}, refused: "no file with a licence"},
		{name: "unknown", files: map[string]string{"LICENSE": "All rights reserved."}, refused: "not known"},
		{name: "one of two unknown", files: map[string]string{"LICENSE": bsd, "COPYING": "Other"},
			refused: "not known"},
		{name: "Apache with a notice", files: map[string]string{"LICENSE": string(apache), "NOTICE": "Made by A."},
			ids: "Apache-2.0", passed: []string{"/usr/share/common-licenses/Apache-2.0", "Made by A."}},
		{name: "two clauses", files: map[string]string{"LICENSE.md": bsd}, ids: "BSD-2-Clause", passed: []string{bsd}},
		{name: "three clauses", files: map[string]string{"License": bsd + "Neither the name"}, ids: "BSD-3-Clause",
			passed: []string{bsd}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range test.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			found, err := readLicenses(dir)
			if test.refused != "" {
				if err == nil || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("%v, want one with %q", err, test.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != 1 || found[0].id != test.ids {
				t.Errorf("%v, want %s", found, test.ids)
			}
			text := copyrightOf([]string{"m"}, map[string]module{"m": {path: "example.com/m", licenses: found}})
			for _, part := range append(test.passed, "example.com/m") {
				if !strings.Contains(text, part) {
					t.Errorf("without %q: %s", part, text)
				}
			}
			if strings.Contains(text, "TERMS AND CONDITIONS FOR USE") {
				t.Error("the Apache License is there, which every Debian system has")
			}
		})
	}
}
