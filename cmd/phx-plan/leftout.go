package main

import (
	"fmt"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
)

// A leftOut is a container that cannot be planned for mistakes in the file.
type leftOut struct {
	*config.Container
	needs   int    // what it needs and is left out; 0 when it is wrong itself
	because int    // what is wrong, down that way; 0 when it is wrong itself
	mistake string // with its place
	served  bool   // it is right, and what is served beside the containers is not
}

// why returns what keeps the container from being planned; short leaves out the
// mistake, for where it has been shown.
func (l leftOut) why(short bool) string {
	switch {
	case l.served && short:
		return "what else is served has a mistake"
	case l.because == 0 && short:
		return "it has a mistake"
	case l.because == 0:
		return l.mistake
	}
	why := fmt.Sprintf("it needs container %d", l.needs)
	if l.needs != l.because {
		why += fmt.Sprintf(", and that %d", l.because)
	}
	if short {
		return why
	}
	return fmt.Sprintf("%s: %s", why, l.mistake)
}

// leftOut returns the containers that cannot be planned, by id: those that are
// wrong, and those that require one of these.
func (p *plan) leftOut() map[int]leftOut {
	if len(p.file.Wrong) == 0 && p.file.ServedWrong == "" {
		return nil
	}
	all := map[int]leftOut{}
	var found []int
	add := func(out leftOut) {
		if _, again := all[out.CTID]; !again {
			all[out.CTID] = out
			found = append(found, out.CTID)
		}
	}
	dependents := map[int][]*config.Container{}
	for _, id := range p.file.IDs() {
		c := p.file.Container(id)
		if w := p.file.Wrong[id]; w != nil {
			add(leftOut{Container: c, mistake: fmt.Sprintf("%s:%v", p.file.Path, w.Mistake)})
		}
		if p.action.trust && c.HasPlace() && p.file.ServedWrong != "" {
			add(leftOut{Container: c, mistake: p.file.ServedWrong, served: true})
		}
		if p.action.needs != "" {
			for _, need := range p.requires(c) {
				dependents[need] = append(dependents[need], c)
			}
		}
	}
	for len(found) > 0 {
		id := found[0]
		found = found[1:]
		root := all[id]
		if root.because != 0 {
			root = all[root.because]
		}
		for _, c := range dependents[id] {
			add(leftOut{Container: c, needs: id, because: root.CTID, mistake: root.mistake})
		}
	}
	return all
}

// requires returns the containers of the file without which c cannot be planned:
// what it needs; for the gateway and the proxy the CA, whose root both trust; and
// for each of these three what could not be read of what it has to know of others.
func (p *plan) requires(c *config.Container) []int {
	needs, _ := p.needs(c)
	if !p.action.trust {
		return needs
	}
	if !c.HasPlace() {
		return needs
	}
	for id, w := range p.file.Wrong {
		if id != c.CTID && (w.PlaceUnknown || w.ServiceUnknown) {
			needs = append(needs, id)
		}
	}
	switch {
	case c.ApplicationScript != config.CAScript:
		needs = append(needs, p.with(config.CAScript)...)
	case p.name == "recreate" && slices.Contains(p.named, c.CTID): // a new CA, which these have to take
		needs = append(needs, p.with(config.GatewayScript, config.ProxyScript)...)
	}
	slices.Sort(needs)
	return slices.Compact(needs)
}

// refuse reports all that is wrong with the files, for which nothing is planned.
// left are the containers that were asked for, and right is how many could be
// planned without what is wrong, where that is to be said.
func refuse(wrong []*config.Error, left []leftOut, right int) error {
	for _, w := range wrong {
		cmdline.Say(w.Error())
	}
	for _, out := range left {
		if out.because != 0 {
			cmdline.Logf("%d %s: %s", out.CTID, out.Name, out.why(true))
		}
	}
	for _, w := range wrong {
		cmdline.Logf("%s: %s, so nothing was planned", w.File, mistakes(w))
	}
	if right > 0 {
		cmdline.Logf("--keep-going leaves out what is wrong, and what needs it, and does the rest: %s",
			counted(right, "container"))
	}
	return cmdline.Status(2)
}

// sayLeftOut reports what is wrong with the files, and which containers are left
// out of the plan for it.
func (p *plan) sayLeftOut(wrong []*config.Error, keepGoing bool) {
	for _, w := range wrong {
		if keepGoing {
			cmdline.Say(w.Error())
			continue
		}
		p.warned.add(w.File, w.Mistakes, w.More)
		cmdline.Logf("%s: %s, not in what was asked for", w.File, mistakes(w))
	}
	if len(wrong) == 0 || !keepGoing {
		return
	}
	for _, out := range p.left {
		cmdline.Logf("%s: left out: %s", strings.TrimSpace(fmt.Sprint(out.CTID, " ", out.Name)), out.why(true))
	}
	for _, w := range wrong {
		cmdline.Logf("%s: %s: %d left out, %d planned", w.File, mistakes(w), len(p.left), len(p.order))
	}
}

// mistakes returns how many there are.
func mistakes(wrong *config.Error) string {
	return counted(len(wrong.Mistakes)+wrong.More, "mistake")
}
