package main

import (
	"slices"
	"time"
)

// A work is that of one program on one container.
type work struct {
	ctid       int
	program    string
	start, end time.Time
	stages     []stage
	failed     bool
	unfinished bool // no event has said how it ended
	critical   bool
}

// programs are those that work on containers, in the order of the pipe.
var programs = []string{"phx-lxc", "phx-ca-export", "phx-nginx", "phx-traefik"}

// works returns the work on each container, in the order of the pipe. All times
// are within those of the run, whatever the events say, and no work or stage
// ends before it begins.
func (r *run) works() map[int][]*work {
	within := func(t time.Time) time.Time {
		switch {
		case t.Before(r.start):
			return r.start
		case t.After(r.end):
			return r.end
		}
		return t
	}
	all := map[int][]*work{}
	for _, id := range r.order {
		c := r.containers[id]
		for _, program := range programs {
			s := &work{ctid: id, program: program}
			for _, st := range c.stages {
				if st.program == program {
					s.stages = append(s.stages, st)
				}
			}
			for i := range c.stages {
				if c.stages[i].program == program {
					s.start = within(c.stages[i].start)
					break
				}
			}
			ended := false
			for _, e := range c.results {
				switch {
				case writers[e.Event] != program, e.Event == "ca.rotation",
					e.Event == "ct.skipped" && len(s.stages) == 0: // nothing was done
					continue
				}
				ended = true
				s.end = within(e.Time)
				s.failed = e.isFailure()
				begin := s.end
				if took := time.Duration(e.ElapsedMS) * time.Millisecond; took > 0 && e.ElapsedMS < 1e12 {
					begin = within(e.Time.Add(-took))
				}
				if s.start.IsZero() || begin.Before(s.start) {
					s.start = begin
				}
			}
			if len(s.stages) == 0 && !ended {
				continue
			}
			if !ended {
				s.end, s.unfinished = r.end, true
			}
			if s.end.Before(s.start) {
				s.end = s.start
			}
			for i := range s.stages {
				st := &s.stages[i]
				st.start = within(st.start)
				if st.end.IsZero() {
					st.end = s.end
				}
				if st.end = within(st.end); st.end.Before(st.start) {
					st.end = st.start
				}
			}
			all[id] = append(all[id], s)
		}
	}
	// Where the events do not say when work began, it was when it could.
	for _, id := range r.order {
		for _, s := range all[id] {
			if w := latest(r.waits(s, all)); w != nil && s.start.Equal(s.end) && w.end.Before(s.end) {
				s.start = w.end
			}
		}
	}
	return all
}

// waits returns what a work has waited for: what the container needs is in
// its ct.planned; the CA is exported once its container is ready, and gateway and
// proxy wait for their container and for the fingerprint of the root. They do not
// wait where nothing is to be done on the container: what went on when they began
// they have not waited for. A container that is made waits before it is started.
func (r *run) waits(s *work, all map[int][]*work) []*work {
	var before []*work
	add := func(id int, program string) {
		until := s.start
		if s.program == "phx-lxc" || s.start.Equal(s.end) {
			until = s.end
		}
		for _, other := range all[id] {
			if other.program == program && other != s && !other.end.After(until) {
				before = append(before, other)
			}
		}
	}
	switch s.program {
	case "phx-lxc":
		for _, id := range r.containers[s.ctid].needs {
			add(id, "phx-lxc")
		}
	case "phx-ca-export":
		add(s.ctid, "phx-lxc")
	default:
		add(s.ctid, "phx-lxc")
		if r.exported != nil {
			add(r.exported.CTID, "phx-ca-export")
		}
	}
	return before
}

// latest returns the work that ends last, nil for none.
func latest(works []*work) *work {
	var last *work
	for _, s := range works {
		if last == nil || s.end.After(last.end) {
			last = s
		}
	}
	return last
}

// criticalPath returns the works that made the run last as long as it did, from
// the first to the last: of the one that ended last, what it had waited for
// longest, and so on. It marks them.
func (r *run) criticalPath(all map[int][]*work) []*work {
	var every []*work
	for _, id := range r.order {
		every = append(every, all[id]...)
	}
	var way []*work
	for s := latest(every); s != nil && !s.critical; s = latest(r.waits(s, all)) {
		s.critical = true
		way = append(way, s)
	}
	slices.Reverse(way)
	return way
}

// ticks returns the marks of a time line: at most ten, at round distances.
func ticks(total time.Duration) []time.Duration {
	if total <= 0 {
		return nil
	}
	steps := []time.Duration{
		1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8, 2e8, 5e8, // milliseconds
		1e9, 2e9, 5e9, 1e10, 15e9, 3e10, // seconds
		6e10, 12e10, 3e11, 6e11, 9e11, 18e11, // minutes
		36e11, 72e11, 6 * 36e11, 12 * 36e11, 24 * 36e11, // hours
	}
	i := 0
	for i < len(steps)-1 && total/steps[i] > 9 {
		i++
	}
	step := steps[i]
	for total/step > 9 {
		step *= 2
	}
	var marks []time.Duration
	for n := range total/step + 1 {
		marks = append(marks, n*step)
	}
	return marks
}
