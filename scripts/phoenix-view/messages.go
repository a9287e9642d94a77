package main

import (
	"regexp"
	"strconv"
	"strings"
)

// maxMessage is how much of a line of the programs' stderr is shown, in bytes.
const maxMessage = 8 << 10

// maxKept is how many bytes of messages are kept that are perhaps shown at the end.
const maxKept = 1 << 20

// maxUntold is how many messages are shown at the end that no event says.
const maxUntold = 40

// A message is a line that a program has written to its stderr.
type message struct {
	line string // as it is, without its newline
	ctid int    // the container that it is about, 0 for none
	text string // without the program's name and the container's

	// said reports that an event says the same to people: what becomes of a
	// container is said by ct.stage, ct.ready, ct.failed and the others.
	said bool
}

var (
	ofProgram   = regexp.MustCompile(`^(phx-(?:plan|lxc|ca-export|fingerprint|nginx|traefik)): (.*)$`)
	ofContainer = regexp.MustCompile(`^([1-9][0-9]{2,8})(?: [^:]*)?: (.*)$`)
	ofCA        = regexp.MustCompile(`^wrote .*: SHA-256 |^.* is unchanged: SHA-256 `)   // ca.exported says it
	ofPoint     = regexp.MustCompile(`^[^|]+: (?:ok|warning|failed|left out): `)         // check.point says it
	ofEnding    = regexp.MustCompile(`^stopped by |^the event stream ended too early: `) // the summary says it
	ofPlace     = regexp.MustCompile(`^(.*:[0-9]+:[0-9]+: )?warning: `)
)

// A sorter tells which messages events say as well. A warning comes as an event and
// as a message, in any order: the first is shown.
type sorter struct {
	last map[string]message // of each program: what it has begun, which may have more lines

	messages, warnings map[string]bool // what has been shown
}

func newSorter() *sorter {
	return &sorter{map[string]message{}, map[string]bool{}, map[string]bool{}}
}

// message tells what a line of the programs' stderr is.
func (s *sorter) message(line string) message {
	m := message{line: line, text: line}
	p := ofProgram.FindStringSubmatch(line)
	if p == nil {
		m.said = s.isShown(line)
		return m
	}
	program := p[1]
	if strings.HasPrefix(p[2], "  ") { // of a message of several lines
		m.text, m.ctid, m.said = p[2], s.last[program].ctid, s.last[program].said
		return m
	}
	m.text = p[2]
	if c := ofContainer.FindStringSubmatch(p[2]); c != nil {
		m.ctid, _ = strconv.Atoi(c[1])
		m.text = c[2]
		m.said = true
	} else {
		m.said = ofCA.MatchString(p[2]) || ofPoint.MatchString(p[2]) || ofEnding.MatchString(p[2]) || s.isShown(p[2])
	}
	s.last[program] = m
	return m
}

// isShown reports whether a warning event has said the text, and otherwise notes
// that a message does.
func (s *sorter) isShown(text string) bool {
	core := ofPlace.ReplaceAllString(text, "$1")
	note(s.messages, core)
	return s.warnings[core]
}

// warning reports whether a warning has not been shown as a message yet.
func (s *sorter) warning(e *event) bool {
	first, _, _ := strings.Cut(e.Text, "\n")
	core := ofPlace.ReplaceAllString(first, "$1")
	note(s.warnings, core)
	return !s.messages[core]
}

// note adds a text to a set that stays small.
func note(set map[string]bool, text string) {
	if len(set) < 10_000 {
		set[text] = true
	}
}

// kept are the last messages, up to maxKept bytes.
type kept struct {
	messages []message
	bytes    int
	gone     int // how many came before
}

func (k *kept) add(m message) {
	k.messages = append(k.messages, m)
	for k.bytes += len(m.line); k.bytes > maxKept; k.gone++ {
		k.bytes -= len(k.messages[0].line)
		k.messages = k.messages[1:]
	}
}

// untold returns the messages that events should say, and that none has said: those
// about containers of which the events tell no end, and all where the run has failed
// and no event tells of a failure.
func (k *kept) untold(r *run) []message {
	if e := r.ending(); e != broken && e != stopped {
		return nil
	}
	all := r.ending() == broken && !r.anyFailure()
	var found []message
	for _, m := range k.messages {
		c := r.containers[m.ctid]
		if all || m.ctid != 0 && (c == nil || c.outcome() <= working) {
			found = append(found, m)
		}
	}
	return found[max(0, len(found)-maxUntold):]
}
