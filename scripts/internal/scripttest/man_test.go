package scripttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cpuguy83/go-md2man/v2/md2man"
)

// otherPages are manual pages that are not phx's, and to which its own lead.
var otherPages = []string{"pct(1)", "pct.conf(5)", "nginx(8)", "phoenix_lxc_configs.json(5)", "phx-events(5)"}

var (
	reference = regexp.MustCompile(`\*\*([\w.-]+)\*\*(\(\d\))`)
	mark      = regexp.MustCompile("\\*[\\w-]|\\w\\*|`")
	heading   = regexp.MustCompile(`(?m)^# (.*)$`)
)

// TestManual: each manual page has the sections that people look for, leads to pages that there are, names its own
// program, and becomes a page that mandoc finds nothing wrong with and that fits a terminal of 80 columns.
func TestManual(t *testing.T) {
	files, err := filepath.Glob("../../../docs/man/*.md")
	if err != nil || len(files) < 7 {
		t.Fatalf("%q, %v", files, err)
	}
	pages := slices.Clone(otherPages)
	for _, file := range files {
		name, section := pageOf(file)
		pages = append(pages, name+"("+section+")")
	}
	for _, file := range files {
		name, section := pageOf(file)
		t.Run(name, func(t *testing.T) {
			text := readFile(t, file)
			if !strings.HasPrefix(text, "# NAME\n\n"+name+" - ") {
				t.Errorf("%s does not begin with its name", file)
			}
			var headings []string
			for _, m := range heading.FindAllStringSubmatch(text, -1) {
				headings = append(headings, m[1])
			}
			at := -1
			for _, want := range []string{
				"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO",
			} {
				i := slices.Index(headings, want)
				if i <= at {
					t.Errorf("section %s is missing, or not at its place: %q", want, headings)
				}
				at = i
			}
			for _, m := range reference.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(pages, m[1]+m[2]) {
					t.Errorf("there is no page %s%s", m[1], m[2])
				}
			}
			render(t, name, section, text)
		})
	}
}

// pageOf returns the name and the section of a page: docs/man/NAME.SECTION.md.
func pageOf(file string) (name, section string) {
	base := strings.TrimSuffix(filepath.Base(file), ".md")
	i := strings.LastIndexByte(base, '.')
	return base[:i], base[i+1:]
}

// render makes a manual page of Markdown, and looks at what a terminal shows.
func render(t *testing.T, name, section, text string) {
	t.Helper()
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("mandoc is not installed")
	}
	title := "% " + name + " " + section + " \"2026-01-02\" \"phx 1.0\" \"phx\"\n\n"
	file := filepath.Join(t.TempDir(), name+"."+section)
	if err := os.WriteFile(file, md2man.Render([]byte(title+text)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mandoc, "-T", "lint", "-W", "warning", file).CombinedOutput(); err != nil {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
	page, err := exec.Command(mandoc, "-T", "utf8", "-O", "width=78", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(".\b").ReplaceAllString(string(page), "") // what is bold is printed twice
	for _, line := range strings.Split(shown, "\n") {
		if utf8.RuneCountInString(line) > 80 {
			t.Errorf("wider than 80 columns: %s", line)
		}
		if !strings.Contains(line, "example") && mark.MatchString(line) {
			t.Errorf("a mark of Markdown is shown: %s", line)
		}
	}
}
