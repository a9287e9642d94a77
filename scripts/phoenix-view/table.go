package main

import (
	"slices"
	"strings"
	"time"
)

// point returns what one look of a check has found: in a line where all is
// well.
func (s *screen) point(r *run, e *event) []line {
	about := e.Point
	if e.CTID != 0 {
		about = r.container(e.CTID).label() + ": " + e.Point
	}
	look := map[string]style{"ok": green, "warning": yellow, "failed": red, "left out": dim}[e.Result]
	head := line{{look, pad(e.Result, len("left out"))}, {plainText, "  "}}
	const indent = "          "
	if e.Result == "ok" {
		return s.wrapped(append(head, span{plainText, about + "  "}), indent, dim, e.Text)
	}
	all := s.wrapped(append(head, span{bold, about}, span{plainText, ": "}), indent, plainText, e.Text)
	// It may be a command, which is to be copied.
	before := line{{plainText, indent}, {bold, "→ "}}
	for _, row := range abridged(strings.Split(strings.TrimRight(e.Remedy, "\n"), "\n")) {
		if e.Remedy != "" {
			all = append(all, append(before, span{plainText, row}))
			before = text(indent, "  ")
		}
	}
	return all
}

// asConfigured is the condition of a container that no run would change.
const asConfigured = "as configured"

// condition says in a word how a ct.status finds its container.
func (e *event) condition() string {
	switch {
	case e.State == "missing":
		return e.State
	case len(e.Drift) > 0 || len(e.Restart) > 0 || e.NotInForce:
		return "not as configured"
	}
	return asConfigured
}

// statusLines shows how all is.
func (s *summary) statusLines() []line {
	r := s.run
	table := [][]span{{{bold, "CTID"}, {bold, "NAME"}, {bold, "STATE"}, {bold, "IP"}, {bold, "SNAPSHOT"}}}
	var below [][]line // of each row
	below = append(below, nil)
	for _, c := range r.all() {
		e := c.last("ct.status")
		if e == nil {
			continue
		}
		look := green
		switch {
		case e.State == "missing":
			look = red
		case e.State != "running" && !e.Template:
			look = yellow
		}
		state := e.State
		if e.Template {
			state = "template"
		}
		snapshot := ""
		if len(e.Snapshots) > 0 {
			snapshot = e.Snapshots[len(e.Snapshots)-1]
		}
		ip := e.IP
		if n := len(e.IPs); n > 1 {
			ip = e.IPs[0] + ", …"
		}
		id, _, _ := strings.Cut(c.label(), " ")
		table = append(table, []span{
			{plainText, id}, {plainText, c.name}, {look, state}, {plainText, ip}, {plainText, snapshot},
		})
		below = append(below, s.statusNotes(e))
	}
	var all []line
	if len(table) > 1 {
		for i, row := range s.aligned(table) {
			all = append(append(all, row), below[i]...)
		}
	}
	for _, c := range r.all() {
		for _, e := range c.results {
			switch e.Event {
			case "nginx.status":
				all = append(append(all, nil), s.served("Gateway", c, e)...)
			case "traefik.status":
				all = append(append(all, nil), s.served("Proxy", c, e)...)
			case "ca.status": // stands below
			default:
				if e.isFailure() {
					all = append(append(all, nil), s.failure(c, e)...)
				}
			}
		}
	}
	if e := r.caStatus; e != nil {
		all = append(append(all, nil), s.trusted(e)...)
	}
	if l := s.last; l != nil {
		when := ": " + l.start.Local().Format("2006-01-02 15:04") + ", " + roughly(s.now.Sub(l.start)) + " ago: "
		before := summary{run: l, now: s.now, out: s.out}
		all = append(all, nil, append(line{{bold, "Last run"}, {plainText, when}}, before.verdict()...))
	}
	return all
}

// statusNotes says what there is beside the state of a container.
func (s *summary) statusNotes(e *event) []line {
	var all []line
	add := func(what string, look style, words []string) {
		if len(words) > 0 {
			head := line{{plainText, "      "}, {look, what}, {plainText, ": "}}
			all = append(all, s.out.wrapped(head, "        ", plainText, strings.Join(words, ", "))...)
		}
	}
	some := func(word string) []string {
		if word == "" {
			return nil
		}
		return []string{word}
	}
	add("locked", yellow, some(e.Lock))
	add("HA", dim, some(e.HA))
	add("a run would change", yellow, e.Drift)
	add("restart required", yellow, e.Restart)
	if e.NotInForce {
		all = append(all, line{{plainText, "      "}, {yellow, "firewall not in force"}})
	}
	add("the template differs, and stays", yellow, e.Differs)
	if n := len(e.Snapshots); n > 1 {
		add("snapshots", dim, e.Snapshots)
	}
	var applied []string
	for name := range e.Applied {
		if !strings.HasPrefix(name, "+") {
			applied = append(applied, name)
		}
	}
	slices.Sort(applied)
	add("applied", dim, applied)
	return all
}

// served shows what the gateway or the proxy answers.
func (s *summary) served(what string, c *container, e *event) []line {
	head := line{{bold, what}, {plainText, " " + c.label()}}
	if e.Address != "" {
		head = append(head, span{plainText, " at " + e.Address})
	}
	all := append([]line{head}, s.broken(e)...)
	if e.Error != "" {
		return all
	}
	column := 0
	for _, cert := range e.Certificates {
		column = max(column, width(escape(cert.Name)))
	}
	for _, cert := range e.Certificates {
		row := text("  ", pad(cert.Name, column), "  ")
		if cert.Error != "" {
			all = append(all, s.out.wrapped(row, "    ", red, cert.Error)...)
			continue
		}
		all = append(all, append(row, s.left(cert.NotAfter, 2*time.Hour), span{plainText, "  " + cert.Issuer}))
	}
	return all
}

// trusted shows the root that is trusted.
func (s *summary) trusted(e *event) []line {
	head := line{{bold, "CA"}, {plainText, " " + s.run.container(e.CTID).label() + " at " + e.CAURL}}
	if !e.NotAfter.IsZero() {
		head = append(head, span{plainText, ": " + e.Subject + ", "}, s.left(e.NotAfter, 30*24*time.Hour))
	}
	all := []line{head}
	for _, root := range []struct{ where, sum string }{
		{"the file", e.SHA256}, {"the file, too", e.Also}, {"pinned", e.Pinned}, {"the CA's", e.Serves},
	} {
		if root.sum != "" {
			all = append(all, text("  ", root.sum, " ", root.where))
		}
	}
	return append(all, s.broken(e)...)
}

// broken says what is wrong with what an event of the action status tells of.
func (s *summary) broken(e *event) []line {
	word := span{red, "broken"}
	switch {
	case e.Error == "":
		return nil
	case e.OutOfReach:
		word = span{yellow, "out of reach"}
	}
	return s.out.wrapped(line{{plainText, "  "}, word, {plainText, ": "}}, "    ", plainText, e.Error)
}

// aligned returns the rows of a table as lines. Where the screen is too narrow for
// its columns, the last are left out.
func (s *summary) aligned(table [][]span) []line {
	var widths []int
	for _, row := range table {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(escape(cell.text)))
		}
	}
	total := 0
	for i, w := range widths {
		if total += w; s.out.columns > 0 && total > s.out.columns && i > 1 {
			widths = widths[:i]
			break
		}
		total += 2
	}
	rows := make([]line, len(table))
	for i, row := range table {
		for j, cell := range row[:min(len(row), len(widths))] {
			if j < len(widths)-1 {
				cell.text = pad(cell.text, widths[j]+2)
			}
			rows[i] = append(rows[i], cell)
		}
	}
	return rows
}
