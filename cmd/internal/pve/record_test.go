package pve

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func (h *Host) open(t *testing.T) *Records {
	t.Helper()
	r, err := h.Records(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (h *Host) conf(t *testing.T, ctid int) (text string, conf *Conf) {
	t.Helper()
	data, err := os.ReadFile(h.confPath(ctid))
	if err != nil {
		t.Fatal(err)
	}
	return string(data), ParseConf(data)
}

// wantForeign checks that a description's record does not count.
func wantForeign(t *testing.T, r *Records, ctid int, description, reason string) {
	t.Helper()
	record, err := r.read(ctid, description)
	var foreign *foreignRecord
	if !errors.As(err, &foreign) || !strings.Contains(foreign.Reason, reason) || len(record) > 0 {
		t.Errorf("%q: record %v, %v; want %q", description, record, err, reason)
	}
}

func TestRecordIsSignedForItsContainer(t *testing.T) {
	h := newHost(t)
	r := h.open(t)
	line := r.Line(103, Record{"step_ca": "ba9876543210", "+lxc": "0a1b2c"})
	if !strings.HasPrefix(line, "phx: +applied=1 +lxc=0a1b2c step_ca=ba9876543210 +mac=") ||
		len(line) != len("phx: +applied=1 +lxc=0a1b2c step_ca=ba9876543210 +mac=")+32 {
		t.Errorf("line %q", line)
	}
	// Another process, with the key of the file.
	again := h.open(t)
	if record, err := again.read(103, "by hand\n"+line+"\nmore"); err != nil ||
		!maps.Equal(record, Record{"step_ca": "ba9876543210", "+lxc": "0a1b2c"}) {
		t.Errorf("record %v, %v", record, err)
	}
	wantForeign(t, again, 102, line, "not that of this host's key for this container")
	wantForeign(t, again, 103, strings.Replace(line, "+lxc=0a1b2c", "+lxc=0a1b2c,ffffff", 1),
		"not that of this host's key")
	wantForeign(t, again, 103, strings.Replace(line, " step_ca=", " +firewall=000000 step_ca=", 1),
		"not that of this host's key")
	wantForeign(t, again, 103, line+" step_ca=ba9876543210", "not that of this host's key")
	wantForeign(t, again, 103, line+"\nphx: +lxc=ffffff", "there are several")
	wantForeign(t, again, 103, "phx: +lxc=ffffff", "it has no signature")
	wantForeign(t, again, 103, "phx: +lxc=ffffff +mac=", "it has no signature")
	wantForeign(t, newHost(t).open(t), 103, line, "not that of this host's key")
	if record, err := again.read(103, "by hand"); err != nil || len(record) > 0 {
		t.Errorf("no record: %v, %v", record, err)
	}
	if again.Line(103, Record{}) != "" {
		t.Error("an empty record has a line")
	}
}

func TestKeyIsRootsAlone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	h := newHost(t)
	h.open(t)
	path := filepath.Join(h.stateDir(), "record.json")
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Records(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "others than root may have read") {
		t.Errorf("readable for others: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{}", `{"key": "00"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Records(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestPreviewMakesNoKey(t *testing.T) {
	h := newHost(t)
	h.write(t, 103, "#phx%3A a=1\n")
	h.Preview = &Preview{}
	r := h.open(t)
	if record, err := r.read(103, "phx: a=1"); err != nil || record["a"] != "1" {
		t.Errorf("what a run would take over: %v, %v", record, err)
	}
	if _, err := os.Stat(h.stateDir()); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
}

func TestRewriteKeepsAllOtherNotes(t *testing.T) {
	h := newHost(t)
	r := h.open(t)
	rest := "cores: 2\nlxc.arch: amd64\n\n[pve:pending]\nmemory: 1\n\n[s1]\n#phx%3A a=1 +mac=00\n#of the " +
		"snapshot\nmemory: 256\n"
	sign := func(text string) string { return "#" + encode(r.Line(103, Record{"+a": "1"})) + "\n" }
	for _, tt := range []struct{ name, before, want string }{
		{"no notes", rest, "LINE" + rest},
		{"notes as a person or another program has encoded them", "#100%25 ours%3a yes\n# \n#\xc3\xbc\r\n" + rest,
			"#100%25 ours%3a yes\n# \n#\xc3\xbc\r\nLINE" + rest},
		{"in its place", "#a\n#phx%3A x=1\n#b\n" + rest, "#a\nLINE#b\n" + rest},
		{"as it stands", "#a\n#phx: +a=1 MAC\n#b\n" + rest, "#a\n#phx: +a=1 MAC\n#b\n" + rest},
		{"several, also where Proxmox reads notes and does not write them",
			"#phx%3A x=1\n#a\n#phx%3A y=1\ncores: 1\n#phx%3A +lxc=ff\n" + rest, "LINE#a\ncores: 1\n" + rest},
		{"no line end", "#a", "#a\nLINE"},
		{"nothing at all", "", "LINE"},
	} {
		_, mac, _ := strings.Cut(r.Line(103, Record{"+a": "1"}), "+a=1 ")
		before := strings.ReplaceAll(tt.before, "MAC", mac)
		want := strings.ReplaceAll(strings.ReplaceAll(tt.want, "MAC", mac), "LINE", sign(""))
		change := func(r Record) { clear(r); r["+a"] = "1" }
		if got := string(r.rewrite(103, []byte(before), change)); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, want)
		}
		if again := string(r.rewrite(103, []byte(want), func(Record) {})); again != want {
			t.Errorf("%s: a second time:\n%s", tt.name, again)
		}
		if gone := string(r.rewrite(103, []byte(want),
			func(r Record) { clear(r) })); strings.Contains(strings.Split(gone, "[")[0], "phx%3A") {
			t.Errorf("%s: an empty record leaves\n%s", tt.name, gone)
		}
	}
}

// record changes words of a container's record in its file.
func (h *Host) record(t *testing.T, ctid int, change func(Record)) error {
	t.Helper()
	r := h.open(t)
	_, err := h.editConf(t.Context(), ctid, func(text []byte) []byte { return r.rewrite(ctid, text, change) })
	return errors.Join(err, r.signed(t.Context(), ctid))
}

// What was recorded before there was a key is signed once, with what the
// snapshots have; nothing without a signature counts afterwards.
func TestRecordsWithoutKeyAreTakenOverOnce(t *testing.T) {
	h := newHost(t)
	const old = "#mine\n#phx%3A base_setup=0123456789ab\ncores: 1\n\n[golden]\n#phx%3A " +
		"base_setup=0123456789ab\nmemory: 512\n"
	h.write(t, 103, old)
	h.write(t, 104, "cores: 1\n")
	nodes := filepath.Join(h.PVERoot, "nodes/pve2/lxc")
	if err := os.MkdirAll(nodes, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(nodes, "105.conf"), []byte("#phx%3A a=1\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	r := h.open(t)
	want := Record{"base_setup": "0123456789ab"}
	if record, err := r.read(103, "phx: base_setup=0123456789ab"); err != nil || !maps.Equal(record, want) {
		t.Errorf("record %v, %v", record, err)
	}
	if !r.isUnsigned(103, "phx: a=1") || r.isUnsigned(104, "phx: a=1") || !r.isUnsigned(105, "phx: a=1") ||
		r.isUnsigned(105, "") {
		t.Errorf("unkeyed: %v", r.unkeyed)
	}
	wantForeign(t, r, 104, "phx: base_setup=0123456789ab", "it has no signature")
	if err := h.record(t, 103, func(r Record) { r["etc/hosts"] = "abc" }); err != nil {
		t.Fatal(err)
	}
	text, conf := h.conf(t, 103)
	r = h.open(t)
	if record, err := r.read(103, conf.Description); err != nil || len(record) != 2 || record["etc/hosts"] != "abc" {
		t.Errorf("record %v, %v in\n%s", record, err, text)
	}
	if record, err := r.read(103, conf.Snapshot("golden").Description); err != nil || !maps.Equal(record, want) {
		t.Errorf("the snapshot's record: %v, %v in\n%s", record, err, text)
	}
	wantForeign(t, r, 103, "phx: base_setup=0123456789ab", "it has no signature")
	if !strings.HasPrefix(text, "#mine\n#phx%3A +applied=1 base_setup=0123456789ab etc/hosts=abc +mac=") {
		t.Errorf("text\n%s", text)
	}
}

// Whoever may write notes cannot have a record of their own kept.
func TestUpdateOfAForeignRecordKeepsNothing(t *testing.T) {
	h := newHost(t)
	h.open(t)
	h.write(t, 103, "#phx%3A +lxc=ffffff\ncores: 1\n")
	if err := h.record(t, 103, func(r Record) { r["a"] = "1" }); err != nil {
		t.Fatal(err)
	}
	_, conf := h.conf(t, 103)
	if record, err := h.open(t).read(103, conf.Description); err != nil || !maps.Equal(record, Record{"a": "1"}) {
		t.Errorf("record %v, %v", record, err)
	}
}

// What scripts have left stands in the raw lines as well, which a rollback
// takes back. Of before there were marks, the record counts.
func TestRecordOfAContainerThatWasRolledBack(t *testing.T) {
	h := newHost(t)
	r := h.open(t)
	text := "cores: 1\n\n[s1]\ncores: 1\n"
	set := func(record Record) func(Record) {
		return func(have Record) { clear(have); maps.Copy(have, record) }
	}
	marked := string(r.rewrite(103, []byte(text), set(Record{"a": "1", "b": "2", "+lxc": "ff"})))
	if mark := "cores: 1\nlxc.group: phx-applied a=1 b=2\n\n[s1]\ncores: 1\n"; !strings.HasSuffix(marked, mark) {
		t.Fatalf("no mark in\n%s", marked)
	}
	of := "#" + encode(r.Line(103, Record{"a": "1", "+lxc": "ee", "+firewall": "dd"})) + "\n"
	unmarked := "#" + encode(r.sign(103, Record{"a": "1", "b": "2"})) + "\n"
	for _, tt := range []struct {
		name, text string
		want       Record
		lost       []string // nil: no rollback
	}{
		{"nothing has happened", marked, Record{"a": "1", "b": "2", "+lxc": "ff"}, nil},
		{"rolled back", "parent: s1\n" + strings.Replace(strings.Replace(marked, " b=2\n", "\n", 1), "[s1]\n",
			"[s1]\n"+of, 1),
			Record{"a": "1", "+lxc": "ff,ee"}, []string{"b"}},
		{"rolled back to another version of a script", strings.Replace(marked, " a=1 b=2\n", " a=9 b=2\n", 1),
			Record{"a": "9", "b": "2", "+lxc": "ff"}, []string{"a"}},
		{"rolled back to before all scripts", "parent: s1\n" +
			strings.Replace(marked, "lxc.group: phx-applied a=1 b=2\n", "", 1), Record{"+lxc": "ff"},
			[]string{"a", "b"}},
		{"raw lines that are lost, and no snapshot", strings.Replace(marked, "lxc.group: phx-applied a=1 b=2\n", "", 1),
			Record{"a": "1", "b": "2", "+lxc": "ff"}, nil},
		{"of before there were marks", unmarked + "parent: s1\n" + text, Record{"a": "1", "b": "2"}, nil},
		{"parents in a circle", "parent: s1\n" + strings.Replace(strings.Replace(marked, " b=2\n", "\n", 1), "[s1]\n",
			"[s1]\nparent: s1\n", 1), Record{"a": "1", "+lxc": "ff"}, []string{"b"}},
	} {
		record, err := r.readConf(103, ParseConf([]byte(tt.text)))
		var back *rolledBack
		if errors.As(err, &back) != (tt.lost != nil) || back != nil && !slices.Equal(back.Lost, tt.lost) ||
			!maps.Equal(record, tt.want) {
			t.Errorf("%s: record %v, %v in\n%s", tt.name, record, err, tt.text)
		}
		// It is written so, and then known.
		written := r.rewrite(103, []byte(tt.text), func(Record) {})
		if again, err := r.readConf(103, ParseConf(written)); err != nil || !maps.Equal(again, tt.want) {
			t.Errorf("%s: then %v, %v in\n%s", tt.name, again, err, written)
		}
	}
}

// Lists of the time when hashes in them were shorter still count.
func TestHashLists(t *testing.T) {
	raw := []RawLine{{"lxc.tty.max", "1"}, {"lxc.autodev", "1"}}
	list := RawHashes(raw)
	if want := "69841cfd6f02,e8d5bca14dc2"; list != want { // as records hold them
		t.Errorf("hashes %q, want %q", list, want)
	}
	for _, list := range []string{list, "48d58d,5d424d"} {
		hashes := Record{RawWord: list}.Hashes(RawWord)
		if len(hashes) != 2 || !hashes.Has("lxc.tty.max: 1") || !hashes.Has("lxc.autodev: 1") ||
			hashes.Has("lxc.autodev: 0") {
			t.Errorf("%s: hashes %v", list, hashes)
		}
	}
	if RawHashes(nil) != "" || len(Record{}.Hashes(RawWord)) != 0 {
		t.Error("nothing has hashes")
	}
}
