package labtest

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/hinshun/vt10x"
)

// With -update, the runs that docs/sessions.md shows are recorded anew, and docs/run.png is made of the first:
//
//	PHX_TEST_LAB=1 go test ./scripts/internal/labtest -run 'TestLab/(Up|Sessions)$' -update
var update = flag.Bool("update", false, "record docs/sessions.md and docs/run.png anew")

// A session is a run that docs/sessions.md shows, in one block.
type session struct {
	command, shown string
}

func (s session) String() string { return "$ " + s.command + "\n" + s.shown }

// testSessions: what docs/sessions.md shows is what runs show.
func (l lab) testSessions(t *testing.T, seen *evidence) {
	var all []session
	if *update {
		all = l.firstRun(t)
		l.screenshot(t, filepath.Join(l.repo, "docs/run.png"))
	} else {
		all = l.firstRunAgain(t, seen)
	}
	all = append(all, l.laterRuns(t)...)
	page := filepath.Join(l.repo, "docs/sessions.md")
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	// Its blocks are in the order of the runs.
	blocks := regexp.MustCompile("(?ms)^```console\n.*?^```$")
	have := blocks.FindAllString(string(text), -1)
	if len(have) != len(all) {
		t.Fatalf("%s has %d blocks of runs, want %d: %v", page, len(have), len(all), all)
	}
	if !*update {
		checkMoment(t, have[0], seen.events)
	}
	for i, s := range all {
		want := "```console\n" + s.String() + "```"
		if !*update && s.shown != "" && timeless(have[i]) != timeless(want) {
			t.Errorf("%s, block %d: with other times and fingerprints it is\n%s\nand now phx shows\n%s", page, i+1,
				have[i], want)
		}
		have[i] = want
	}
	if !*update {
		return
	}
	next := 0
	text = blocks.ReplaceAllFunc(text, func([]byte) []byte { next++; return []byte(have[next-1]) })
	write(t, page, string(text), 0o644)
}

// Of what a run shows, these differ from run to run.
var (
	durations    = regexp.MustCompile(`\b\d+(\.\d+)? (s|min|h|days)\b( \d+ (s|min)\b)?`)
	fingerprints = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
	took         = regexp.MustCompile(` \(\d+\.\d s\)`)
	lastRun      = regexp.MustCompile(`(?s)\nLast run: .*?\n\n`)
	stageTimes   = regexp.MustCompile(`(?m)^(  \d+ \S+ +(changed|unchanged|failed|skipped)) .*$`)
)

// timeless returns what a run has shown without all that differs from run to run.
func timeless(text string) string {
	text = took.ReplaceAllString(stageTimes.ReplaceAllString(text, "$1"), "")
	text = lastRun.ReplaceAllString(text, "\nLast run\n\n")
	text = fingerprints.ReplaceAllString(text, "FINGERPRINT")
	text = durations.ReplaceAllString(text, "TIME")
	var messages, others []string // of programs that work at the same time
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, "phx-") {
			messages = append(messages, line)
		} else {
			others = append(others, line)
		}
	}
	slices.Sort(messages)
	return strings.Join(append(messages, others...), "\n")
}

// inWork is the line of a container that is worked on: it has the stage, and seconds without a fraction.
var inWork = regexp.MustCompile(`(?m)^  (\d+) \S+ +([^ .,\n]+(?: [^ .,\n]+)*) \d+ s\b`)

// isMiddle reports whether a moment of the first run is one to be shown: a container is done, one is worked on, and one
// waits for another.
func isMiddle(shown string) bool {
	works, waits := false, strings.Contains(shown, "  waits for ")
	for _, stage := range inWork.FindAllStringSubmatch(shown, -1) {
		if isWait(stage[2]) {
			waits = true
		} else {
			works = true
		}
	}
	return works && waits && strings.Contains(shown, "  changed ")
}

// isWait reports whether a stage is none of the work, and so not one of each run.
func isWait(stage string) bool { return strings.HasPrefix(stage, "waiting for ") }

func TestIsMiddle(t *testing.T) {
	const base, ca = "  900 Copy-Base  changed  1.1 s  create 1.1 s\n", "  103 Step-CA  step_ca 2 s\n"
	for shown, want := range map[string]bool{
		base + ca + "  102 Traefik  waiting for what it needs 1 s\n": true,
		base + ca + "  101 Nginx  waits for 103 Step-CA\n":           true,
		base + ca: false,
		base + "  102 Traefik  waiting for what it needs 1 s\n": false,
		ca + "  101 Nginx  waits for 103 Step-CA\n":             false,
	} {
		if isMiddle(shown) != want {
			t.Errorf("%t for:\n%s", !want, shown)
		}
	}
}

// checkMoment: the first run goes through what a block shows of the middle of one.
func checkMoment(t *testing.T, block, events string) {
	t.Helper()
	stages := inWork.FindAllStringSubmatch(block, -1)
	for _, stage := range stages {
		if isWait(stage[2]) {
			continue
		}
		event := regexp.MustCompile(
			`"ct.stage".*"ctid":` + stage[1] + `,.*"stage":"` + regexp.QuoteMeta(stage[2]) + `"`)
		if !event.MatchString(events) {
			t.Errorf("the first run has no stage %q of container %s", stage[2], stage[1])
		}
	}
	if !isMiddle(block) {
		t.Errorf("this is not the middle of a run:\n%s", block)
	}
}

// firstRun has phx make everything anew: of what it has made before nothing is left, of the CA's root neither.
func (l lab) firstRun(t *testing.T) []session {
	t.Helper()
	for _, action := range []string{"stop", "delete"} {
		l.inside(t, "phoenix", action, gateway, proxy, ca, base)
	}
	for _, path := range []string{l.path("persistent-storage", "ssl", "phoenix_ca.crt"), l.path("pve", "priv", "phx"),
		l.path("log", "runs.jsonl")} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	var begun string
	first := l.atTerminal(t, 0, func(shown string) {
		if isMiddle(shown) {
			begun = shown
		}
	}, "phoenix")
	if begun == "" {
		t.Error("no moment of the first run is one to be shown")
	}
	return []session{{command: first.command, shown: l.asOnHost(begun)}, first}
}

// firstRunAgain shows the events of the run by which the lab came up.
func (l lab) firstRunAgain(t *testing.T, seen *evidence) []session {
	t.Helper()
	events := filepath.Join(t.TempDir(), "events")
	write(t, events, seen.events, 0o644)
	first := l.atTerminal(t, 0, nil, "sh", "-c", `phoenix-view <"$1"`, "sh", events)
	first.command = "phoenix"
	return []session{{command: "phoenix"}, first}
}

// laterRuns are one that changes nothing, the action status, and one that fails, the first and the last also by cron.
// The mistake is a port at which the CA does not listen.
func (l lab) laterRuns(t *testing.T) []session {
	t.Helper()
	right := l.read(t, "etc", "phoenix_lxc_configs.json")
	wrong := strings.Replace(right, "https://10.0.0.10:9000 --root", "https://10.0.0.10:9443 --root", 1)
	wrong = strings.Replace(wrong, `"retries": 10,`, `"retries": 1,`, 1)
	config := l.path("etc", "phoenix_lxc_configs.json")
	write(t, config, wrong, 0o644)
	failed := []session{l.atTerminal(t, 1, nil, "phoenix"), l.byCron(t, 1, "phoenix", "--quiet")}
	write(t, config, right, 0o644)
	return []session{
		l.atTerminal(t, 0, nil, "phoenix"), l.atTerminal(t, 0, nil, "phoenix", "status"), failed[0],
		l.byCron(t, 0, "phoenix", "--quiet"), failed[1],
	}
}

// atTerminal runs a command in the lab at a terminal. It must end with a status.
func (l lab) atTerminal(t *testing.T, status int, looked func(string), args ...string) session {
	t.Helper()
	term := &terminal{looked: looked}
	shown, have := term.run(t, l.command("scripts/lab", append([]string{"run"}, args...)...))
	if have != status {
		t.Errorf("%q at a terminal: status %d, want %d\n%s", args, have, status, shown)
	}
	return session{command: strings.Join(args, " "), shown: l.asOnHost(shown)}
}

// byCron runs a command in the lab as cron does: what it shows, cron would mail. It must end with a status.
func (l lab) byCron(t *testing.T, status int, args ...string) session {
	t.Helper()
	cmd := l.command("scripts/lab", append([]string{"run"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Run()
	if have := cmd.ProcessState.ExitCode(); have != status {
		t.Errorf("%q by cron: status %d, want %d\n%s", args, have, status, out.String())
	}
	return session{command: strings.Join(args, " "), shown: l.asOnHost(out.String())}
}

// asOnHost has the places of a Proxmox VE host instead of the lab's.
func (l lab) asOnHost(text string) string {
	return strings.NewReplacer(
		l.path("etc")+"/", "/etc/phx/",
		l.path("persistent-storage"), "/usr/local/phoenix_hypervisor/persistent-storage",
	).Replace(text)
}

// A terminal has 80 columns, and more rows than any run takes.
type terminal struct {
	vt10x.Terminal
	looked func(shown string) // is called with what it shows whenever something was written to it; may be nil
}

// run runs a command at the terminal, and returns what is on it at the end, and the exit status.
func (term *terminal) run(t *testing.T, cmd *exec.Cmd) (shown string, status int) {
	t.Helper()
	const columns, rows = 80, 60
	term.Terminal = vt10x.New(vt10x.WithSize(columns, rows))
	cmd.Env = append(cmd.Env, "TERM=xterm", "NO_COLOR=")
	master, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: columns, Rows: rows})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	for buf := make([]byte, 64<<10); err == nil; { // until nobody has the terminal any more
		var n int
		n, err = master.Read(buf)
		term.Write(buf[:n])
		if term.looked != nil {
			term.looked(term.shown())
		}
	}
	cmd.Wait()
	return term.shown(), cmd.ProcessState.ExitCode()
}

func (term *terminal) shown() string {
	var b strings.Builder
	for row := range strings.SplitSeq(term.String(), "\n") {
		b.WriteString(strings.TrimRight(row, " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// screenshot makes a picture of the page of the last run.
func (l lab) screenshot(t *testing.T, path string) {
	t.Helper()
	dir := t.TempDir()
	events, page := filepath.Join(dir, "events"), filepath.Join(dir, "run.html")
	write(t, events, l.asOnHost(l.read(t, "log", "runs.jsonl")), 0o644)
	l.inside(t, "phoenix-view", "--html", page, events)
	l.do(t, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--user-data-dir="+dir,
		"--window-size=1000,1000", "--screenshot="+path, "file://"+page)
}
