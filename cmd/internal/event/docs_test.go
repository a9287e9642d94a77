package event

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

const repo = "../../../"

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDocumentation: docs/events.md has each event once in its table and in a
// section of its own, with all fields of the event and no other, and with an
// example that is, byte for byte, what a program would write.
func TestDocumentation(t *testing.T) {
	overview, rest, _ := strings.Cut(read(t, repo+"docs/events.md"), "\n## ")
	sections := strings.Split(rest, "\n## ")
	var listed, described []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| phx-").FindAllStringSubmatch(overview, -1) {
		listed = append(listed, m[1])
	}
	for _, section := range sections {
		name, body, _ := strings.Cut(section, "\n")
		described = append(described, name)
		if decoders[name] == nil {
			t.Errorf("%s: there is no such event", name)
			continue
		}
		t.Run(name, func(t *testing.T) { checkSection(t, name, body) })
	}
	if !slices.Equal(listed, described) {
		t.Errorf("the table has %v, and the sections are %v", listed, described)
	}
	slices.Sort(listed)
	if all := slices.Sorted(maps.Keys(decoders)); !slices.Equal(listed, all) {
		t.Errorf("the table has %v, and the events are %v", listed, all)
	}
}

func checkSection(t *testing.T, name, section string) {
	want := map[string]string{}
	fields(reflect.TypeOf(bodyOf(t, name)), "", want)
	have := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*`) \\| (.*) \\| .+ \\|$").FindAllStringSubmatch(section, -1) {
		for field := range strings.SplitSeq(row[1], ", ") {
			have[strings.Trim(field, "`")] = row[2]
		}
	}
	if !maps.Equal(have, want) {
		t.Errorf("the table of fields has\n%v, want\n%v", lines(have), lines(want))
	}

	examples := regexp.MustCompile("(?ms)^```json\n(.*?)\n```$").FindAllStringSubmatch(section, -1)
	if len(examples) != 1 {
		t.Fatalf("%d examples, want 1", len(examples))
	}
	example := examples[0][1]
	ev, err := Parse([]byte(example))
	if err != nil || ev.Name != name {
		t.Fatalf("the example is %q, %v", ev.Name, err)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", gjson.Get(example, "time").Str); err != nil {
		t.Error(err)
	}
	line, err := Append(nil, ev.Body)
	if err != nil {
		t.Fatal(err)
	}
	stamp := regexp.MustCompile(`"time":"[^"]*"`)
	written := stamp.ReplaceAllString(strings.TrimSuffix(string(line), "\n"), stamp.FindString(example))
	if written != example {
		t.Errorf("the example is\n%s, and a program would write\n%s", example, written)
	}
}

// bodyOf returns the struct of an event.
func bodyOf(t *testing.T, name string) Body {
	t.Helper()
	body, err := decoders[name]([]byte(`{"ctid":100}`))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// fields adds to all the JSON fields of a struct, each with its type in words,
// and those of objects in it: "known.hosts", "files[].path".
func fields(of reflect.Type, prefix string, all map[string]string) {
	for field := range of.Fields() {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous && name == "" {
			fields(field.Type, prefix, all)
			continue
		}
		kind, object, inner := words(field.Type)
		if strings.HasPrefix(options, "omit") {
			kind += ", optional"
		}
		all[prefix+name] = kind
		if object != nil {
			fields(object, prefix+name+inner, all)
		}
	}
}

// words returns a field's type in words, and for one that holds objects their
// type, and what separates the field's name from theirs.
func words(of reflect.Type) (kind string, object reflect.Type, inner string) {
	switch {
	case of == reflect.TypeFor[time.Time]():
		return "time", nil, ""
	case of == reflect.TypeFor[json.RawMessage]():
		return "object", nil, ""
	}
	switch of.Kind() {
	case reflect.Pointer:
		return words(of.Elem())
	case reflect.Struct:
		return "object", of, "."
	case reflect.Map:
		return "object", nil, ""
	case reflect.Slice:
		kind, object, _ = words(of.Elem())
		first, rest, _ := strings.Cut(kind+" ", " ")
		return strings.TrimSpace("list of " + first + "s " + rest), object, "[]."
	case reflect.Bool:
		return "boolean", nil, ""
	case reflect.Int, reflect.Int64:
		return "number", nil, ""
	}
	return of.Kind().String(), nil, ""
}

func lines(fields map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		fmt.Fprintf(&b, "\t%s: %s\n", name, fields[name])
	}
	return b.String()
}

// TestManualNamesEvents: each program's manual page names the events that its
// source reads and writes, and docs/events.md says who writes each.
func TestManualNamesEvents(t *testing.T) {
	overview, _, _ := strings.Cut(read(t, repo+"docs/events.md"), "\n## ")
	sources, err := filepath.Glob(repo + "cmd/phx-*/main.go")
	if err != nil || len(sources) != 6 {
		t.Fatalf("%v, %v", sources, err)
	}
	for _, file := range sources {
		program := filepath.Base(filepath.Dir(file))
		t.Run(program, func(t *testing.T) {
			pages, err := filepath.Glob(repo + "docs/man/" + program + ".*.md")
			if err != nil || len(pages) != 1 {
				t.Fatalf("manual pages: %q, %v", pages, err)
			}
			_, events, _ := strings.Cut(read(t, pages[0]), "\n# EVENTS\n")
			reads, writes := programEvents(t, filepath.Dir(file))
			if have := named(events, "Read:"); !slices.Equal(have, reads) {
				t.Errorf("%s: Read: %s\nthe source has: %s", pages[0], have, reads)
			}
			if have := named(events, "Written:"); !slices.Equal(have, writes) {
				t.Errorf("%s: Written: %s\nthe source has: %s", pages[0], have, writes)
			}
			var listed []string
			row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:phx-[a-z-]+, )*" + program + "(?:, phx-[a-z-]+)* \\|")
			for _, m := range row.FindAllStringSubmatch(overview, -1) {
				listed = append(listed, m[1])
			}
			slices.Sort(listed)
			if !slices.Equal(listed, writes) {
				t.Errorf("docs/events.md: %s\nthe source has: %s", listed, writes)
			}
		})
	}
}

// named returns the sorted events that a paragraph of a manual page names, which
// begins with a word.
func named(page, begin string) []string {
	_, list, _ := strings.Cut(page, "\n"+begin)
	list, _, _ = strings.Cut(list, "\n\n")
	var names []string
	for _, m := range regexp.MustCompile("`([a-z.]+)`").FindAllStringSubmatch(list, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return names
}

// programEvents returns the sorted names of the events that the program in dir
// asks its stream for, and of those that it writes. A program that imports
// package service reads and writes what that does; of its own events it reads none.
func programEvents(t *testing.T, dir string) (reads, writes []string) {
	t.Helper()
	source := goSource(t, dir)
	all := source
	if strings.Contains(source, `/cmd/internal/service"`) {
		all += goSource(t, "../service")
	}
	names, types := map[string]string{}, map[string]string{}
	declared := regexp.MustCompile(`(?m)^\t(Name\w+) += "([^"]+)"$`)
	for _, m := range declared.FindAllStringSubmatch(read(t, "events.go"), -1) {
		names[m[1]] = m[2]
		types[reflect.TypeOf(bodyOf(t, m[2])).Name()] = m[2]
	}
	// A pointer to an empty struct is there to be decoded into.
	for _, m := range regexp.MustCompile(`(&?)\bevent\.(\w+)(\(|\{\}?)`).FindAllStringSubmatch(all, -1) {
		if name := types[m[2]]; name != "" && m[1]+m[3] != "&{}" {
			writes = append(writes, name)
		}
	}
	for _, call := range regexp.MustCompile(`(?s)\.Next\(ctx, event\.Name.*?\)`).FindAllString(all, -1) {
		for _, m := range regexp.MustCompile(`event\.(Name\w+)`).FindAllStringSubmatch(call, -1) {
			if !slices.Contains(writes, names[m[1]]) {
				reads = append(reads, names[m[1]])
			}
		}
	}
	if len(reads) > 0 {
		reads = append(reads, NamePlanDone) // which every reader gets
	}
	slices.Sort(reads)
	slices.Sort(writes)
	return slices.Compact(reads), slices.Compact(writes)
}

// goSource returns the source of the package in dir, without its tests.
func goSource(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			b.WriteString(read(t, file))
		}
	}
	return b.String()
}
