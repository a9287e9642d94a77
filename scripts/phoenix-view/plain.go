package main

import (
	"fmt"
	"regexp"
	"strings"
)

// plain writes a line for each thing that happens: without a terminal, or to one
// that cannot move its cursor.
type plain struct {
	out      *screen
	messages bool // of the programs come as well
	lost     bool // stdout takes nothing any more
}

func (p *plain) say(lines ...line) {
	if !p.lost && p.out.print(lines...) != nil {
		p.lost = true
	}
}

func (p *plain) message(r *run, m message) {
	if !m.said || r.dryRun() {
		p.say(text(m.line))
	}
}

func (p *plain) event(r *run, e *event) {
	p.say(p.out.happened(r, e, p.messages)...)
	if e.Event == "ct.stage" {
		p.say(text(r.container(e.CTID).label(), ": ", e.Stage))
	}
}

func (p *plain) end(*run) {}
func (p *plain) close()   {}

// title returns how a run begins.
func title(r *run) line {
	what := r.begin.Action
	if r.begin.DryRun {
		what = "dry run of " + what
	}
	of := fmt.Sprintf(": %s of %s", many(len(r.begin.Order), "container"), r.begin.ConfigPath)
	return line{{bold, what}, {plainText, of}}
}

// happened returns what there is to say of an event, on a terminal and elsewhere:
// it stays. Where messages come as well, they tell what a dry run would do.
func (s *screen) happened(r *run, e *event, messages bool) []line {
	switch e.Event {
	case "plan.started":
		return []line{title(r)}
	case "warning":
		about := ""
		if e.CTID != 0 {
			about = r.container(e.CTID).label() + ": "
		}
		return s.wrapped(line{{yellow, "warning: "}, {plainText, about}}, "  ", plainText, e.Text)
	case "check.point":
		return s.point(r, e)
	case "ct.preview":
		if messages {
			return nil
		}
		return previewLines(r, e)
	case "ct.status", "ca.status", "nginx.status", "traefik.status":
		return nil // the tables at the end have it
	}
	if writers[e.Event] == "" || e.CTID == 0 {
		return nil
	}
	c := r.container(e.CTID)
	l := line{{plainText, c.label() + ": "}}
	if part := parts[writers[e.Event]]; part != "" {
		l = append(l, span{plainText, part + " "})
	}
	switch o := e.outcome(); o {
	case failed:
		what := ""
		if e.Stage != "" {
			what = ": " + e.Stage
		}
		first, _, _ := strings.Cut(e.Error, "\n")
		l = append(l, span{red, "failed"}, span{plainText, what + ": " + first})
	case skipped:
		l = append(l, span{cyan, "skipped"}, span{plainText, ": " + e.Reason})
	case changed:
		l = append(l, span{yellow, "changed"})
		only := container{results: []*event{e}}
		if changes := only.changes(); len(changes) > 0 {
			l = append(l, span{plainText, ": " + strings.Join(changes, ", ")})
		}
	default:
		l = append(l, span{green, "unchanged"})
	}
	if took := e.elapsed(); took >= brief {
		l = append(l, span{dim, " (" + lasted(took) + ")"})
	}
	return []line{l}
}

// parts are the parts that a container may have beside being one, by the program that
// works on it.
var parts = map[string]string{"phx-ca-export": "CA", "phx-nginx": "gateway", "phx-traefik": "proxy"}

// previewLines returns what a dry run would do to a container.
func previewLines(r *run, e *event) []line {
	if !e.Changed {
		return nil
	}
	label := r.container(e.CTID).label()
	var all []line
	for _, argv := range e.Commands {
		all = append(all, text(label, ": would run: ", quote(argv)))
	}
	for _, f := range e.Files {
		all = append(all, text(label, ": would change ", f.Path))
		for row := range strings.SplitSeq(strings.TrimSuffix(f.Diff, "\n"), "\n") {
			look := plainText
			switch {
			case strings.HasPrefix(row, "+"):
				look = green
			case strings.HasPrefix(row, "-"):
				look = red
			}
			all = append(all, line{{plainText, "  "}, {look, row}})
		}
	}
	return all
}

// typed are the words that a shell takes as they are.
var typed = regexp.MustCompile(`^[%+,\-./:=@_0-9A-Za-z]+$`)

// quote returns a command as one would type it. Of a shell program it has the first
// line.
func quote(argv []string) string {
	words := make([]string, len(argv))
	for i, word := range argv {
		if first, rest, more := strings.Cut(word, "\n"); more {
			lines := strings.Count(strings.TrimSuffix(rest, "\n"), "\n") + 1
			word = first + " … and " + many(lines, "line")
		}
		if !typed.MatchString(word) {
			word = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		words[i] = word
	}
	return strings.Join(words, " ")
}
