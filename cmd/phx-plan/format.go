package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"thinkheads.ai/phx/cmd/internal/event"
)

var formats = map[string]func(*plan, *bufio.Writer) error{
	"jsonl":   (*plan).events,
	"table":   (*plan).table,
	"mermaid": (*plan).mermaid,
	"dot":     (*plan).dot,
}

func (p *plan) events(out *bufio.Writer) error {
	round := rand.Text()
	order := make([]int, len(p.order))
	for i, c := range p.order {
		order[i] = c.CTID
	}
	started, err := event.Append(nil, event.PlanStarted{
		Round: round, Action: p.name, DryRun: p.dryRun, Count: len(order), Order: order, Plan: p.file.Plan(p.domain),
	})
	if err != nil {
		return err
	}
	// Nothing is planned unless all of it can be.
	for _, c := range p.order {
		if 6*len(c.Raw)+10*(len(c.before)+len(c.external))+1000 > event.MaxLine {
			if _, err := c.event(nil); err != nil {
				return err
			}
		}
	}
	out.Write(started)
	var line []byte
	for _, c := range p.order {
		if line, err = c.event(line[:0]); err != nil {
			return err
		}
		out.Write(line)
	}
	done, err := event.Append(nil, event.PlanDone{Round: round, Count: len(order)})
	out.Write(done)
	return err
}

// event appends the container's ct.planned to line.
func (c *planned) event(line []byte) ([]byte, error) {
	return event.Append(line, event.ContainerPlanned{
		CTID: c.CTID, Name: c.Name, Action: c.action,
		Needs: notNil(c.before), External: notNil(c.external), Config: json.RawMessage(c.Raw),
	})
}

func notNil(ids []int) []int {
	if ids == nil {
		return []int{}
	}
	return ids
}

func (p *plan) table(out *bufio.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CTID\tNAME\tACTION\tADDRESS\tBOOT\tAFTER\tEXTERNAL")
	for _, c := range p.order {
		address := "dhcp"
		if c.Network.IP.IsValid() {
			address = c.Network.IP.String()
		}
		boot := "-"
		if c.BootOrder != nil {
			boot = strconv.Itoa(*c.BootOrder)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", c.CTID, c.Name, c.action, address, boot, ids(c.before), ids(c.external))
	}
	return w.Flush()
}

func ids(list []int) string {
	if len(list) == 0 {
		return "-"
	}
	// A table is as wide as its longest line, in every line.
	const shown = 16
	var s []string
	for _, id := range list[:min(len(list), shown)] {
		s = append(s, strconv.Itoa(id))
	}
	if n := len(list) - shown; n > 0 {
		s = append(s, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(s, ",")
}

// edges calls f for each pair of planned containers of which one comes before
// the other, and for each external need.
func (p *plan) edges(f func(from, to int, clone, external bool)) {
	for _, c := range p.order {
		for _, id := range c.before {
			f(id, c.CTID, id == c.CloneFrom || p.byID[id].CloneFrom == c.CTID, false)
		}
		for _, id := range c.external {
			f(id, c.CTID, false, true)
		}
	}
}

// externals returns the external ids, each once and in ascending order.
func (p *plan) externals() []int {
	var all []int
	for _, c := range p.order {
		all = append(all, c.external...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (p *plan) mermaid(out *bufio.Writer) error {
	out.WriteString("flowchart TD\n")
	for _, c := range p.order {
		fmt.Fprintf(out, "    ct%d[\"%d %s\"]\n", c.CTID, c.CTID, c.Name)
	}
	for _, id := range p.externals() {
		fmt.Fprintf(out, "    ct%d([\"%d, external\"])\n", id, id)
	}
	p.edges(func(from, to int, clone, external bool) {
		arrow := "-->"
		switch {
		case clone:
			arrow = "-->|clone|"
		case external:
			arrow = "-.->"
		}
		fmt.Fprintf(out, "    ct%d %s ct%d\n", from, arrow, to)
	})
	return nil
}

func (p *plan) dot(out *bufio.Writer) error {
	out.WriteString("digraph phx {\n\tnode [shape=box];\n")
	for _, c := range p.order {
		fmt.Fprintf(out, "\t%d [label=\"%d %s\"];\n", c.CTID, c.CTID, c.Name)
	}
	for _, id := range p.externals() {
		fmt.Fprintf(out, "\t%d [label=\"%d, external\", shape=ellipse];\n", id, id)
	}
	p.edges(func(from, to int, clone, external bool) {
		attr := ""
		switch {
		case clone:
			attr = " [label=clone]"
		case external:
			attr = " [style=dashed]"
		}
		fmt.Fprintf(out, "\t%d -> %d%s;\n", from, to, attr)
	})
	out.WriteString("}\n")
	return nil
}
