package pve

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// FuzzParseConf reads any text as a configuration file, and changes the record
// and a mark in it: all else stays.
func FuzzParseConf(f *testing.F) {
	for _, text := range []string{
		"", "#a\n#phx%3A a=1\ncores: 1\nlxc.group: phx-applied a=1\n\n[pve:pending]\ndelete: mp0\n\n[s1]\n#phx%3A " +
			"a=1\nparent: s0\n",
		"lxc.group: phx-applied\nlxc.group: phx-applied b=1\r\n", "[", "[x", "\n[s]x\n#phx: a=1\n", "#%0Aphx: a=1",
		"# phx:\n#phx:\r\n\r#phx:", "#%", "#%zz%4", "[a]\n[a]\n#b\n",
		"#phx: a=1\n[]\n#phx: b=1\n", "#a%0Aphx: a=1\n", "description: x\ncores:1\n cores: 2\n",
	} {
		f.Add(text)
	}
	r := &Records{key: make([]byte, 32)}
	f.Fuzz(func(t *testing.T, text string) {
		before := ParseConf([]byte(text))
		before.Next()
		set := func(record Record) { clear(record); record["a"], record["+lxc"] = "1", "ff" }
		once := string(r.rewrite(103, []byte(text), set))
		after := ParseConf([]byte(once))
		if record, err := r.readConf(103, after); err != nil || !maps.Equal(record, Record{"a": "1", "+lxc": "ff"}) ||
			after.mark(appliedMark) != "a=1" {
			t.Fatalf("record %v, %v, mark %q in\n%q", record, err, after.mark(appliedMark), once)
		}
		if again := string(r.rewrite(103, []byte(once), func(Record) {})); again != once {
			t.Errorf("a second time\n%q\nand\n%q", once, again)
		}
		// Without what is phx's own, the lines are the same.
		if a, b := others(text), others(once); !slices.Equal(a, b) {
			t.Errorf("the lines\n%q\nhave become\n%q", a, b)
		}
		// Empty lines at the end of notes are none.
		notes := func(c *Conf) string { return strings.TrimRight(Notes(c.Description), "\n") }
		before.Description, after.Description = notes(before), notes(after)
		before.Raw, after.Raw = withoutMark(before.Raw), withoutMark(after.Raw)
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%q says\n%+v\nand %q\n%+v", text, before, once, after)
		}
		if marked := string(setMark([]byte(text), restartMark,
			"7")); ParseConf([]byte(marked)).mark(restartMark) != "7" {
			t.Errorf("no mark in %q", marked)
		}
	})
}

// FuzzNotes writes any notes into any configuration file: they are what is read
// then, once, and neither the record nor anything else is another one for it.
func FuzzNotes(f *testing.F) {
	for _, text := range []string{
		"", "#a\n#phx%3A a=1\ncores: 1\n#b\n\n[s1]\n#c\n", "#phx: a=1", "cores: 1\n#%70hx: b=2\n",
	} {
		for _, notes := range []string{
			"", "a", "a\n\nb", "%70hx: a=1", "[s1]", "lxc.group: phx-applied b=1", "\n ü %\n", "#", "memory: 1",
			"a\n\u2028phx: a=1", "description: x", "\\nphx:", "%0Aphx: a=1",
		} {
			f.Add(text, notes)
		}
	}
	r := &Records{key: make([]byte, 32)}
	f.Fuzz(func(t *testing.T, text, notes string) {
		notes = strings.TrimRight(notes, "\n")
		isControl := func(r rune) bool { return r != '\n' && unicode.IsControl(r) }
		if strings.ContainsFunc(notes, isControl) || hasRecordLine(notes) {
			t.Skip()
		}
		signed := r.rewrite(103, []byte(text), func(record Record) { clear(record); record["a"] = "1" })
		before := ParseConf(signed)
		written := rewriteNotes(signed, notes)
		after := ParseConf(written)
		if got := Notes(after.Description); strings.TrimRight(got, "\n") != notes {
			t.Errorf("the notes %q are %q in\n%q", notes, got, written)
		}
		if record, err := r.readConf(103, after); err != nil || !maps.Equal(record, Record{"a": "1"}) {
			t.Errorf("the record is %v, %v in\n%q", record, err, written)
		}
		if again := rewriteNotes(written, notes); string(again) != string(written) {
			t.Errorf("a second time\n%q\nand\n%q", again, written)
		}
		if again := r.rewrite(103, written, func(Record) {}); string(again) != string(written) {
			t.Errorf("the record makes\n%q of\n%q", again, written)
		}
		before.Description, after.Description = "", ""
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%q has become\n%q", signed, written)
		}
	})
}

// others returns the lines of a file that are not phx's own in its first
// section, and all of what follows.
func others(text string) []string {
	head, rest := firstSection([]byte(text))
	var lines []string
	for l := range strings.Lines(string(head)) {
		note, isNote := noteOf(l)
		raw := ParseConf([]byte(l)).Raw
		if isNote && isRecordLine(note) || len(raw) == 1 && len(withoutMark(raw)) == 0 {
			continue
		}
		lines = append(lines, strings.TrimSuffix(l, "\n"))
	}
	return append(lines, string(rest))
}

func withoutMark(lines []RawLine) []RawLine {
	var kept []RawLine
	for _, l := range lines {
		if l.Key != "lxc.group" || !strings.HasPrefix(l.Value, markPrefix(appliedMark)) {
			kept = append(kept, l)
		}
	}
	return kept
}
