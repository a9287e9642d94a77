package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/hinshun/vt10x"
	"golang.org/x/sys/unix"
)

// begun is when the runs of the tests begin, and now when they are looked at.
var (
	begun = time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	now   = begun.Add(10 * time.Second)
)

// at returns an event that comes some seconds after begun.
func at(seconds float64, name, fields string) string {
	stamp := begun.Add(time.Duration(seconds * float64(time.Second))).Format("2006-01-02T15:04:05.000Z")
	if fields != "" {
		fields = "," + fields
	}
	return fmt.Sprintf(`{"event":"%s","time":"%s"%s}`, name, stamp, fields)
}

// plan returns the first events of a run.
func plan(action, more string, ids ...int) []string {
	order := strings.Trim(strings.ReplaceAll(fmt.Sprint(ids), " ", ","), "[]")
	fields := fmt.Sprintf(`"round":"R%s","action":"%s","order":[%s],"config":"/etc/c.json"`, action, action, order)
	events := []string{at(0, "plan.started", fields+more)}
	for i, id := range ids {
		needs := ""
		if i > 0 {
			needs = fmt.Sprint(ids[0])
		}
		fields := fmt.Sprintf(`"ctid":%d,"name":"ct-%d","needs":[%s]`, id, id, needs)
		events = append(events, at(0, "ct.planned", fields))
	}
	return events
}

// terminal is a terminal with what it shows.
type terminal struct {
	*screen
	t      *testing.T
	master *os.File
	shown  vt10x.Terminal
	mu     sync.Mutex
	raw    bytes.Buffer  // all that was written to it
	read   chan struct{} // closed when it is closed, and all is shown
}

func newTerminal(t *testing.T, columns, rows int, env map[string]string) *terminal {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, master: master, shown: vt10x.New(vt10x.WithSize(columns, rows)),
		read: make(chan struct{})}
	term.resize(columns, rows)
	if env == nil {
		env = map[string]string{"TERM": "xterm"}
	}
	term.screen = newScreen(slave, func(name string) string { return env[name] })
	go func() {
		defer close(term.read)
		buf := make([]byte, 64<<10)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.raw.Write(buf[:n])
			term.shown.Write(buf[:n])
			term.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		slave.Close()
		<-term.read
		master.Close()
	})
	return term
}

// end closes a view, and the terminal, which shows then all that the view has
// written.
func (term *terminal) end(v *view) {
	v.close()
	term.screen.out.Close()
	<-term.read
}

func (term *terminal) resize(columns, rows int) {
	term.mu.Lock()
	defer term.mu.Unlock()
	if err := pty.Setsize(term.master, &pty.Winsize{Cols: uint16(columns), Rows: uint16(rows)}); err != nil {
		term.t.Fatal(err)
	}
	term.shown.Resize(columns, rows)
}

// lines returns what the terminal shows.
func (term *terminal) lines() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	var rows []string
	for row := range strings.SplitSeq(term.shown.String(), "\n") {
		rows = append(rows, strings.TrimRight(row, " "))
	}
	return strings.TrimRight(strings.Join(rows, "\n"), "\n")
}

// shows waits until the terminal shows each of some texts.
func (term *terminal) shows(texts ...string) {
	term.t.Helper()
	for _, text := range texts {
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(term.lines(), text); {
			if time.Now().After(deadline) {
				term.t.Fatalf("the terminal does not show %q:\n%s", text, term.lines())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// viewAt returns a view whose clock stands at now.
func viewAt(quiet, messages bool, out *screen) *view {
	return newView(quiet, messages, out, func() time.Time { return now })
}

// feed reads events as they come from stdin.
func feed(v *view, events ...string) {
	for _, e := range events {
		readEvents(strings.NewReader(e+"\n"), nil, v.event)
	}
}

// shown returns what a view writes where there is no terminal.
func shown(t *testing.T, quiet bool, events, messages []string) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	v := viewAt(quiet, messages != nil, newScreen(file, func(string) string { return "" }))
	for _, m := range messages {
		v.message(m)
	}
	feed(v, events...)
	v.close()
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestLive(t *testing.T) {
	term := newTerminal(t, 80, 24, nil)
	v := viewAt(false, true, term.screen)
	feed(v, plan("create", "", 900, 103)...)
	term.shows("create: 2 containers of /etc/c.json\n  900 ct-900  waits\n  103 ct-103  waits for 900 ct-900")
	feed(v, at(1, "ct.stage", `"ctid":900,"program":"phx-lxc","stage":"create"`))
	term.shows("  900 ct-900  create 9 s\n")
	v.message("phx-lxc: 900 ct-900: waiting for container 900, which is locked (backup)")
	term.shows("  900 ct-900  create 9 s  waiting for container 900, which is locked (backup)\n")
	feed(v, at(3, "ct.stage", `"ctid":900,"program":"phx-lxc","stage":"start"`))
	term.shows("  900 ct-900  start 7 s\n  103 ct-103  waits for 900 ct-900")
	feed(v, at(3, "warning", `"ctid":900,"program":"phx-lxc","text":"no snapshot"`))
	v.message("bash: line 3: 77 Killed")
	term.shows("of /etc/c.json\nwarning: 900 ct-900: no snapshot\nbash: line 3: 77 Killed\n  900 ct-900  start 7 s")
	feed(v,
		at(5, "ct.ready", `"ctid":900,"changed":true,"changes":["created","started"],"elapsed_ms":4100`),
		at(5, "ct.stage", `"ctid":103,"program":"phx-lxc","stage":"clone"`))
	term.shows("  900 ct-900  changed     4.1 s  create 2.0 s, start 2.0 s\n  103 ct-103  clone 5 s")
	feed(v,
		at(8, "ct.ready", `"ctid":103,"changed":false,"restart_required":["memory"],"elapsed_ms":3000`),
		at(9, "ca.exported", `"ctid":103,"sha256":"abcdef","subject":"Root","not_after":"2035-12-31T15:04:12Z"`),
		at(9, "nginx.ready", `"ctid":103,"names":["a.example"],"not_after":"2026-01-03T15:04:27Z"`),
		at(0, "plan.done", ""))
	term.end(v)
	want := `create: 2 containers of /etc/c.json
warning: 900 ct-900: no snapshot
bash: line 3: 77 Killed
  900 ct-900  changed     4.1 s  create 2.0 s, start 2.0 s
  103 ct-103  unchanged   3.0 s  clone 3.0 s

Changed:
  900 ct-900: created, started
Unchanged: 103 ct-103
Restart required (phoenix --restart):
  103 ct-103: memory
Certificates:
  103 ct-103: 24 h left, a.example
Root of the CA:
  Root, 3649 days left
  SHA-256 abcdef

create: all well after 9.0 s: 1 changed, 1 unchanged`
	term.shows("create: all well")
	if have := term.lines(); have != want {
		t.Errorf("the terminal shows\n%s\nwant\n%s", have, want)
	}
}

// A first run fits a terminal: of what is new it is said how it was made, not each file
// in it; the stages that took longest come first, each
// once; long names are in lines of their own.
func TestFirstRun(t *testing.T) {
	term := newTerminal(t, 80, 24, nil)
	v := viewAt(false, true, term.screen)
	feed(v, plan("create", "", 900)...)
	for i, stage := range []string{"create", "start", "base_setup", "start"} {
		feed(v, at(float64(i*i), "ct.stage", `"ctid":900,"program":"phx-lxc","stage":"`+stage+`"`))
	}
	names := `"gateway.internal.example","a-service-of-a-long-name.internal.example"`
	feed(v, at(10, "ct.ready", `"ctid":900,"changed":true,"changes":["destroyed","cloned from 9@s","memory 1","a","b"]`),
		at(10, "traefik.ready", `"ctid":900,"changed":true,"changes":["c"],"names":[`+names+
			`],"not_after":"2026-01-03T15:04:27Z"`), at(10, "plan.done", ""))
	v.close()
	want := `create: 1 container of /etc/c.json
  900 ct-900  changed    10.0 s  base_setup 5.0 s, start 4.0 s, create 1.0 s

Changed:
  900 ct-900: destroyed, cloned from 9@s, and 4 more
Certificates:
  900 ct-900: 24 h left, gateway.internal.example,
    a-service-of-a-long-name.internal.example

create: all well after 10.0 s: 1 changed`
	term.shows("create: all well")
	if have := term.lines(); have != want {
		t.Errorf("the terminal shows\n%s\nwant\n%s", have, want)
	}
}

// A gateway is not done before it has been set up as one.
func TestGatewayIsDue(t *testing.T) {
	term := newTerminal(t, 80, 24, nil)
	v := viewAt(false, true, term.screen)
	feed(v, plan("create", `,"ca":{"ctid":103},"gateway":{"ctid":101}`, 103, 101)...)
	feed(v, at(1, "ct.ready", `"ctid":101,"changed":true,"changes":["started"]`),
		at(1, "ct.stage", `"ctid":103,"program":"phx-lxc","stage":"step_ca"`))
	term.shows("  103 ct-103  step_ca 9 s\n  101 ct-101  waits for 103 ct-103")
	feed(v, at(2, "ct.stage", `"ctid":101,"program":"phx-nginx","stage":"packages"`))
	term.shows("  101 ct-101  packages 8 s")
	feed(v, at(4, "nginx.ready", `"ctid":101,"changed":false`))
	term.shows("  101 ct-101  changed     2.0 s  packages 2.0 s")
	v.close()
}

// At any width each container has one line, also after a change of the width.
func TestWidth(t *testing.T) {
	long := strings.Repeat("長い名前 ", 20)
	for _, columns := range []int{20, 40, 80} {
		term := newTerminal(t, 80, 70, nil)
		v := viewAt(false, true, term.screen)
		feed(v, plan("create", "", 900, 103)...)
		feed(v, at(0, "ct.planned", `"ctid":104,"name":"`+long+`","needs":[]`),
			at(1, "ct.stage", `"ctid":900,"program":"phx-lxc","stage":"create `+long+`"`))
		term.shows("  104 長", " create 長い名前") // and nothing more is drawn
		term.resize(columns, 70)
		v.display.(*live).resize()
		feed(v, at(2, "ct.stage", `"ctid":103,"program":"phx-lxc","stage":"`+long+`"`))
		term.shows(" 103 ct-")
		feed(v, at(3, "ct.ready", `"ctid":900,"changed":true,"changes":["`+long+`"],"elapsed_ms":1`))
		term.end(v)
		term.shows("failed")
		table, _, _ := strings.Cut(term.lines(), "\n\n")
		for row := range strings.SplitSeq(table, "\n") {
			if strings.HasPrefix(row, "  ") && width(row) >= columns {
				t.Errorf("%d columns: %q", columns, row)
			}
		}
		for _, once := range []string{"  900 ct-900  ", "  103 ct-103  ", "  104 長"} {
			if n := strings.Count("\n"+table, "\n"+once); n != 1 {
				t.Errorf("%d columns: %q is there %d times:\n%s", columns, once, n, term.lines())
			}
		}
	}
}

// Of more containers than the terminal has rows, those are shown that are worked on,
// and the others are counted.
func TestManyContainers(t *testing.T) {
	term := newTerminal(t, 80, 10, nil)
	v := viewAt(false, false, term.screen)
	var ids []int
	for id := 100; id < 300; id++ {
		ids = append(ids, id)
	}
	feed(v, plan("create", "", ids...)...)
	term.shows("create: 200 containers of /etc/c.json\n0 of 200 containers done, 200 waiting")
	for id := 100; id < 120; id++ {
		feed(v, at(1, "ct.stage", fmt.Sprintf(`"ctid":%d,"program":"phx-lxc","stage":"clone"`, id)))
	}
	term.shows("  100 ct-100  clone 9 s\n", "\n0 of 200 containers done, 20 working, 180 waiting")
	feed(v, at(2, "ct.failed", `"ctid":100,"stage":"clone","error":"no room\nhint: make room"`))
	term.shows("\n1 of 200 containers done, 1 failed, 19 working, 180 waiting")
	for _, id := range ids[1:] {
		feed(v, at(3, "ct.ready", fmt.Sprintf(`"ctid":%d,"changed":false,"changes":[]`, id)))
	}
	feed(v, at(0, "plan.done", ""))
	term.end(v)
	term.shows("Unchanged: 199 containers\nFailed:\n  100 ct-100: clone\n    no room\n    hint: make room\n\n" +
		"create: failed")
	term.mu.Lock()
	raw := term.raw.String()
	term.mu.Unlock()
	if !strings.Contains(raw, "\r\x1b[9A\x1b[J100 ct-100: \x1b[31mfailed\x1b[0m: clone: no room\r\n") {
		t.Errorf("the failure was not shown when it came: %q", raw)
	}
	if n := strings.Count(term.lines(), "containers done"); n > 0 {
		t.Errorf("the counts are still there:\n%s", term.lines())
	}
}

// The environment says what a terminal can do.
func TestTerminals(t *testing.T) {
	events := append(plan("create", "", 900),
		at(1, "ct.stage", `"ctid":900,"program":"phx-lxc","stage":"create"`),
		at(2, "ct.ready", `"ctid":900,"changed":true,"changes":["created"]`), at(3, "plan.done", ""))
	for _, test := range []struct {
		env              map[string]string
		redrawn, colours bool
	}{
		{map[string]string{"TERM": "xterm"}, true, true},
		{map[string]string{"TERM": "xterm", "NO_COLOR": "1"}, true, false},
		{map[string]string{"TERM": "xterm", "NO_COLOR": ""}, true, true},
		{map[string]string{"TERM": "dumb"}, false, false},
		{map[string]string{}, false, false},
	} {
		term := newTerminal(t, 80, 24, test.env)
		v := viewAt(false, false, term.screen)
		feed(v, events...)
		term.end(v)
		term.shows("create: all well")
		term.mu.Lock()
		raw := term.raw.String()
		term.mu.Unlock()
		if have := strings.Contains(raw, "\x1b[J"); have != test.redrawn {
			t.Errorf("%v: redrawn: %t", test.env, have)
		}
		if have := strings.Contains(raw, "\x1b[32m"); have != test.colours {
			t.Errorf("%v: colours: %t", test.env, have)
		}
		if !test.redrawn && !strings.Contains(raw, "\n900 ct-900: create\r\n900 ct-900: changed: created\r\n") {
			t.Errorf("%v: %q", test.env, raw)
		}
	}
}

// own are the sequences that phoenix-view itself writes to a terminal.
var own = regexp.MustCompile(`\x1b\[(?:[0-9]+m|[0-9]+A|J)`)

// Nothing that an event or a message says acts on the terminal.
func TestHostile(t *testing.T) {
	const evil = `\u001b[2J\u001b]0;x\u0007\r\u009b31m\u202e\u0000\n\u001b[5A\tx\u007f`
	for _, action := range []string{"create", "status", "check", evil} {
		for _, dry := range []string{"", `,"dry_run":true`} {
			term := newTerminal(t, 60, 24, nil)
			v := viewAt(false, dry == "", term.screen)
			v.message("\x1b[2J\x9b31m evil \xff")
			v.message("phx-lxc: 900 x\x1b[2J: evil\x1b[2J")
			events := plan(action, dry, 900, 103, 102)
			for name := range strings.FieldsSeq("ct.planned warning check.point ct.stage ct.ready ct.started " +
				"ct.removed ct.status ct.preview ct.failed ct.skipped ca.exported ca.failed ca.status ca.rotation nginx.ready " +
				"nginx.failed nginx.status traefik.ready traefik.status") {
				fields := `"ctid":900,"changed":true,"files":[{"path":"E","diff":"+E\n-E"}],"commands":[["E","a b"]],` +
					`"certificates":[{"name":"E","issuer":"E","error":"E"},{"name":"E","issuer":"E","sha256":"E"}],` +
					`"applied":{"E":"E"},"not_after":"2026-01-03T15:04:27Z","firewall_not_in_force":true`
				for text := range strings.FieldsSeq("name program stage text point result remedy error reason state " +
					"lock ha ip path sha256 also pinned serves subject ca_url step address") {
					fields += `,"` + text + `":"E"`
				}
				for list := range strings.FieldsSeq("changes restart_required template_differs snapshots drift " +
					"names ips") {
					fields += `,"` + list + `":["E","E"]`
				}
				events = append(events, at(1, name, strings.ReplaceAll(fields, "E", evil)))
			}
			feed(v, events...)
			term.end(v)
			term.shows("after 1.0 s")
			term.mu.Lock()
			raw := term.raw.String()
			term.mu.Unlock()
			for _, r := range own.ReplaceAllString(raw, "") {
				if hidden(r) && r != '\n' && r != '\r' {
					t.Fatalf("%s%s: %q is written: %q", action, dry, r, raw)
				}
			}
			if n := strings.Count(strings.ReplaceAll(raw, "\r\n", ""), "\r"); n != strings.Count(raw, "\r\x1b[") {
				t.Errorf("%s%s: a carriage return is written: %q", action, dry, raw)
			}
		}
	}
}

// What is no event of a run, or no whole run, is shown as far as it goes.
func TestOddStreams(t *testing.T) {
	ready := at(2, "ct.ready", `"ctid":900,"name":"base","changed":true,"changes":["created"]`)
	create, stop := plan("create", "", 900), plan("stop", "", 900)
	done := at(3, "plan.done", "")
	for name, test := range map[string]struct {
		events [][]string
		want   []string
	}{
		"nothing": {nil, nil},
		"no JSON": {[][]string{{"x", `["event"]`, `{"event":""}`, `{"event":"ct.ready","ctid":"x"}`}},
			[]string{"4 lines not shown"}},
		"long": {[][]string{{strings.Repeat("x", 5<<20), ready}}, []string{"base: changed: created"}},
		"no plan.started": {[][]string{{ready}},
			[]string{"  900 base: created", "run: failed", "it has ended early"}},
		"two runs": {[][]string{create, {ready, done}, stop, {at(4, "ct.stopped", `"ctid":900,"changed":true`), done}},
			[]string{"create: all well after 3.0 s: 1 changed", "stop: all well after 4.0 s: 1 changed"}},
		"warnings between two runs": {[][]string{stop, {done, at(3, "run.ended", `"status":0`),
			at(4, "warning", `"program":"phx-plan","text":"odd"`)}, create, {done}},
			[]string{"stop: all well after 3.0 s: 1 not begun\nwarning: odd\ncreate: "}},
		"unknown": {[][]string{create, {at(1, "something.new", `"ctid":900,"error":"x"`), ready, done}},
			[]string{"create: all well"}},
		"killed": {[][]string{plan("create", "", 900, 103), {
			at(1, "ct.stage", `"ctid":900,"program":"phx-lxc","stage":"clone"`), at(2, "run.ended", `"status":137`)}},
			[]string{"Not finished:\n  900 ct-900: clone\nNothing done: 103 ct-103\n",
				"create: stopped after 2.0 s by signal 9: 1 not finished, 1 not begun"}},
	} {
		have := shown(t, false, slices.Concat(test.events...), nil)
		for _, want := range test.want {
			if !strings.Contains(have, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, have)
			}
		}
		if test.want == nil && have != "" {
			t.Errorf("%s: %q", name, have)
		}
	}
}

// Many events are read to the end while the terminal takes nothing, and what waits for
// it is bounded.
func TestStoppedTerminal(t *testing.T) {
	r, w, err := os.Pipe() // full, and of which nobody reads
	if err != nil {
		t.Fatal(err)
	}
	size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(make([]byte, size))
	v := viewAt(false, true, &screen{out: w, columns: 80, rows: 24})
	l := v.display.(*live)
	v.mu.Lock()
	l.say(text("something"))
	for len(l.above) > 0 { // until it is being written
		v.mu.Unlock()
		time.Sleep(time.Millisecond)
		v.mu.Lock()
	}
	v.mu.Unlock()
	var events strings.Builder
	for range 2 * maxAbove {
		events.WriteString(at(1, "warning", `"program":"phx-lxc","text":"something"`) + "\n")
	}
	if err := readEvents(strings.NewReader(events.String()), nil, v.event); err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	if len(l.above) != maxAbove || l.gone != maxAbove {
		t.Errorf("%d lines wait, %d are left out", len(l.above), l.gone)
	}
	v.mu.Unlock()
	go io.Copy(io.Discard, r)
	v.close()
	w.Close()
}

func TestQuiet(t *testing.T) {
	ready := func(changed bool) string {
		return at(2, "ct.ready", fmt.Sprintf(`"ctid":900,"name":"base","changed":%t,"changes":["created"]`, changed))
	}
	done := at(3, "plan.done", "")
	started := plan("create", "", 900)
	started = started[:len(started):len(started)]
	ended := func(status string) string { return at(4, "run.ended", `"status":`+status) }
	point := func(result string) string {
		return at(1, "check.point", `"point":"x","text":"y","result":"`+result+`"`)
	}
	warning := at(1, "warning", `"program":"phx-lxc","text":"something"`)
	for name, test := range map[string]struct {
		events []string
		want   string // in what is shown, "" for nothing
	}{
		"unchanged": {append(started, warning, ready(false), done), ""},
		"changed":   {append(started, ready(true), done), "Changed:\n  900 base: created\n"},
		"failed":    {append(started, at(1, "ct.failed", `"ctid":900,"error":"x"`), done), "Failed:"},
		"cut short": {append(started, ready(false)), "it has ended early"},
		"status 1":  {append(started, ready(false), done, ended("1")), "create: failed"},
		"status 0":  {append(started, ready(false), done, ended("0")), ""},
		"as it was": {append(plan("status", "", 900), at(1, "ct.status", `"ctid":900`), done), ""},
		"drift": {append(plan("status", "", 900), at(1, "ct.status", `"ctid":900,"drift":["a"]`), done),
			"a run would change: a"},
		"check ok":   {append(plan("check", "", 900), point("ok"), done), ""},
		"check fail": {append(plan("check", "", 900), point("failed"), done), "failed    x: y"},
	} {
		have := shown(t, true, test.events, []string{"phx-lxc: 900 base: unchanged"})
		if test.want == "" && have != "" || !strings.Contains(have, test.want) {
			t.Errorf("%s: shown is %q, want %q", name, have, test.want)
		}
	}
}

func TestSorter(t *testing.T) {
	s := newSorter()
	for _, m := range []struct {
		line string
		ctid int
		said bool
	}{
		{"phx-lxc: 103 Step-CA: started (0.1 s)", 103, true},
		{"phx-lxc:   | of a script", 103, true},
		{"phx-nginx: 101: unchanged", 101, true},
		{"phx-lxc:   | still of the script", 103, true},
		{"phx-lxc: the datacenter's firewall is off", 0, false},
		{"phx-lxc:   and more of that", 0, false},
		{"phx-ca-export: /x/ca.crt is unchanged: SHA-256 abc", 0, true},
		{"phx-ca-export: wrote /x/ca.crt: SHA-256 abc (0.1 s)", 0, true},
		{"phx-plan: --action x: there are create (see phx-plan --help)", 0, false},
		{"/etc/c.json:3:4: lxc_configs.103.memory_mb: must be a number", 0, false},
		{"panic: runtime error", 0, false},
		{"", 0, false},
		{"", 0, false},
	} {
		have := s.message(m.line)
		if have.ctid != m.ctid || have.said != m.said {
			t.Errorf("%q: %+v", m.line, have)
		}
	}
	// A warning is an event and a message: the first is shown.
	first := &event{Text: "/c.json:1:2: a.b: odd"}
	if !s.warning(first) || !s.message("/c.json:1:2: warning: a.b: odd").said {
		t.Error("a warning is shown twice, the event first")
	}
	if s.message("phx-lxc: odd").said || s.warning(&event{Text: "odd"}) {
		t.Error("a warning is shown twice, the message first")
	}
}

// Where nothing was planned, the messages say why, whatever they are about.
func TestNothingPlanned(t *testing.T) {
	const message = "phx-plan: 777: not in /etc/c.json"
	for _, events := range [][]string{nil, {at(1, "run.ended", `"status":2`)}} {
		if have := shown(t, false, events, []string{message}); have != message+"\n" {
			t.Errorf("%q: %q", events, have)
		}
	}
}

// What events say of a broken service, or of a point of a check, is said once.
func TestSaidOnce(t *testing.T) {
	for name, test := range map[string]struct {
		events  []string
		message string
		want    string
	}{
		"status": {append(plan("status", "", 103),
			at(1, "ct.status", `"ctid":103,"state":"running"`), at(1, "ca.status", `"ctid":103,"error":"it is gone"`),
			at(2, "plan.done", ""), at(3, "run.ended", `"status":1`)),
			"phx-ca-export: 103 Step-CA: it is gone", "status: broken after 3.0 s: 1 broken\n"},
		"check": {append(plan("check", "", 103),
			at(1, "check.point", `"point":"bridge","result":"failed","text":"it is gone"`), at(2, "plan.done", "")),
			"phx-lxc: bridge: failed: it is gone", "check: failed after 2.0 s: 1 failed\n"},
		"repeated": {append(plan("create", "", 102),
			at(1, "ct.failed", `"ctid":102,"stage":"start","error":"it is gone"`),
			at(1, "traefik.failed", `"ctid":102,"stage":"join","error":"the container failed: it is gone"`),
			at(2, "plan.done", "")),
			"", "Failed:\n  102 ct-102: start\n    it is gone\n\ncreate: failed"},
	} {
		have := shown(t, false, test.events, []string{test.message})
		_, end, _ := strings.Cut(have, "\n\n") // before it, plain lines tell what happens
		if name == "check" {
			end = have
		}
		if strings.Count(end, "it is gone") != 1 || !strings.Contains(end, test.want) {
			t.Errorf("%s: %s", name, have)
		}
	}
}

// A service that cannot be reached may be well.
func TestOutOfReach(t *testing.T) {
	have := shown(t, false, append(plan("status", "", 102),
		at(1, "ct.status", `"ctid":102,"state":"running"`),
		at(1, "traefik.status", `"ctid":102,"error":"no way there","out_of_reach":true`),
		at(2, "plan.done", ""), at(3, "run.ended", `"status":0`)), nil)
	if !strings.Contains(have, "  out of reach: no way there\n") || !strings.Contains(have, "status: all well after") {
		t.Error(have)
	}
}

// Words are kept whole, and a line is not longer than the screen where they are not.
func TestWrapped(t *testing.T) {
	s := &screen{columns: 20}
	have := ""
	for _, l := range s.wrapped(line{{yellow, "warning: "}}, "  ", plainText, "a word of text,\n  and averyverylongwordin it 長い 長い") {
		have += s.format(l, 0) + "\n"
	}
	const want = "warning: a word of\n  text,\n    and\n  averyverylongwordin\n  it 長い 長い\n"
	if have != want {
		t.Errorf("%q", have)
	}
}

// A failure that no event tells is told by what was hidden before.
func TestUntoldFailure(t *testing.T) {
	events := append(plan("create", "", 103),
		at(1, "ct.ready", `"ctid":103`), at(2, "plan.done", ""), at(3, "run.ended", `"status":1`))
	have := shown(t, false, events, []string{"phx-ca-export: 103 Step-CA: rotation of the root: refused"})
	const want = "The programs have said:\n  phx-ca-export: 103 Step-CA: rotation of the root: refused\n"
	if !strings.Contains(have, want) {
		t.Error(have)
	}
}

func TestDryRun(t *testing.T) {
	events := append(plan("create", `,"dry_run":true`, 103, 102),
		at(1, "ct.preview", `"ctid":103,"changed":true,"commands":[["pct","set","103","--description","a b"]],`+
			`"files":[{"path":"/x.fw","diff":"--- /x.fw\n-a\n+b\n"}]`),
		at(1, "ct.preview", `"ctid":102,"changed":false,"commands":[],"files":[]`), at(2, "plan.done", ""))
	const want = `dry run of create: 2 containers of /etc/c.json
103 ct-103: would run: pct set 103 --description 'a b'
103 ct-103: would change /x.fw
  --- /x.fw
  -a
  +b

Would change: 103 ct-103
Unchanged: 102 ct-102

dry run of create: something is to be changed: 1 would change, 1 unchanged
`
	if have := shown(t, false, events, nil); have != want {
		t.Errorf("%s\nwant\n%s", have, want)
	}
	// The messages say the same.
	have := shown(t, false, events, []string{"phx-lxc: 103 ct-103: would run: pct set"})
	if strings.Contains(have, "description") || strings.Count(have, "would run: pct set\n") != 1 {
		t.Error(have)
	}
}

// The status and the check, on a narrow terminal as well.
func TestTables(t *testing.T) {
	status := append(plan("status", "", 900, 103),
		at(1, "ct.status", `"ctid":900,"state":"stopped","template":true,"ip":"10.0.0.200","snapshots":["final-form"]`),
		at(1, "ct.status", `"ctid":103,"state":"running","lock":"backup","ip":"10.0.0.10","drift":["memory 2048"],`+
			`"restart_required":["cores"],"applied":{"step_ca":"1","+mac":"2"}`),
		at(2, "nginx.status", `"ctid":103,"address":"10.0.0.10:443","certificates":[`+
			`{"name":"a.example","issuer":"CA","not_after":"2026-01-03T15:04:27Z"},`+
			`{"name":"b.example","error":"expired"}]`),
		at(3, "ca.status", `"ctid":103,"sha256":"ab","pinned":"cd","ca_url":"https://10.0.0.10:9000",`+
			`"error":"they differ"`),
		at(3, "plan.done", ""), at(3, "run.ended", `"status":1`))
	const want = `
CTID  NAME    STATE     IP          SNAPSHOT
900   ct-900  template  10.0.0.200  final-form
103   ct-103  running   10.0.0.10
      locked: backup
      a run would change: memory 2048
      restart required: cores
      applied: step_ca

Gateway 103 ct-103 at 10.0.0.10:443
  a.example  24 h left  CA
  b.example  expired

CA 103 ct-103 at https://10.0.0.10:9000
  ab the file
  cd pinned
  broken: they differ

status: broken after 3.0 s: 1 broken, 1 as configured
`
	if have := shown(t, false, status, nil); !strings.HasSuffix(have, want) {
		t.Errorf("%s\nwant\n%s", have, want)
	}
	term := newTerminal(t, 40, 40, map[string]string{"TERM": "dumb"})
	v := viewAt(false, false, term.screen)
	feed(v, status...)
	term.end(v)
	term.shows("\nCTID  NAME    STATE     IP\n900   ct-900  template  10.0.0.200\n")

	check := append(plan("check", "", 900),
		at(1, "check.point", `"point":"bridge vmbr0","result":"ok","text":"is there"`),
		at(1, "check.point", `"ctid":900,"point":"template","result":"failed","text":"gone",`+
			`"remedy":"pveam download x"`),
		at(2, "plan.done", ""))
	const found = `
ok        bridge vmbr0  is there
failed    900 ct-900: template: gone
          → pveam download x

check: failed after 2.0 s: 1 failed, 1 ok
`
	if have := shown(t, false, check, nil); !strings.HasSuffix(have, found) {
		t.Errorf("%s\nwant\n%s", have, found)
	}
}
