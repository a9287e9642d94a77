package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxNames is how many containers are named where there is nothing to say of each.
const maxNames = 12

// maxChanges is how many changes of a container are named: the log has all. Of one
// that is new, all is changed: only how it was made is named.
const maxChanges = 20

// maxTable is how many containers of a run that is over have a line each.
const maxTable = 100

// maxError is how many lines of an error are shown.
const maxError = 40

// A summary says what has become of a run.
type summary struct {
	run  *run
	last *run // the one before, out of the log; nil where there is none
	now  time.Time
	out  *screen
}

func (s *summary) lines() []line {
	var all []line
	switch s.run.action() {
	case "status":
		all = s.statusLines()
	case "check":
	default:
		all = s.runLines()
	}
	if all != nil {
		all = append([]line{nil}, all...)
	}
	return append(all, nil, s.verdict())
}

// whole shows a run that is over.
func (s *summary) whole() []line {
	r := s.run
	var all []line
	if r.begin != nil {
		when := span{dim, r.start.Local().Format(", 2006-01-02 15:04:05")}
		all = append(all, append(title(r), when))
	}
	for _, e := range r.warnings {
		all = append(all, s.out.happened(r, e, false)...)
	}
	for _, e := range r.points {
		all = append(all, s.out.happened(r, e, false)...)
	}
	for _, c := range r.all() {
		for _, e := range c.results {
			if e.Event == "ct.preview" {
				all = append(all, s.out.happened(r, e, false)...)
			}
		}
	}
	if r.kind() == "run" && len(r.order) <= maxTable {
		all = append(all, s.out.table(r, r.all(), nil, time.Time{})...)
	}
	return append(all, s.lines()...)
}

// listing shows a run in one line.
func (s *summary) listing() line {
	round := "-"
	if s.run.begin != nil {
		round = fmt.Sprintf("%.8s", s.run.begin.Round) // --run takes the beginning
	}
	when := s.run.start.Local().Format("2006-01-02 15:04:05")
	return append(line{{plainText, round + "  " + when + "  "}}, s.verdict()...)
}

// runLines says what was done.
func (s *summary) runLines() []line {
	r := s.run
	var all []line
	add := func(head line, rows []line) {
		if len(rows) > 0 {
			all = append(append(all, head), rows...)
		}
	}
	var rows []line
	for _, c := range r.with(changed) {
		if !r.dryRun() {
			all, most := distinct(c.changes()), maxChanges
			if made := slices.IndexFunc(all, isMaking); made >= 0 {
				most = made + 1
			}
			if more := len(all) - most; more > 2 {
				all = append(all[:most], fmt.Sprintf("and %d more", more))
			}
			rows = append(rows, s.listed(c.label(), strings.Join(all, ", "))...)
		}
	}
	if r.dryRun() {
		all = append(all, s.names("Would change", yellow, r.with(changed))...)
	}
	add(line{{yellow, "Changed:"}}, rows)
	all = append(all, s.names("Unchanged", green, r.with(unchanged))...)

	rows = nil
	for _, c := range r.all() {
		first := "" // which the programs after it repeat
		for _, e := range c.results {
			if e.isFailure() && (first == "" || !strings.HasSuffix(e.Error, first)) {
				rows = append(rows, s.failure(c, e)...)
				first = cmp.Or(first, e.Error)
			}
		}
	}
	add(line{{red, "Failed:"}}, rows)

	rows = nil
	for _, c := range r.all() {
		for _, e := range c.results {
			if e.Event == "ct.skipped" {
				rows = append(rows, s.listed(c.label(), e.Reason)...)
			}
		}
	}
	add(line{{cyan, "Skipped:"}}, rows)

	rows = nil
	for _, c := range r.with(working) {
		rows = append(rows, text("  ", c.label(), ": ", c.working().name))
	}
	add(line{{red, "Not finished:"}}, rows)
	if !r.done {
		all = append(all, s.names("Nothing done", dim, r.with(waiting))...)
	}

	rows = nil
	for _, c := range r.all() {
		if e := c.last("ct.ready"); e != nil && len(e.Restart) > 0 {
			rows = append(rows, s.listed(c.label(), strings.Join(e.Restart, ", "))...)
		}
	}
	add(line{{yellow, "Restart required"}, {plainText, " (phoenix --restart):"}}, rows)

	var open []*container
	for _, c := range r.all() {
		if e := c.last("ct.ready"); e != nil && e.NotInForce {
			open = append(open, c)
		}
	}
	all = append(all, s.names("Firewall not in force", yellow, open)...)

	rows = nil
	for _, c := range r.all() {
		if e := c.last("ct.ready"); e != nil && len(e.Differs) > 0 {
			rows = append(rows, s.listed(c.label(), strings.Join(e.Differs, ", "))...)
		}
	}
	add(line{{yellow, "Templates that differ, and stay as they are:"}}, rows)

	rows = nil
	for _, c := range r.all() {
		for _, name := range []string{"nginx.ready", "traefik.ready"} {
			if e := c.last(name); e != nil {
				rows = append(rows, s.certificateSummary(c, e)...)
			}
		}
	}
	add(line{{bold, "Certificates:"}}, rows)
	return append(all, s.root()...)
}

// root says which root is trusted.
func (s *summary) root() []line {
	r := s.run
	e := r.exported
	if e == nil {
		return nil
	}
	about := line{{plainText, "  " + e.Subject}}
	if !e.NotAfter.IsZero() {
		if e.Subject != "" {
			about = append(about, span{plainText, ", "})
		}
		about = append(about, s.left(e.NotAfter, 30*24*time.Hour))
	}
	all := []line{{{bold, "Root of the CA:"}}}
	if e.Subject != "" || !e.NotAfter.IsZero() {
		all = append(all, about)
	}
	all = append(all, text("  SHA-256 ", e.SHA256))
	if e.FromHost {
		all = append(all, line{{yellow, "  as pinned on the host: the CA could not be asked"}})
	}
	if e.Also != "" {
		all = append(all, text("  SHA-256 ", e.Also, " as well"))
	}
	if rot := r.rotation; rot != nil {
		all = append(all, text("  rotation: the last step is ", rot.Step))
	}
	return all
}

// certificateSummary says how long the certificates of a service hold.
func (s *summary) certificateSummary(c *container, e *event) []line {
	var rows []line
	for _, cert := range e.Certificates {
		if cert.Error != "" {
			rows = append(rows, line{{plainText, "  " + c.label() + ": " + cert.Name + ": "}, {red, cert.Error}})
		}
	}
	if e.NotAfter.IsZero() {
		return rows
	}
	what := many(len(e.Names), "name")
	if len(e.Names) <= 2 {
		what = strings.Join(e.Names, ", ")
	}
	left := s.left(e.NotAfter, 2*time.Hour)
	shown := s.listed(c.label(), left.text+", "+what)
	if rest, ok := strings.CutPrefix(shown[0][1].text, c.label()+": "+left.text); ok {
		shown[0] = line{{plainText, "  " + c.label() + ": "}, left, {plainText, rest}}
	}
	return append(rows, shown...)
}

// left says how long something holds, in red where that is less than soon.
func (s *summary) left(until time.Time, soon time.Duration) span {
	look := green
	if until.Sub(s.now) < soon {
		look = red
	}
	return span{look, left(until, s.now)}
}

// failure returns what has failed and why. Hints stand last in an error, and are
// shown of any.
func (s *summary) failure(c *container, e *event) []line {
	what := strings.Trim(parts[writers[e.Event]]+" "+e.Stage, " ")
	rows := []line{{{plainText, "  "}, {bold, c.label()}, {plainText, ": " + what}}}
	for i, row := range abridged(strings.Split(strings.TrimRight(e.Error, "\n"), "\n")) {
		look := plainText
		if strings.HasPrefix(row, "hint: ") && i > 0 {
			look = bold
		}
		rows = append(rows, line{{plainText, "    "}, {look, row}})
	}
	return rows
}

// abridged returns the first and the last of many lines.
func abridged(rows []string) []string {
	if len(rows) <= maxError {
		return rows
	}
	gone := len(rows) - maxError
	return slices.Concat(rows[:maxError/2], []string{fmt.Sprintf("… %d lines …", gone)}, rows[maxError/2+gone:])
}

// listed returns a name, and what there is to say of it, in as many lines as it
// takes.
func (s *summary) listed(name, words string) []line {
	if words == "" {
		return []line{text("  ", name)}
	}
	return s.out.wrapped(text("  ", name, ": "), "    ", plainText, words)
}

// names says which containers there are of a kind, or how many.
func (s *summary) names(what string, look style, containers []*container) []line {
	if len(containers) == 0 {
		return nil
	}
	if len(containers) > maxNames {
		return []line{{{look, what + ":"}, {plainText, fmt.Sprintf(" %d containers", len(containers))}}}
	}
	labels := make([]string, len(containers))
	for i, c := range containers {
		labels[i] = c.label()
	}
	return s.out.wrapped(line{{look, what + ":"}, {plainText, " "}}, "  ", plainText, strings.Join(labels, ", "))
}

// verdict says in one line how the run has ended.
func (s *summary) verdict() line {
	r := s.run
	counted := counts(r)
	took := " after " + lasted(r.end.Sub(r.start))
	action := r.action()
	switch {
	case action == "":
		action = "run"
	case r.dryRun():
		action = "dry run of " + action
	}
	switch r.ending() {
	case stopped:
		by := fmt.Sprintf(" by signal %d: ", r.status-128)
		return line{{red, action + ": stopped"}, {plainText, took + by + counted}}
	case broken:
		how := ": failed"
		if action == "status" && r.done {
			how = ": broken"
		}
		l := line{{red, action + how}, {plainText, took + ": " + counted}}
		if !r.done {
			l = append(l, span{plainText, "; it has ended early"})
		}
		return l
	case different:
		what := ": something is to be changed: "
		if action == "status" {
			what = ": differs from the configuration: "
		}
		return line{{yellow, action}, {plainText, what + counted}}
	}
	if r.dryRun() {
		return line{{green, action}, {plainText, ": nothing is to be changed: " + counted}}
	}
	return line{{green, action + ": all well"}, {plainText, took + ": " + counted}}
}

// counts says of how many containers, or points of a check, there is what to say.
func counts(r *run) string {
	have := map[string]int{}
	var words []string
	switch r.action() {
	case "check":
		for _, p := range r.points {
			have[p.Result]++
		}
		words = []string{"failed", "warning", "left out", "ok"}
	case "status":
		for _, c := range r.containers {
			if e := c.last("ct.status"); c.outcome() == failed {
				have["broken"]++
			} else if e != nil {
				have[e.condition()]++
			}
		}
		words = []string{"broken", "missing", "not as configured", asConfigured}
	default:
		for _, c := range r.containers {
			have[c.outcome().String()]++
		}
		have["not finished"] = have[working.String()]
		have["not begun"] = have[waiting.String()]
		words = []string{"failed", "skipped", "not finished", "not begun", "changed", "unchanged"}
	}
	var all []string
	for _, word := range words {
		if have[word] > 0 {
			shown := fmt.Sprintf("%d %s", have[word], word)
			switch {
			case word == "warning":
				shown = many(have[word], word)
			case word == "changed" && r.dryRun():
				shown = fmt.Sprintf("%d would change", have[word])
			}
			all = append(all, shown)
		}
	}
	if len(all) == 0 {
		return "nothing to do"
	}
	return strings.Join(all, ", ")
}

// isMaking reports whether a change is that of a container that was not there.
func isMaking(change string) bool {
	return strings.HasPrefix(change, "created from ") || strings.HasPrefix(change, "cloned from ")
}

// distinct returns words, each once, in their order.
func distinct(words []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(words), func(w string) bool {
		was := seen[w]
		seen[w] = true
		return was
	})
}
