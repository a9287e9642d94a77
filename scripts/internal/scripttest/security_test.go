package scripttest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityPromisesAreTested: each test that SECURITY.md names for a promise is there.
func TestSecurityPromisesAreTested(t *testing.T) {
	repo := filepath.Join("..", "..", "..")
	text, err := os.ReadFile(filepath.Join(repo, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| promise | test |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var tests strings.Builder
	err = filepath.WalkDir(repo, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		tests.Write(source)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(table, "\n")[1:]
	if len(rows) < 10 {
		t.Fatalf("SECURITY.md makes %d promises", len(rows))
	}
	for _, row := range rows {
		named := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[strings.LastIndex(row, " | "):], -1)
		if len(named) == 0 {
			t.Errorf("no test is named for: %s", row)
		}
		for _, m := range named {
			there := false
			if sub, isSub := strings.CutPrefix(m[1], "TestLab/"); isSub {
				there = strings.Contains(tests.String(), `t.Run("`+sub+`"`)
			} else if strings.HasPrefix(m[1], "Test") {
				there = strings.Contains(tests.String(), "\nfunc "+m[1]+"(")
			} else {
				_, err := os.Stat(filepath.Join(repo, m[1]))
				there = err == nil
			}
			if !there {
				t.Errorf("SECURITY.md names %s, which is not there", m[1])
			}
		}
	}
}
