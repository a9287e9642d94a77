package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/tidwall/gjson"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
)

var formats = map[string]func(*plan, *bytes.Buffer) error{
	"jsonl":   (*plan).events,
	"table":   (*plan).table,
	"mermaid": (*plan).mermaid,
	"dot":     (*plan).dot,
}

type proxy struct {
	CTID int    `json:"ctid"`
	IP   string `json:"ip"`
}

// proxy returns the container that is the proxy to the services, planned or
// not, or nil.
func (p *plan) proxy() *proxy {
	for id, c := range p.file.Containers {
		if c.ApplicationScript == config.ProxyScript && !c.Network.DHCP {
			return &proxy{id, c.Network.IP.Addr().String()}
		}
	}
	return nil
}

func (p *plan) events(out *bytes.Buffer) error {
	emit := func(name string, ctid int, fields any) error {
		line, err := event.Marshal(name, ctid, fields)
		out.Write(line)
		return err
	}
	round := rand.Text()
	order := make([]int, len(p.order))
	size := 0
	for i, c := range p.order {
		order[i] = c.CTID
		size += len(c.Raw) + 256
	}
	out.Grow(size)
	err := emit(event.PlanStarted, 0, struct {
		Round    string           `json:"round"`
		Config   string           `json:"config"`
		Action   string           `json:"action"`
		Count    int              `json:"count"`
		Order    []int            `json:"order"`
		Domain   string           `json:"domain"`
		Services []config.Service `json:"services"`
		Proxy    *proxy           `json:"proxy,omitempty"`
	}{round, p.file.Path, p.name, len(order), order, p.domain, p.file.Services(p.domain), p.proxy()})
	if err != nil {
		return err
	}
	for _, c := range p.order {
		line, err := event.Marshal("ct.planned", c.CTID, struct {
			Name     string `json:"name"`
			Action   string `json:"action"`
			Needs    []int  `json:"needs"`
			External []int  `json:"external"`
		}{c.Name, p.name, notNil(c.before), notNil(c.external)})
		if err != nil {
			return err
		}
		// The container's object has been checked; it only has to be on one line.
		line = append(line[:len(line)-len("}\n")], `,"config":`...)
		line = append(append(line, gjson.GetBytes(c.Raw, "@ugly").Raw...), "}\n"...)
		if len(line) > event.MaxLine {
			return fmt.Errorf("container %d: its event would be longer than %d bytes", c.CTID, event.MaxLine)
		}
		out.Write(line)
	}
	return emit(event.PlanDone, 0, struct {
		Round string `json:"round"`
		Count int    `json:"count"`
	}{round, len(order)})
}

func notNil(ids []int) []int {
	if ids == nil {
		return []int{}
	}
	return ids
}

func (p *plan) table(out *bytes.Buffer) error {
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
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", c.CTID, c.Name, p.name, address, boot, ids(c.before), ids(c.external))
	}
	return w.Flush()
}

func ids(list []int) string {
	if len(list) == 0 {
		return "-"
	}
	var s []string
	for _, id := range list {
		s = append(s, strconv.Itoa(id))
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

func (p *plan) mermaid(out *bytes.Buffer) error {
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

func (p *plan) dot(out *bytes.Buffer) error {
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
