package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// A graph is a drawing of what needs what: containers from left to right, each
// to the right of all that it needs. Lengths are in pixels.
//
// Containers that need the same and that the same containers need stand
// together in one box, because two hundred clones of one template are one
// thing to look at, not two hundred arrows.
type graph struct {
	Width, Height float64
	Boxes         []*box
	Edges         []edge

	ViewWidth, ViewHeight float64 // with a margin for thick borders
	HasTrust, HasBack     bool    // there are edges of that kind
}

// A box is a rectangle with containers in it.
type box struct {
	X, Y, W, H float64
	Nodes      []node

	ids    []int
	layer  int
	dummy  bool // a bend of an edge that passes a layer
	before []*box
	after  []*box
}

// A node is a container in a graph.
type node struct {
	X, Y  float64
	ID    int
	Label string

	Title, Tone string
	Critical    bool
}

// An edge goes from what is needed to what needs it.
type edge struct {
	D     string // of the SVG path
	Trust bool   // it waits for the CA's fingerprint only
	Back  bool   // it closes a circle, which no plan of phx has
	Title string
}

const (
	nodeWidth, nodeHeight = 168, 24
	nodeGap               = 4
	boxGap                = 18
	layerGap              = 72
	boxPadding            = 6
	labelRunes            = 22
)

// A link says that a container waits for another one.
type link struct {
	from, to int
	trust    bool
}

// More than this is no picture any more, and takes long to lay out.
const (
	maxLinks = 4000
	maxBends = 20000
)

// newGraph lays out the containers ids, which are in the order of the plan.
// Links to others are left out, and so are those that follow from others. It
// returns nil for what is too much to draw.
func newGraph(ids []int, links []link) *graph {
	before, after := map[int][]link{}, map[int][]link{}
	links = inGraph(ids, links)
	if len(links) > maxLinks {
		return nil
	}
	for _, l := range links {
		before[l.to] = append(before[l.to], l)
	}
	layers, back := layersOf(ids, before)
	before = withoutImplied(links, layers, back)
	for _, to := range ids {
		for _, l := range before[to] {
			after[l.from] = append(after[l.from], l)
		}
	}

	g := &graph{}
	at := map[int]*box{}
	alike := map[string]*box{}
	for _, id := range ids {
		key := fmt.Sprint(layers[id], others(before[id], id), others(after[id], id))
		if len(before[id])+len(after[id]) == 0 {
			key = "alone"
		}
		b := alike[key]
		if b == nil {
			b = &box{layer: layers[id]}
			alike[key] = b
			g.Boxes = append(g.Boxes, b)
		}
		b.ids = append(b.ids, id)
		at[id] = b
	}

	// The ways of the edges, with a bend in each layer that they pass.
	type way struct {
		edge
		stops []*box
	}
	var ways []way
	drawn := map[string]bool{}
	bends := 0
	for _, id := range ids {
		for _, l := range before[id] {
			from, to := at[l.from], at[l.to]
			key := fmt.Sprintf("%p %p %t", from, to, l.trust)
			if drawn[key] || from == to {
				continue
			}
			drawn[key] = true
			w := way{edge{Trust: l.trust, Back: back[l], Title: "needs"}, []*box{from}}
			if l.trust {
				w.Title = "waits for the fingerprint of"
			}
			w.Title = fmt.Sprintf("%s %s %s", listOf(to.ids), w.Title, listOf(from.ids))
			if l.trust {
				w.Title += "'s root"
			}
			if !w.Back {
				for layer := from.layer + 1; layer < to.layer; layer++ {
					if bends++; bends > maxBends {
						return nil
					}
					d := &box{layer: layer, dummy: true, H: 4}
					g.Boxes = append(g.Boxes, d)
					w.stops = append(w.stops, d)
				}
			}
			w.stops = append(w.stops, to)
			for i := 1; i < len(w.stops) && !w.Back; i++ {
				w.stops[i].before = append(w.stops[i].before, w.stops[i-1])
				w.stops[i-1].after = append(w.stops[i-1].after, w.stops[i])
			}
			ways = append(ways, w)
		}
	}

	g.place()
	for _, w := range ways {
		w.D = path(w.stops, w.Back)
		g.Edges = append(g.Edges, w.edge)
		g.HasTrust, g.HasBack = g.HasTrust || w.Trust, g.HasBack || w.Back
	}
	g.ViewWidth, g.ViewHeight = g.Width+8, g.Height+8
	g.Width, g.Height = g.ViewWidth, g.ViewHeight
	g.Boxes = slices.DeleteFunc(g.Boxes, func(b *box) bool { return b.dummy })
	return g
}

// layersOf returns the layer of each container: one more than that of the last
// that it waits for. Links that close a circle do not count; they are returned.
func layersOf(ids []int, before map[int][]link) (layers map[int]int, back map[link]bool) {
	const under = -1 // its own links are being followed
	layers, back = map[int]int{}, map[link]bool{}
	var stack []int
	for _, root := range ids {
		stack = append(stack[:0], root)
		for len(stack) > 0 {
			id := stack[len(stack)-1]
			if layer, ok := layers[id]; ok && layer != under {
				stack = stack[:len(stack)-1]
				continue
			}
			layers[id] = under
			layer, ready := 0, true
			for _, l := range before[id] {
				switch of, ok := layers[l.from]; {
				case back[l]:
				case !ok:
					stack = append(stack, l.from)
					ready = false
				case of == under:
					back[l] = true
				default:
					layer = max(layer, of+1)
				}
				if !ready {
					break
				}
			}
			if ready {
				layers[id] = layer
				stack = stack[:len(stack)-1]
			}
		}
	}
	return layers, back
}

// place gives each box its place.
func (g *graph) place() {
	var layers [][]*box
	for _, b := range g.Boxes {
		for len(layers) <= b.layer {
			layers = append(layers, nil)
		}
		layers[b.layer] = append(layers[b.layer], b)
		if b.dummy {
			continue
		}
		columns := 1
		for columns < 4 && len(b.ids) > 8*columns*columns {
			columns++
		}
		rows := (len(b.ids) + columns - 1) / columns
		padding := float64(boxPadding)
		if len(b.ids) == 1 {
			padding = 0
		}
		for i, id := range b.ids {
			b.Nodes = append(b.Nodes, node{
				X:  padding + float64(i/rows)*(nodeWidth+nodeGap),
				Y:  padding + float64(i%rows)*(nodeHeight+nodeGap),
				ID: id,
			})
		}
		b.W = 2*padding + float64(columns)*(nodeWidth+nodeGap) - nodeGap
		b.H = 2*padding + float64(rows)*(nodeHeight+nodeGap) - nodeGap
	}

	// Each box as near as may be to the middle of what it is linked with, to the left and to the right in turn: that
	// leaves few crossings, and long straight ways.
	for sweep := range 10 {
		for i := range layers {
			layer, linked := layers[i], func(b *box) []*box { return b.before }
			if sweep%2 == 1 {
				layer, linked = layers[len(layers)-1-i], func(b *box) []*box { return b.after }
			}
			middle := map[*box]float64{}
			for at, b := range layer {
				others := linked(b)
				switch {
				case len(others) > 0:
					for _, other := range others {
						middle[b] += (other.Y + other.H/2) / float64(len(others))
					}
				case sweep == 0:
					middle[b] = float64(at * (nodeHeight + boxGap))
				default:
					middle[b] = b.Y + b.H/2
				}
			}
			slices.SortStableFunc(layer, func(a, b *box) int { return cmp.Compare(middle[a], middle[b]) })
			pushed, free := 0.0, math.Inf(-1)
			for _, b := range layer {
				want := middle[b] - b.H/2
				b.Y = max(want, free)
				free = b.Y + b.H + boxGap
				pushed += (b.Y - want) / float64(len(layer))
			}
			for _, b := range layer {
				b.Y -= pushed
			}
		}
	}

	x, top, bottom := 0.0, math.Inf(1), math.Inf(-1)
	for _, layer := range layers {
		wide := 0.0
		for _, b := range layer {
			wide = max(wide, b.W)
			top, bottom = min(top, b.Y), max(bottom, b.Y+b.H)
		}
		for _, b := range layer {
			b.X = x
			if b.dummy {
				b.W = wide
			}
		}
		x += wide + layerGap
	}
	for _, b := range g.Boxes {
		b.Y -= top
	}
	g.Width, g.Height = x-layerGap, bottom-top
}

// path returns the SVG path through boxes, from the right side of the first to
// the left side of the last.
func path(stops []*box, back bool) string {
	var d strings.Builder
	first, last := stops[0], stops[len(stops)-1]
	fmt.Fprintf(&d, "M%.1f %.1f", first.X+first.W, first.Y+first.H/2)
	bend := func(x1, y1, x2, y2, by float64) {
		fmt.Fprintf(&d, "C%.1f %.1f %.1f %.1f %.1f %.1f", x1+by, y1, x2-by, y2, x2, y2)
	}
	if back {
		bend(first.X+first.W, first.Y+first.H/2, last.X, last.Y+last.H/2, layerGap)
		return d.String()
	}
	for i, b := range stops[1:] {
		from := stops[i]
		bend(from.X+from.W, from.Y+from.H/2, b.X, b.Y+b.H/2, layerGap/2)
		if b.dummy {
			fmt.Fprintf(&d, "H%.1f", b.X+b.W)
		}
	}
	return d.String()
}

// inGraph returns the links between different containers of ids, each once.
func inGraph(ids []int, links []link) []link {
	known := map[int]bool{}
	for _, id := range ids {
		known[id] = true
	}
	seen := map[[2]int]bool{}
	var in []link
	for _, l := range links {
		ends := [2]int{l.from, l.to}
		if known[l.from] && known[l.to] && l.from != l.to && !seen[ends] {
			seen[ends] = true
			in = append(in, l)
		}
	}
	return in
}

// withoutImplied returns the links by where they go to, without those that
// follow from others: what needs a clone of a template also needs the template.
func withoutImplied(links []link, layers map[int]int, back map[link]bool) map[int][]link {
	forward := map[int][]link{}
	for _, l := range links {
		if !back[l] {
			forward[l.to] = append(forward[l.to], l)
		}
	}
	// reaches reports whether there is another way from from to to. One that is
	// needed is not so because of a fingerprint.
	reaches := func(from, to int, trust bool) bool {
		seen := map[int]bool{}
		var waits []int
		for _, l := range forward[to] {
			if l.from != from && (trust || !l.trust) {
				waits = append(waits, l.from)
			}
		}
		for len(waits) > 0 {
			id := waits[len(waits)-1]
			waits = waits[:len(waits)-1]
			if id == from {
				return true
			}
			if seen[id] || layers[id] <= layers[from] {
				continue
			}
			seen[id] = true
			for _, l := range forward[id] {
				if trust || !l.trust {
					waits = append(waits, l.from)
				}
			}
		}
		return false
	}
	kept := map[int][]link{}
	for _, l := range links {
		if back[l] || !reaches(l.from, l.to, l.trust) {
			kept[l.to] = append(kept[l.to], l)
		}
	}
	return kept
}

// others returns the other ends of the links of a container, in order.
func others(links []link, id int) []string {
	var ends []string
	for _, l := range links {
		ends = append(ends, fmt.Sprint(l.from+l.to-id, l.trust))
	}
	slices.Sort(ends)
	return ends
}

// listOf returns ids for people, of many only the first ones.
func listOf(ids []int) string {
	const most = 8
	var words []string
	for i, id := range ids {
		if i == most {
			words = append(words, fmt.Sprintf("%d more", len(ids)-most))
			break
		}
		words = append(words, fmt.Sprint(id))
	}
	return strings.Join(words, ", ")
}
