package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

// Times of a watch.
const (
	pollEvery  = 15 * time.Second // how often is looked at what tells of no change
	settled    = 2 * time.Second  // files are taken as they are when nothing has changed for so long,
	unsettled  = 30 * time.Second // and in any case after this
	lockRetry  = 5 * time.Second  // after a run has found that another one is at work
	takenAfter = time.Minute      // a driver that has not taken a plan by then hangs,
	runAtMost  = 24 * time.Hour   // and a run that has not ended by then, whose every command has a limit
)

// statusLocked is the exit status of phoenix when another run is at work.
const statusLocked = 75

// A watch says when a plan is due.
type watch struct {
	look   func() (now snapshot, poll bool)
	hints  <-chan struct{} // something may have changed since the last look
	lines  <-chan string   // what the driver says; closed when that ends
	emit   func(event.PlanDue) error
	notify func(state string) // tells the service manager
	ping   time.Duration      // how often that wants to hear that all is well; 0 for never
	every  time.Duration      // between the end of a run and the next one, at most

	poll    bool
	pinged  time.Time
	overdue time.Time // when the driver has to have said something; zero when it need not
	last    string    // how the last run has ended, in words
}

// watchPlans writes plan.due whenever a plan is due, as long as there is a driver.
func watchPlans(c *cli.Context) error {
	asked, err := read(c)
	switch {
	case err != nil:
		return err
	case !asked.action.repeated:
		return cmdline.Usagef("--watch: %s is not to be done again and again: there are %s", asked.name, repeated())
	case c.Bool("explain"), c.String("format") != "jsonl":
		return cmdline.Usagef("--watch: there is nothing else to print")
	case c.Duration("every") < time.Second:
		return cmdline.Usagef("--every %v: must be 1s or more", c.Duration("every"))
	}
	path := c.String("config")
	if info, err := os.Stat(path); err == nil && info.Mode().Type() == fs.ModeNamedPipe {
		return cmdline.Usagef("--watch: %s is a pipe, which can be read once", path)
	}
	vmPath, _ := config.VMPath(path, c.String("vm-config"))
	d := &dependencies{config: path, vms: vmPath, ca: c.String("ca-file"), dirs: scripts.FromFlag(c)}
	files := watchFiles(d.paths)
	defer files.close()
	notify := serviceManager()
	defer notify("STOPPING=1")
	w := &watch{
		look: files.look, hints: files.hints, lines: linesOf(os.Stdin), emit: emitDue, notify: notify,
		ping: pingEvery(), every: c.Duration("every"),
	}
	return w.run(c.Context)
}

// repeated names the actions that may be done again and again.
func repeated() string {
	some := maps.Clone(actions)
	maps.DeleteFunc(some, func(_ string, a action) bool { return !a.repeated })
	return list(some)
}

// dependencies are the files that a plan depends on, and what is done by it.
type dependencies struct {
	config, vms, ca string
	dirs            scripts.Dirs

	known   string   // the configuration's content when it was last read
	scripts []string // what it then named
}

// paths returns the paths of the files, absolute and without repetition. It reads
// the configuration when that has changed; one that cannot be read leaves the
// scripts as they were known.
func (d *dependencies) paths() []string {
	if now := contentOf(d.config); now != d.known {
		d.known = now
		if file := readable(d.config); file != nil {
			d.scripts = d.dirs.Paths(scriptsOf(file))
		}
	}
	paths := append([]string{d.config, d.vms, d.ca}, d.scripts...)
	if assets := os.Getenv("PHX_ASSETS"); assets != "" {
		paths = append(paths, filepath.Join(assets, "SHA256SUMS"))
	}
	for i, path := range paths {
		paths[i] = absolute(path)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

func absolute(path string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		return absolute
	}
	return path
}

// readable returns what is right in the configuration, nil for nothing.
func readable(path string) *config.File {
	file, err := config.Load(path)
	if mistakes, ok := errors.AsType[*config.Error](err); ok {
		return mistakes.Rest
	}
	return file
}

// scriptsOf returns the names of the scripts that a configuration has.
func scriptsOf(file *config.File) (features, applications, health []string) {
	f, a, h := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, c := range file.Containers {
		for _, feature := range c.Features {
			f[feature] = true
		}
		if c.ApplicationScript != "" {
			a[c.ApplicationScript] = true
		}
		for _, probe := range c.HealthChecks {
			h[probe.Script] = true
		}
	}
	return slices.Collect(maps.Keys(f)), slices.Collect(maps.Keys(a)), slices.Collect(maps.Keys(h))
}

// linesOf returns the lines of r, until it ends.
func linesOf(r io.Reader) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			lines <- strings.TrimSpace(s.Text())
		}
	}()
	return lines
}

// emitDue writes the event.
func emitDue(due event.PlanDue) error {
	line, err := event.Append(nil, due)
	if err != nil {
		return err
	}
	if _, err := os.Stdout.Write(line); err != nil {
		return fmt.Errorf("write %s: %w", event.NamePlanDue, err)
	}
	return nil
}

func changed(paths []string) string {
	verb := " has changed"
	if len(paths) > 1 {
		verb = " have changed"
	}
	return shorten(paths, 3, ", ") + verb
}

// errNoDriver is the error when stdin has ended.
var errNoDriver = errors.New("stdin has ended, where --watch is told how each run has ended: phoenix --watch does that")

// run writes the first event at once and then one whenever a plan is due, until ctx
// is done or the driver has ended.
func (w *watch) run(ctx context.Context) error {
	var before snapshot
	before, w.poll = w.look()
	w.notify("READY=1")
	due := event.PlanDue{Reason: event.DueStart}
	during := 0 // how many runs in a row have seen a change while they were under way
	for {
		if err := w.driven(ctx, due); err != nil {
			return err
		}
		var now snapshot
		now, w.poll = w.look()
		// What the run itself has written, phoenix_ca.crt, counts as well: who has changed a file cannot be told.
		if during++; len(now.changedSince(before)) == 0 {
			during = 0
		}
		var err error
		if due, before, err = w.wait(ctx, before, during); err != nil {
			return err
		}
	}
}

// driven has the driver do a run, again when another one was at work, and returns
// when it has ended.
func (w *watch) driven(ctx context.Context, due event.PlanDue) error {
	about := due.Reason
	if len(due.Paths) > 0 {
		about = changed(due.Paths)
		cmdline.Logf("a run is due: %s", about)
	}
	for told := false; ; told = true {
		w.notify("STATUS=A run is under way: " + about)
		if err := w.emit(due); err != nil {
			return err
		}
		status, err := w.taken(ctx)
		if err != nil {
			return err
		}
		w.last = fmt.Sprintf("the last run ended at %s with status %d", time.Now().Format(time.DateTime), status)
		if status != statusLocked {
			return nil
		}
		if !told {
			cmdline.Logf("another run is at work: trying again every %v", lockRetry)
			w.notify("STATUS=Waiting for another run to end")
		}
		if err := w.sleep(ctx, lockRetry); err != nil {
			return err
		}
	}
}

// taken waits until the driver has taken a plan and its run has ended, and returns
// that run's exit status.
func (w *watch) taken(ctx context.Context) (int, error) {
	defer func() { w.overdue = time.Time{} }()
	w.overdue = time.Now().Add(takenAfter)
	for {
		line, what, err := w.next(ctx, time.Time{})
		switch {
		case err != nil:
			return 0, err
		case what != driverSpoke: // what changes during a run is looked for after it
		case line == "taken":
			w.overdue = time.Now().Add(runAtMost)
		default:
			status, err := strconv.Atoi(line)
			if err != nil || status < 0 || status > 255 {
				return 0, fmt.Errorf("stdin: %q is neither taken nor the exit status of a run", line)
			}
			return status, nil
		}
	}
}

// sleep waits for some time.
func (w *watch) sleep(ctx context.Context, d time.Duration) error {
	until := time.Now().Add(d)
	for {
		switch line, what, err := w.next(ctx, until); {
		case err != nil:
			return err
		case what == timeIsUp:
			return nil
		case what == driverSpoke:
			return fmt.Errorf("stdin: %q, and no run is under way", line)
		}
	}
}

// wait waits for a difference from before, or until the time is up, and returns
// what is due, and what there was then. During is how many of the last runs have
// seen a change: one that makes the change itself is not to be repeated at once.
func (w *watch) wait(ctx context.Context, before snapshot, during int) (event.PlanDue, snapshot, error) {
	begun := time.Now()
	next := begun.Add(w.every)
	status := func(text string) { w.notify("STATUS=" + text + "; " + w.last) }
	idle := fmt.Sprintf("Waiting for changes, until %s", next.Format(time.DateTime))
	status(idle)

	var since, settle time.Time // of a change that may still go on; zero without one
	seen := before
	change := func(quiet time.Duration) {
		now := time.Now()
		if since.IsZero() {
			since = now
			status("Waiting for a change to settle")
		}
		settle = earliest(now.Add(quiet), since.Add(max(unsettled, quiet)), next)
	}
	if during > 0 {
		change(min(settled<<min(during-1, 20), w.every))
	}
	for {
		var poll time.Time
		if w.poll {
			poll = time.Now().Add(pollEvery)
		}
		line, what, err := w.next(ctx, earliest(next, settle, poll))
		switch {
		case err != nil:
			return event.PlanDue{}, nil, err
		case what == driverSpoke:
			return event.PlanDue{}, nil, fmt.Errorf("stdin: %q, and no run is under way", line)
		case what == filesHint:
			if during <= 1 || since.IsZero() {
				change(settled)
			}
			continue
		}
		var now snapshot
		now, w.poll = w.look()
		at := time.Now()
		paths := now.changedSince(before)
		switch {
		case !at.Before(next) && len(paths) == 0:
			return event.PlanDue{Reason: event.DueEvery}, now, nil
		case at.Before(settle): // it is not time yet
			continue
		case len(paths) == 0: // touched, or as it was before
			since, settle, during = time.Time{}, time.Time{}, 0
			status(idle)
		case since.IsZero(),
			w.poll && during <= 1 && len(now.changedSince(seen)) > 0 &&
				at.Before(since.Add(unsettled)) && at.Before(next):
			change(settled)
		default:
			return event.PlanDue{Reason: event.DueChange, Paths: paths[:min(len(paths), event.MaxDuePaths)]}, now, nil
		}
		seen = now
	}
}

// earliest returns the first of some times, those that are zero left out.
func earliest(times ...time.Time) time.Time {
	return slices.MinFunc(times, func(a, b time.Time) int {
		if a.IsZero() != b.IsZero() {
			return cmp.Compare(b.Unix(), a.Unix()) // zero is long ago
		}
		return a.Compare(b)
	})
}

// What ends [watch.next].
const (
	timeIsUp = iota
	filesHint
	driverSpoke
)

// next waits until a time, for ever when that is zero, or until something happens.
// Meanwhile it tells the service manager that all is well, unless the driver is
// overdue.
func (w *watch) next(ctx context.Context, until time.Time) (line string, what int, err error) {
	var up <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		up = timer.C
	}
	var ping <-chan time.Time
	if w.ping > 0 {
		ticker := time.NewTicker(w.ping)
		defer ticker.Stop()
		ping = ticker.C
	}
	for {
		w.pingIfWell()
		select {
		case <-ctx.Done():
			return "", 0, context.Cause(ctx)
		case <-up:
			return "", timeIsUp, nil
		case <-w.hints:
			return "", filesHint, nil
		case line, ok := <-w.lines:
			if !ok {
				return "", 0, errNoDriver
			}
			return line, driverSpoke, nil
		case <-ping:
		}
	}
}

func (w *watch) pingIfWell() {
	now := time.Now()
	if w.ping == 0 || now.Before(w.pinged.Add(w.ping/2)) || !w.overdue.IsZero() && now.After(w.overdue) {
		return
	}
	w.notify("WATCHDOG=1")
	w.pinged = now
}

// serviceManager returns what tells the service manager a state of this service, as
// sd_notify(3) does. It does nothing where there is none.
func serviceManager() func(state string) {
	to := os.Getenv("NOTIFY_SOCKET")
	if to == "" {
		return func(string) {}
	}
	return func(state string) {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: to, Net: "unixgram"})
		if err == nil {
			_, err = conn.Write([]byte(cmdline.Escape(state)))
			conn.Close()
		}
		if err != nil {
			cmdline.Logf("tell the service manager: %v", err)
		}
	}
}

// pingEvery returns how often the service manager wants to hear that all is well, 0
// for never. WATCHDOG_PID, which is the driver's, does not count: NotifyAccess=all
// has the word of this program count for the service.
func pingEvery() time.Duration {
	n, err := strconv.Atoi(os.Getenv("WATCHDOG_USEC"))
	if err != nil || n <= 0 {
		return 0
	}
	return max(time.Duration(n)*time.Microsecond/3, time.Millisecond)
}
