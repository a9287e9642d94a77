package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxAbove is how many lines wait at most for a terminal that takes none.
const maxAbove = 10_000

// live shows a run at a terminal: what stays, and below it a line for each container,
// which are drawn again and again. Only its own goroutine writes to the terminal, so
// that one that has been stopped (Ctrl-S) stops nobody else.
type live struct {
	out      *screen
	messages bool
	now      func() time.Time
	mu       *sync.Mutex // guards what follows, and the run

	run    *run
	notes  map[int]string // the last message about a container that is worked on
	above  []string       // what is still to be written, and stays
	gone   int            // how many lines of above are left out
	redraw bool           // what is on the terminal may look otherwise there

	wake   chan struct{}
	closed chan struct{} // by close
	done   chan struct{} // by the goroutine

	drawn []string // the lines that are redrawn, as they are on the terminal
}

// newLive returns a display whose methods are called with mu locked.
func newLive(out *screen, mu *sync.Mutex, messages bool, now func() time.Time) *live {
	l := &live{
		out: out, messages: messages, now: now, mu: mu, notes: map[int]string{},
		wake: make(chan struct{}, 1), closed: make(chan struct{}), done: make(chan struct{}),
	}
	go l.loop()
	return l
}

func (l *live) say(lines ...line) { l.stay(0, lines) }

// stay adds lines that stay, each cut to some columns unless these are 0.
func (l *live) stay(columns int, lines []line) {
	for _, row := range lines {
		l.above = append(l.above, l.out.format(row, columns))
	}
	if over := len(l.above) - maxAbove; over > 0 {
		l.above = l.above[over:]
		l.gone += over
	}
	l.poke()
}

func (l *live) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *live) event(r *run, e *event) {
	l.run = r
	switch e.Event {
	case "plan.started", "warning", "check.point", "ct.preview":
		l.say(l.out.happened(r, e, l.messages)...)
	case "ct.stage":
		delete(l.notes, e.CTID)
	default:
		if o := e.outcome(); (o == failed || o == skipped) && !l.fits(r) {
			l.say(l.out.happened(r, e, l.messages)...)
		}
	}
	l.poke()
}

func (l *live) message(r *run, m message) {
	switch {
	case !m.said || r.dryRun():
		l.say(text(m.line))
	case m.ctid != 0:
		l.notes[m.ctid] = strings.TrimSpace(m.text)
		l.poke()
	}
}

func (l *live) end(r *run) {
	if l.run == r {
		l.stay(l.out.columns-1, l.last(r))
	}
	l.run, l.notes = nil, map[int]string{}
	l.poke()
}

// close returns when all is on the terminal. It is called with mu locked.
func (l *live) close() {
	close(l.closed)
	l.mu.Unlock()
	<-l.done
	l.mu.Lock()
}

// loop draws whenever something has happened, at most ten times a second, and
// each second, because time goes on.
func (l *live) loop() {
	defer close(l.done)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-l.closed:
			l.draw()
			return
		case <-resized:
			l.resize()
		case <-l.wake:
		case <-tick.C:
		}
		l.draw()
		select {
		case <-l.closed:
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// resize looks how large the terminal is now. All is drawn again.
func (l *live) resize() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.measure()
	l.redraw = true
}

// draw brings the terminal up to date.
func (l *live) draw() {
	l.mu.Lock()
	above, gone, redraw := l.above, l.gone, l.redraw
	l.above, l.gone, l.redraw = nil, 0, false
	var rows []string
	if l.run != nil {
		for _, row := range l.rows(l.run) {
			rows = append(rows, l.out.format(row, l.out.columns-1))
		}
	}
	l.mu.Unlock()

	var b strings.Builder
	first := 0 // of the rows that differ from what is drawn
	if len(above) == 0 && gone == 0 && !redraw {
		for first < min(len(rows), len(l.drawn)) && rows[first] == l.drawn[first] {
			first++
		}
		if first == len(rows) && first == len(l.drawn) {
			return
		}
	}
	b.WriteString("\r")
	if up := len(l.drawn) - first; up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	b.WriteString("\x1b[J")
	if gone > 0 {
		fmt.Fprintf(&b, "(%d lines left out)\n", gone)
	}
	for _, row := range above {
		b.WriteString(row + "\n")
	}
	for _, row := range rows[first:] {
		b.WriteString(row + "\n")
	}
	l.drawn = rows
	l.out.out.WriteString(b.String()) // a terminal that is gone takes nothing, and the log has all
}

// rows returns the lines that are redrawn, fewer than the terminal has.
func (l *live) rows(r *run) []line {
	if r.kind() != "run" {
		return []line{{{dim, l.progress(r)}}}
	}
	if l.fits(r) {
		return l.out.table(r, r.all(), l.notes, l.now())
	}
	moving := r.with(working)
	rows := l.out.table(r, moving[:min(len(moving), max(0, l.out.rows-2))], l.notes, l.now())
	return append(rows, line{{plainText, l.progress(r)}})
}

// fits reports whether the terminal has room for all containers.
func (l *live) fits(r *run) bool { return len(r.order) < l.out.rows }

// last returns the lines of a run that has ended, as they stay.
func (l *live) last(r *run) []line {
	if r.kind() != "run" || !l.fits(r) {
		return nil
	}
	return l.out.table(r, r.all(), nil, time.Time{})
}

// progress says how many containers have come how far.
func (l *live) progress(r *run) string {
	have := map[outcome]int{}
	for _, c := range r.containers {
		have[c.outcome()]++
	}
	text := fmt.Sprintf("%d of %s done", len(r.order)-have[waiting]-have[working], many(len(r.order), "container"))
	for _, o := range []outcome{failed, skipped, changed, working, waiting} {
		if have[o] > 0 {
			text += fmt.Sprintf(", %d %s", have[o], o)
		}
	}
	return text
}
