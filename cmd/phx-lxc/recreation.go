package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// When the containers of a plan are recreated.

// recreation is how far a container of the plan has come that is recreated.
type recreation struct {
	checked chan struct{} // closed when it is known whether it can be recreated
	can     bool
	gone    chan struct{} // closed when it has been destroyed, or will not be
	isGone  bool
}

// recreate recreates the container of a node. needs are those of the plan. Nothing
// is destroyed before all that are to be recreated have been looked at, and what
// they need and is not recreated itself is ready.
func (r *round) recreate(n *node, j *job, needs []int) {
	var early, late []int
	checked := sync.OnceFunc(func() { close(n.recreation.checked) })
	gone := sync.OnceFunc(func() { close(n.recreation.gone) })
	defer gone()
	defer checked()

	select { // which others are recreated is known then
	case <-r.planned:
	case <-r.halted:
		r.skip(j.c, planBrokeOff, 0)
		return
	}
	for _, id := range needs {
		if r.needsRecreated(id) {
			late = append(late, id)
		} else {
			early = append(early, id)
		}
	}
	if reason, because := r.await(early); reason != "" {
		r.skip(j.c, reason, because)
		return
	}
	start := time.Now()
	all := r.recreated()
	if !r.atWork(j, func() error { return j.prepareToRecreate(r.ctx, all) }) {
		return
	}
	n.recreation.can = true
	checked()
	if reason, because := r.awaitRecreation(j.c.CTID, all); reason != "" {
		r.skip(j.c, reason, because)
		return
	}
	if !r.atWork(j, func() error { return j.destroyToRecreate(r.ctx) }) {
		return
	}
	n.recreation.isGone = true
	gone()
	if reason, because := r.await(late); reason != "" {
		reason += fmt.Sprintf("; this one is destroyed by now: create it with: phoenix %d", j.c.CTID)
		r.skip(j.c, reason, because)
		return
	}
	if !r.atWork(j, func() error { return j.converge(r.ctx) }) {
		return
	}
	n.ready = true
	toDo := j.succeed(actions["recreate"], start)
	r.run.note(toDo, false)
}

// awaitRecreation waits until a container may be destroyed that is recreated with all
// the others: until all of them can be recreated, and those are gone that need it. Else it
// returns why not, and the container to blame, if any.
func (r *round) awaitRecreation(ctid int, all []int) (reason string, because int) {
	for _, id := range all {
		other := r.node(id).recreation
		select {
		case <-other.checked:
		case <-r.halted:
			return planBrokeOff, 0
		}
		if !other.can {
			return fmt.Sprintf("container %d is not recreated, so nothing was destroyed", id), id
		}
	}
	for _, id := range all {
		other := r.node(id)
		if !slices.Contains(other.needs, ctid) {
			continue
		}
		if <-other.recreation.gone; !other.recreation.isGone {
			return fmt.Sprintf("container %d, which needs it, is still there", id), id
		}
	}
	return "", 0
}

// atWork does a part of the work on a container, and reports whether that has
// succeeded. If not, the reason has been reported.
func (r *round) atWork(j *job, part func() error) bool {
	release, ok := r.begin()
	if !ok {
		r.skip(j.c, planBrokeOff, 0)
		return false
	}
	defer release()
	err := part()
	if err != nil {
		j.fail(err)
		r.run.note(false, true)
	}
	if j.ct != nil {
		r.node(j.c.CTID).source.conf = j.ct.Conf
	}
	return err == nil
}

// recreated returns the ids of the containers of the plan that are recreated. The
// plan is complete.
func (r *round) recreated() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []int
	for id, n := range r.nodes {
		if n.recreation != nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// needsRecreated reports whether a container of the plan is recreated, or needs
// one that is, which therefore cannot be waited for before. The plan is complete.
func (r *round) needsRecreated(id int) bool {
	all := append(r.before(id), id)
	return slices.ContainsFunc(r.recreated(), func(id int) bool { return slices.Contains(all, id) })
}
