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

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
)

// formats write a plan, by the names that --format takes. What they return is
// wrong with the plan: errors of out stay in out.
var formats = map[string]func(*plan, *bufio.Writer) error{
	"jsonl":   (*plan).events,
	"table":   (*plan).table,
	"mermaid": mermaid.write,
	"dot":     dot.write,
	"hosts":   (*plan).hosts,
	"dnsmasq": (*plan).dnsmasq,
}

// events writes the plan as events. It writes none when one of them would be
// too long.
func (p *plan) events(out *bufio.Writer) error {
	round := rand.Text()
	order := make([]int, len(p.order))
	for i, c := range p.order {
		order[i] = c.CTID
	}
	started, err := event.Append(nil, event.PlanStarted{
		Round: round, Action: p.name, DryRun: p.dryRun, Count: len(order), Order: order, Plan: p.whole,
	})
	if err != nil {
		return err
	}
	// Only an event that may be too long is made twice: first to see that it is not.
	for _, c := range p.order {
		if 6*len(c.Raw)+10*(len(c.before)+len(c.external))+1000 > event.MaxLine {
			if _, err := c.event(nil); err != nil {
				return err
			}
		}
	}
	var line []byte
	for _, text := range p.warned {
		if line, err = event.Append(line[:0], event.Warning{Program: cmdline.Name(), Text: text}); err != nil {
			return err
		}
		out.Write(line)
	}
	out.Write(started)
	for _, c := range p.left {
		skipped := event.ContainerSkipped{CTID: c.CTID, Name: c.Name, Reason: c.why(false), Because: c.because}
		if line, err = event.Append(line[:0], skipped); err != nil {
			return err
		}
		out.Write(line)
	}
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

// notNil returns ids, and an empty list for nil: JSON has no null for them.
func notNil(ids []int) []int {
	if ids == nil {
		return []int{}
	}
	return ids
}

// table writes a line for each container, for people.
func (p *plan) table(out *bufio.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CTID\tNAME\tACTION\tADDRESS\tBOOT\tAFTER\tEXTERNAL")
	for _, c := range p.order {
		boot := "-"
		if c.BootOrder != nil {
			boot = strconv.Itoa(*c.BootOrder)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n",
			c.CTID, c.Name, c.action, addressing(c.Interfaces), boot, ids(c.before), ids(c.external))
	}
	return w.Flush()
}

// addressing joins how the interfaces get their addresses by commas, as in
// "10.0.0.10/24,fd00::10/64,dhcp": of many the first, as ids does.
func addressing(interfaces []config.Interface) string {
	var all []string
	for _, i := range interfaces {
		for _, a := range []config.Addressing{i.IPv4, i.IPv6} {
			if a.Prefix.IsValid() {
				all = append(all, a.Prefix.String())
			} else if a.Method != "" {
				all = append(all, a.Method)
			}
		}
	}
	return shorten(all, 4, ",")
}

// ids joins ids by commas, the first of many: the longest list makes every line
// of the table as wide as itself.
func ids(list []int) string {
	if len(list) == 0 {
		return "-"
	}
	return shorten(words(list), 16, ",")
}

// words returns ids as words.
func words(ids []int) []string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = strconv.Itoa(id)
	}
	return words
}

// shorten joins words, the first of many.
func shorten(words []string, shown int, separator string) string {
	if more := len(words) - shown; more > 1 {
		words = append(slices.Clone(words[:shown]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, separator)
}

// counted returns a number of things in words.
func counted(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// A graph is a syntax for graphs. Of the formats of nodes, argument 1 is the
// id and argument 2 the name; edges go from argument 1 to argument 2.
type graph struct {
	begin, end          string
	container, external string // nodes
	need, clone, guest  string // edges: to a dependent, to a clone, from an external guest
}

var mermaid = graph{
	begin:     "flowchart TD\n",
	container: "    ct%[1]d[\"%[1]d %[2]s\"]\n",
	external:  "    ct%[1]d([\"%[1]d, external\"])\n",
	need:      "    ct%d --> ct%d\n",
	clone:     "    ct%d -->|clone| ct%d\n",
	guest:     "    ct%d -.-> ct%d\n",
}

var dot = graph{
	begin:     "digraph phx {\n\tnode [shape=box];\n",
	container: "\t%[1]d [label=\"%[1]d %[2]s\"];\n",
	external:  "\t%[1]d [label=\"%[1]d, external\", shape=ellipse];\n",
	need:      "\t%d -> %d;\n",
	clone:     "\t%d -> %d [label=clone];\n",
	guest:     "\t%d -> %d [style=dashed];\n",
	end:       "}\n",
}

// write writes the planned containers and the external guests as nodes, and
// which has to be ready before which as edges.
func (g graph) write(p *plan, out *bufio.Writer) error {
	out.WriteString(g.begin)
	for _, c := range p.order {
		fmt.Fprintf(out, g.container, c.CTID, c.Name)
	}
	for _, id := range p.externals() {
		fmt.Fprintf(out, g.external, id)
	}
	for _, c := range p.order {
		for _, id := range c.before {
			edge := g.need
			if id == c.CloneFrom || p.byID[id].CloneFrom == c.CTID {
				edge = g.clone
			}
			fmt.Fprintf(out, edge, id, c.CTID)
		}
		for _, id := range c.external {
			fmt.Fprintf(out, g.guest, id, c.CTID)
		}
	}
	out.WriteString(g.end)
	return nil
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
