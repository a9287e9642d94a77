package main

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
)

// An action is what is to be done with the containers, and how far they depend
// on each other in this.
type action struct {
	needs     string // the action for what the named containers need; "" leaves it out of the plan
	clones    bool   // a clone needs its source, not only its dependencies
	trust     bool   // the gateway and the proxy need the CA's container in the plan
	reverse   bool   // dependents come first
	named     bool   // it wants each container named
	namedOnly bool   // no containers but the named ones, and none that another one needs
	repeated  bool   // it may be done again and again, by --watch
}

var actions = map[string]action{
	"create":  {needs: "create", clones: true, trust: true, repeated: true},
	"start":   {needs: "start"},
	"stop":    {reverse: true},
	"restart": {needs: "start"},
	"status":  {clones: true, repeated: true},
	"check":   {needs: "check", clones: true, trust: true},
	"delete":  {clones: true, reverse: true, named: true, namedOnly: true},

	"recreate": {needs: "create", clones: true, trust: true, named: true},
}

// A plan is an action on containers of a file, in order.
type plan struct {
	file   *config.File
	whole  config.Plan // what it says of all containers of the file
	name   string
	action action
	dryRun bool
	answer string // where the services' names lead: gateway or proxy
	named  []int  // the containers that are asked for
	warned warnings

	order []*planned
	byID  map[int]*planned // those of order
	left  []leftOut        // what would be in order but for mistakes, by id
}

// A planned container is one with its place in the plan.
type planned struct {
	*config.Container
	action   string
	before   []int // ids of the plan that come first
	external []int // ids that it needs and the file does not have

	waits      int // in sort: how many of before are not in the order yet
	dependents []*planned
}

// needs returns what the action needs of c's needs.
func (p *plan) needs(c *config.Container) (needs, external []int) {
	needs, external = p.file.Needs(c)
	if p.starts() { // which a template never does
		needs = slices.DeleteFunc(needs, func(id int) bool { return p.file.Container(id).IsTemplate })
	}
	if !p.action.clones && c.CloneFrom != 0 && !slices.Contains(c.Dependencies, c.CloneFrom) {
		needs = slices.DeleteFunc(needs, func(id int) bool { return id == c.CloneFrom })
	}
	return needs, external
}

// starts reports whether the action starts containers that are there.
func (p *plan) starts() bool { return p.name == "start" || p.name == "restart" }

// make chooses the containers and puts them in order. Without any named, all
// are chosen.
func (p *plan) make(named []int) error {
	if len(named) == 0 {
		named = p.file.IDs()
		if p.starts() {
			// What is only cloned from is started when it is named.
			named = slices.DeleteFunc(named, func(id int) bool { return p.file.Container(id).IsOnlyCloned() })
		}
	}
	p.named = named
	left := p.leftOut()
	p.byID = make(map[int]*planned, len(named))
	p.order = make([]*planned, 0, len(named))
	var unknown []string
	var needed []int
	chosen := make(map[int]bool, len(named))
	choose := func(id int, action string) {
		c := p.file.Container(id)
		if c == nil {
			unknown = append(unknown, p.unknown(id))
			return
		}
		if chosen[id] {
			return
		}
		chosen[id] = true
		var requires []int
		if p.action.needs != "" {
			requires = p.requires(c)
		}
		if out, wrong := left[id]; wrong {
			p.left = append(p.left, out)
			// What else it needs, nothing may need now.
			requires = slices.DeleteFunc(requires, func(id int) bool { _, wrong := left[id]; return !wrong })
			needed = append(needed, requires...)
			return
		}
		needed = append(needed, requires...)
		needs, external := p.needs(c)
		p.byID[id] = &planned{Container: c, action: action, before: needs, external: external}
		p.order = append(p.order, p.byID[id])
	}
	for _, id := range named {
		choose(id, p.name)
	}
	for _, id := range named {
		if c := p.file.Container(id); c != nil && c.IsTemplate && p.starts() {
			return fmt.Errorf("%s: %d is a template (is_template), which never runs: leave it out", p.name, id)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		names, what := strings.Join(slices.Compact(unknown), ", "), ""
		if strings.Contains(names, virtualMachine) {
			what = "; virtual machines are for qm, and for vm-manager.sh of the scripts before phx"
		}
		return fmt.Errorf("%s: not in %s, and phx manages only the containers listed there%s", names, p.file.Path, what)
	}
	for len(needed) > 0 {
		id := needed[len(needed)-1]
		needed = needed[:len(needed)-1]
		choose(id, p.action.needs)
	}
	slices.SortFunc(p.left, func(a, b leftOut) int { return cmp.Compare(a.CTID, b.CTID) })
	if p.action.namedOnly {
		if err := p.inUse(); err != nil {
			return err
		}
	}
	p.sort()
	return nil
}

const virtualMachine = " (the virtual machine"

// unknown names a guest that the file does not have.
func (p *plan) unknown(id int) string {
	for _, vm := range p.file.VMs {
		if vm.VMID == id {
			return strings.TrimSpace(fmt.Sprintf("%d%s %s", id, virtualMachine, vm.Name)) + ")"
		}
	}
	return strconv.Itoa(id)
}

// with returns the ids of the containers with one of these application scripts.
func (p *plan) with(scripts ...string) []int {
	var ids []int
	for _, id := range p.file.IDs() {
		if slices.Contains(scripts, p.file.Container(id).ApplicationScript) {
			ids = append(ids, id)
		}
	}
	return ids
}

// inUse returns an error when a container of the file that is not planned
// needs one that is.
func (p *plan) inUse() error {
	var uses []string
	for _, ctid := range p.file.IDs() {
		c := p.file.Container(ctid)
		if p.byID[ctid] != nil {
			continue
		}
		if w := p.file.Wrong[ctid]; w != nil && w.NeedsUnknown {
			return fmt.Errorf("%s: what %d needs cannot be read: correct that first", p.name, ctid)
		}
		needs, _ := p.needs(c)
		for _, id := range needs {
			if p.byID[id] != nil {
				uses = append(uses, fmt.Sprintf("%d needs %d", c.CTID, id))
			}
		}
	}
	if len(uses) == 0 {
		return nil
	}
	slices.Sort(uses)
	return fmt.Errorf("%s: %s; name them too, or leave them alone with recreate", p.name, shorten(uses, 16, ", "))
}

// sort orders the containers topologically; boot_order, then CTID, break ties.
// The file has no cycles, so all find their place.
func (p *plan) sort() {
	var free queue
	for _, c := range p.order {
		needs := c.before
		c.before = needs[:0]
		for _, id := range needs {
			if need := p.byID[id]; need != nil {
				need.dependents = append(need.dependents, c)
				c.before = append(c.before, id)
			}
		}
		if c.waits = len(c.before); c.waits == 0 {
			free = append(free, newQueued(c))
		}
	}
	heap.Init(&free)
	p.order = p.order[:0]
	for len(free) > 0 {
		c := heap.Pop(&free).(queued).planned
		p.order = append(p.order, c)
		for _, d := range c.dependents {
			if d.waits--; d.waits == 0 {
				heap.Push(&free, newQueued(d))
			}
		}
	}
	if p.action.reverse {
		slices.Reverse(p.order)
		for _, c := range p.order {
			c.before = nil
			for _, d := range c.dependents {
				c.before = append(c.before, d.CTID)
			}
			slices.Sort(c.before)
		}
	}
}

// A queue is a heap of containers by boot_order, those without one last, then
// by CTID. The sort keys are inlined to avoid chasing pointers.
type queue []queued

type queued struct {
	boot, ctid int
	*planned
}

func newQueued(c *planned) queued {
	boot := math.MaxInt
	if c.BootOrder != nil {
		boot = *c.BootOrder
	}
	return queued{boot, c.CTID, c}
}

func (q queue) Len() int      { return len(q) }
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q queue) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].boot, q[j].boot), cmp.Compare(q[i].ctid, q[j].ctid)) < 0
}
func (q *queue) Push(x any) { *q = append(*q, x.(queued)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}
