package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// looks are the styles of outcomes.
var looks = map[outcome]style{
	waiting: dim, working: bold, unchanged: green, changed: yellow, skipped: cyan, failed: red,
}

// table returns a line for each of some containers: how it is now, or how the run
// has left it where now is zero. Notes are what is said of those that are worked on.
func (s *screen) table(r *run, containers []*container, notes map[int]string, now time.Time) []line {
	column := 0
	for _, c := range containers {
		column = max(column, width(escape(c.label())))
	}
	if s.columns > 0 {
		column = min(column, max(12, s.columns/3))
	}
	var rows []line
	for _, c := range containers {
		label := span{plainText, "  " + pad(cut(c.label(), column), column) + "  "}
		rows = append(rows, append(line{label}, c.state(r, notes[c.ctid], now)...))
	}
	return rows
}

// state returns what there is to say of a container in its line; see table.
func (c *container) state(r *run, note string, now time.Time) line {
	o, ended := c.outcome(), now.IsZero()
	switch {
	case o == waiting && (ended || r.done):
		return line{{dim, "nothing done"}}
	case o == waiting:
		for _, id := range c.needs {
			if need := r.containers[id]; need != nil && need.outcome() <= working {
				return line{{dim, "waits for " + need.label()}}
			}
		}
		return line{{dim, "waits"}}
	case o == working && ended:
		s := c.working()
		return line{{red, "not finished"}, {plainText, ": " + s.name + " after " + lasted(r.end.Sub(s.start))}}
	case o == working:
		s := c.working()
		state := line{{bold, s.name}, {plainText, " " + clock(now.Sub(s.start))}}
		if note != "" {
			state = append(state, span{dim, "  " + note})
		}
		return state
	}
	if ca := r.containers[r.due(c)]; !ended && ca != nil && o < skipped {
		return line{{dim, "waits for " + ca.label()}}
	}
	state := line{{looks[o], pad(o.String(), len("unchanged"))}}
	if took := c.took(r.end); took >= brief {
		state = append(state, span{plainText, fmt.Sprintf("  %6s", lasted(took))})
	}
	if stages := c.stageTimes(); stages != "" {
		state = append(state, span{dim, "  " + stages})
	}
	return state
}

// stageTimes names the stages that are over and took some time, each with that. A
// terminal may not have room for all: those that took longest come first.
func (c *container) stageTimes() string {
	took := map[string]time.Duration{}
	var names []string
	for _, s := range c.stages {
		if took[s.name] += s.end.Sub(s.start); !slices.Contains(names, s.name) {
			names = append(names, s.name)
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(took[b], took[a]) })
	var all []string
	for _, name := range names {
		if took[name] >= brief {
			all = append(all, name+" "+lasted(took[name]))
		}
	}
	return strings.Join(all, ", ")
}
