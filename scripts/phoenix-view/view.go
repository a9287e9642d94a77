package main

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// A display shows a run while it goes on. Its methods are called one at a time.
type display interface {
	event(r *run, e *event)    // r has observed e
	message(r *run, m message) // the program's stderr
	say(lines ...line)         // what is to stay
	end(r *run)                // nothing more comes of r
	close()
}

// A view shows what the programs say, and keeps it.
type view struct {
	quiet    bool
	last     *run // of before, out of the log; nil where there is none
	now      func() time.Time
	finished func(*run) error // is called with each run that has ended; may be nil

	out     *screen
	display display // nil with quiet

	mu     sync.Mutex
	run    *run
	sorter *sorter
	all    kept // every message, with quiet
	hidden kept // messages that events should say
	bad    int  // lines that are no events
	badOne error
}

// event takes a line of the stream.
func (v *view) event(raw []byte, e *event, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		if v.bad++; v.badOne == nil {
			v.badOne = err
		}
		return
	}
	if v.run.isOver(e) {
		v.end()
	}
	v.run.observe(e)
	if v.display == nil || e.Event == "warning" && !v.sorter.warning(e) {
		return
	}
	v.display.event(v.run, e)
	if e.Event == "plan.started" && v.run.dryRun() { // messages may have come before it
		for _, m := range v.hidden.messages {
			v.display.message(v.run, m)
		}
	}
}

// message takes a line of the programs' stderr.
func (v *view) message(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.display == nil {
		v.all.add(message{line: text})
		return
	}
	m := v.sorter.message(text)
	if m.said {
		v.hidden.add(m)
	}
	v.display.message(v.run, m)
}

// end ends the run, and shows what has become of it.
func (v *view) end() {
	r := v.run
	v.run = newRun()
	if v.display != nil {
		v.display.end(r)
	}
	if v.finished != nil && !r.start.IsZero() {
		if err := v.finished(r); err != nil {
			complain(err)
		}
	}
	s := &summary{run: r, last: v.last, now: v.now(), out: v.out}
	untold := v.hidden.untold(r)
	switch {
	case r.start.IsZero() || r.begin == nil && r.status >= 0 && len(r.containers) == 0:
		// Nothing was planned: the messages say why.
		if v.quiet {
			v.tell(nil)
		}
		for _, m := range untold {
			v.display.say(text(m.line))
		}
	case !v.quiet:
		if untold != nil {
			v.display.say(nil, line{{bold, "The programs have said:"}})
		}
		for _, m := range untold {
			v.display.say(text("  ", m.line))
		}
		v.display.say(s.lines()...)
	case r.ending() != well:
		var points []line
		for _, e := range r.points {
			points = append(points, v.out.happened(r, e, true)...)
		}
		v.tell(append(points, s.lines()...))
	case r.kind() == "run" && len(r.with(changed)) > 0:
		v.out.print(s.lines()...)
	}
	v.hidden, v.all = kept{}, kept{}
}

// tell writes all messages to stderr, and lines to stdout.
func (v *view) tell(lines []line) {
	if v.all.gone > 0 {
		fmt.Fprintf(os.Stderr, "phoenix-view: %d more lines of messages came before\n", v.all.gone)
	}
	for _, m := range v.all.messages {
		fmt.Fprintln(os.Stderr, escape(m.line))
	}
	v.all = kept{}
	v.out.print(lines...)
}

// close ends the last run.
func (v *view) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.end()
	if v.bad > 0 && !v.quiet {
		v.display.say(line{{yellow, fmt.Sprintf("%s not shown: the first: %v", many(v.bad, "line"), v.badOne)}})
	}
	if v.display != nil {
		v.display.close()
	}
}
