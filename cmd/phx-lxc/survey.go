package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// What the looks of the action check are made of.

// A look finds out one thing, for all containers of the plan.
type look struct {
	name string // of its points, unless they have names of their own
	run  func(*survey, context.Context) []point
}

// A point is what one look has found.
type point struct {
	c      *config.Container // that it is about, nil for none
	name   string            // "" for that of the look
	result string            // of those of event.CheckPoint
	text   string
	remedy string
}

func good(format string, args ...any) point {
	return point{result: event.CheckOK, text: fmt.Sprintf(format, args...)}
}

func leftOut(format string, args ...any) point {
	return point{result: event.CheckLeftOut, text: fmt.Sprintf(format, args...)}
}

func warns(remedy, format string, args ...any) point {
	return point{result: event.CheckWarning, text: fmt.Sprintf(format, args...), remedy: remedy}
}

func fails(err error) point {
	p := point{result: event.CheckFailed}
	p.text, p.remedy = remedy.Split(err)
	p.remedy = strings.TrimSuffix(p.remedy, "; nothing was changed")
	return p
}

func bad(remedy, format string, args ...any) point {
	p := warns(remedy, format, args...)
	p.result = event.CheckFailed
	return p
}

func (p point) named(format string, args ...any) point {
	p.name = fmt.Sprintf(format, args...)
	return p
}

func (p point) about(c *config.Container) point {
	p.c = c
	return p
}

// survey is what the looks at one plan share. What costs time is found out once.
type survey struct {
	*round
	host    *pve.Host
	jobs    []*job
	wrong   []error        // for each job, why its container cannot be worked on
	known   map[int]string // states of all containers
	listed  error          // why they are not known
	guests  func() ([]pve.Guest, error)
	storage func() (map[string]pve.StorageStatus, error)
}

// path is a path of the host.
func (s *survey) path(elem ...string) string {
	return filepath.Join(append([]string{s.options.sysroot}, elem...)...)
}

// each returns a look that checks each container which something concerns. Where
// several have the same to say of, that is one point.
func each(name string, concerns func(*job) bool, check func(*job, context.Context) error) look {
	return look{name, func(s *survey, ctx context.Context) []point {
		n := 0
		var found findings
		for i, j := range s.jobs {
			if s.wrong[i] != nil || !concerns(j) {
				continue
			}
			n++
			for _, err := range remedy.Each(check(j, ctx)) {
				found.add(j.c, fails(err))
			}
		}
		switch {
		case n == 0:
			return nil
		case len(found.all) == 0:
			return []point{good("in order for %s", count(n, "container"))}
		}
		return found.points()
	}}
}

// findings are points of which those that say the same are one.
type findings struct {
	all   []point
	about map[string][]*config.Container // by what a point says
}

// says is all that a point says.
func (p point) says() string { return p.name + "\n" + p.text + "\n" + p.remedy }

func (f *findings) add(c *config.Container, p point) {
	if f.about == nil {
		f.about = map[string][]*config.Container{}
	}
	key := p.says()
	if f.about[key] == nil {
		f.all = append(f.all, p)
	}
	if !slices.Contains(f.about[key], c) {
		f.about[key] = append(f.about[key], c)
	}
}

func (f *findings) points() []point {
	for i, p := range f.all {
		about := f.about[p.says()]
		if len(about) == 1 {
			f.all[i].c = about[0]
		} else {
			f.all[i].text += " (containers " + idsOf(about) + ")"
		}
	}
	return f.all
}

// maxNamed is how many containers a text names.
const maxNamed = 10

// idsOf names containers by their ids, but of many only some.
func idsOf(containers []*config.Container) string {
	var ids []string
	for i, c := range containers {
		if i == maxNamed && len(containers) > maxNamed+1 {
			ids = append(ids, fmt.Sprintf("and %d more", len(containers)-i))
			break
		}
		ids = append(ids, strconv.Itoa(c.CTID))
	}
	return strings.Join(ids, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// isMissing reports whether the container is still to be made. It has been looked at.
func (j *job) isMissing() bool { return j.ct.Conf == nil }
