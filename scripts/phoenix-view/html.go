package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/renameio/v2"
)

var (
	//go:embed page.html.tmpl
	pageText string
	//go:embed page.css
	pageStyle    string
	pageTemplate = template.Must(template.New("page").Parse(pageText))
)

// Limits of what a page shows: the events may come from anywhere.
const (
	maxContainers = 1000
	maxList       = 1000 // entries
	maxText       = 8192 // runes of an error or a diff
	maxLabel      = 120  // runes of what stands on one line
	shownAbout    = 12   // containers of a notice
	shownChanges  = 8    // of a container; the others are folded
)

// writePage writes the page of a run to the file at path, whole or not at all.
// It holds nothing that the log of events has not, so whoever may read
// containers' names and errors may read it: the umask decides.
func writePage(path string, r *run) error {
	if r.begin == nil && len(r.order) == 0 && len(r.points) == 0 {
		return fmt.Errorf("no page %s: nothing was planned", path)
	}
	err := checkReplaceable(path)
	if err == nil {
		var content []byte
		if content, err = makePage(r); err == nil {
			err = renameio.WriteFile(path, content, 0o666)
		}
	}
	if err != nil {
		return fmt.Errorf("write the page %s: %w", path, err)
	}
	return nil
}

// makePage returns the page of a run: HTML that loads nothing and runs nothing.
func makePage(r *run) ([]byte, error) {
	sum := sha256.Sum256([]byte(pageStyle))
	p := newPage(r)
	p.Style = template.CSS(pageStyle)
	p.Policy = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-" +
		base64.StdEncoding.EncodeToString(sum[:]) + "'"
	var out bytes.Buffer
	if err := pageTemplate.Execute(&out, p); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Tones of what is shown; each also has words or a sign, so that nothing is said
// by a colour alone.
const (
	toneGood    = "good"    // as wanted, nothing to do
	toneChanged = "changed" // this run has done something, or would
	toneWarn    = "warn"    // people should look at it
	toneFailed  = "failed"
	toneIdle    = "idle" // nothing was done
)

// A page is what page.html.tmpl shows. All its strings are for people.
type page struct {
	Policy string
	Style  template.CSS

	Title, Verdict, Tone string
	Facts                [][2]string
	Counts               []count
	Notices              []*notice
	Line                 *timeline
	Containers           []row
	LeftOut              int // containers that are not shown
	Kind                 string
	Points               []point
	Graph                *graph
	GraphTooMuch         bool
	Open                 bool // what is folded is shown at first
	Trust                *trust
}

type count struct {
	N          int
	What, Tone string
}

// A notice is something that somebody should read before all else.
type notice struct {
	remark
	About []about // containers
	More  int     // containers that are not in About
}

type about struct {
	ID   int
	Name string
}

// A row is a container.
type row struct {
	ID                 int
	Name, Result, Tone string
	Took               string
	Needs              []int
	External           []int
	Addresses          string
	Lines              []remark // what was found, what failed, what waits
	Changes, More      []string
	Commands           []string
	Diffs              []diff
}

type remark struct{ Tone, What, Text string }

type diff struct {
	Path  string
	Lines []diffLine
}

type diffLine struct{ Tone, Text string }

type point struct {
	Tone, Result, Program, Point, Text, Remedy string
	ID                                         int
	Name                                       string
}

type timeline struct {
	Ticks    []tick
	Rows     []lane
	Critical []step
	Total    string
	Stages   []stageRow
	Programs []string // that have bars
	Broken   bool     // something has failed
	Open     bool     // something was not finished
}

type tick struct{ X, Label string }

// A lane is the bars of a container.
type lane struct {
	ID       int
	Name     string
	Critical bool
	Bars     []bar
}

// A bar is a stage, or the work of a program of which no stage is known.
type bar struct {
	X, W, End       string // in percent
	Program         string
	Label, Title    string
	Critical        bool
	Failed, Endless bool
	Next            bool // it follows another one of the program
}

type step struct {
	ID            int
	Name, Program string
	From, Took    string
	Waited        string // before it, for something else; "" for nothing worth telling
}

type stageRow struct {
	ID                   int
	Name, Program, Stage string
	From, Took, How      string
	Critical             bool
}

type trust struct {
	Root      string
	SHA256    string
	Also      string
	Expires   string
	Tone      string
	URL, Path string
	Lines     []remark
	Issuers   []string
	Services  []trusted
}

type trusted struct {
	What      string // gateway or proxy
	ID        int
	Lines     []remark
	Names     []shownCertificate
	HasSHA256 bool
}

type shownCertificate struct{ Name, Issuer, SHA256, Expires, Tone, Error string }

func newPage(r *run) *page {
	p := &page{Kind: r.kind()}
	works := r.works()
	critical := r.criticalPath(works)
	ids := r.order
	if len(ids) > maxContainers {
		p.LeftOut = len(ids) - maxContainers
		ids = ids[:maxContainers]
	}

	tally := map[string]int{}
	warnings := map[int][]*event{}
	for _, w := range r.warnings {
		warnings[w.CTID] = append(warnings[w.CTID], w)
	}
	for _, id := range ids {
		row := newRow(r.containers[id], r, works[id], warnings[id])
		tally[row.Result]++
		p.Containers = append(p.Containers, row)
	}
	for _, result := range results {
		if n := tally[result.what]; n > 0 {
			p.Counts = append(p.Counts, count{n, result.what, result.tone})
		}
	}
	if p.Kind == "run" { // others only look
		p.Line = newTimeline(r, ids, works, critical)
	}
	for _, e := range r.points[:min(len(r.points), maxList)] {
		p.Points = append(p.Points, point{
			Tone: pointTones[e.Result], Result: shownLabel(e.Result), Program: shownLabel(e.Program),
			Point: shownLabel(e.Point), Text: shownText(e.Text), Remedy: shownText(e.Remedy), ID: e.CTID,
			Name: r.nameOf(e.CTID),
		})
	}
	slices.SortStableFunc(p.Points, func(a, b point) int {
		return cmp.Compare(severity(a.Tone), severity(b.Tone))
	})

	var links []link
	for _, id := range ids {
		needs := r.containers[id].needs
		for _, need := range needs[:min(len(needs), maxLinks+1)] { // with more there is no picture
			links = append(links, link{from: need, to: id})
		}
	}
	if r.begin != nil && r.begin.CA != nil {
		for _, place := range []*place{r.begin.Gateway, r.begin.Proxy} {
			if place != nil {
				links = append(links, link{from: r.begin.CA.CTID, to: place.CTID, trust: true})
			}
		}
	}
	if len(ids) > 1 {
		p.Graph = newGraph(ids, links)
		p.GraphTooMuch = p.Graph == nil
	}
	if p.Graph != nil && len(p.Graph.Edges) == 0 {
		p.Graph = nil
	}
	if p.Graph != nil {
		rows := map[int]row{}
		for _, row := range p.Containers {
			rows[row.ID] = row
		}
		onPath := map[int]bool{}
		for _, s := range critical {
			onPath[s.ctid] = p.Line != nil
		}
		p.Graph.dress(rows, onPath)
	}
	if p.Kind == "check" { // of the host, and not of what containers are
		p.Containers = slices.DeleteFunc(p.Containers, func(r row) bool { return len(r.Lines)+len(r.Changes) == 0 })
		p.Counts, p.Graph, p.GraphTooMuch = nil, nil, false
		for _, result := range []string{"failed", "warning", "left out", "ok"} {
			n := 0
			for _, e := range r.points {
				if e.Result == result {
					n++
				}
			}
			if n > 0 {
				p.Counts = append(p.Counts, count{n, result, pointTones[result]})
			}
		}
	}
	p.Open = len(ids) <= 10
	p.Trust = newTrust(r)
	p.Notices = notices(r, p)
	p.headline(r)
	return p
}

// nameOf returns the name of a container, empty where it is not known.
func (r *run) nameOf(id int) string {
	if c := r.containers[id]; c != nil {
		return shownLabel(c.name)
	}
	return ""
}

// results are the words for how it ended with a container, in the order in which
// they are counted.
var results = []struct{ what, tone string }{
	{"failed", toneFailed}, {"not finished", toneFailed}, {"skipped", toneIdle}, {"missing", toneFailed},
	{"differs", toneWarn}, {"would change", toneChanged}, {"changed", toneChanged}, {"unchanged", toneGood},
	{"as configured", toneGood}, {"only looked at", toneIdle}, {"stopped", toneIdle}, {"running", toneGood},
}

func toneOf(result string) string {
	for _, r := range results {
		if r.what == result {
			return r.tone
		}
	}
	return toneIdle
}

var pointTones = map[string]string{"ok": toneGood, "warning": toneWarn, "failed": toneFailed, "left out": toneIdle}

func severity(tone string) int {
	return slices.Index([]string{toneFailed, toneWarn, "", toneIdle, toneChanged, toneGood}, tone)
}

// newRow tells how it went with a container.
func newRow(c *container, r *run, works []*work, warnings []*event) row {
	row := row{ID: c.ctid, Name: shownLabel(c.name), Needs: c.needs, External: c.external}
	row.Needs = row.Needs[:min(len(row.Needs), maxList)]
	row.External = row.External[:min(len(row.External), maxList)]
	add := func(tone, what, words string) { row.Lines = append(row.Lines, remark{tone, what, words}) }
	list := func(tone, what string, texts []string) {
		for i, t := range texts {
			if i == maxList {
				add(tone, what, fmt.Sprintf("%d more", len(texts)-maxList))
				return
			}
			add(tone, what, shownText(t))
		}
	}
	result := "not finished"
	better := func(with string) { // the worst that programs say counts
		if result == "not finished" || severity(toneOf(with)) <= severity(toneOf(result)) {
			result = with
		}
	}
	for _, e := range c.results {
		if e.IP != "" {
			row.Addresses = shownLabel(e.IP)
			if len(e.IPs) > 0 {
				row.Addresses = shownLabel(strings.Join(e.IPs, ", "))
			}
		}
		switch e.Event {
		case "ct.ready", "ct.started", "ct.stopped", "ct.removed", "nginx.ready", "traefik.ready", "ca.exported":
			if e.Changed {
				better("changed")
			} else {
				better("unchanged")
			}
		case "ct.preview":
			if e.Changed {
				better("would change")
			} else {
				better("unchanged")
			}
			for _, command := range e.Commands[:min(len(e.Commands), maxList)] {
				row.Commands = append(row.Commands, shownText(quote(command)))
			}
			for _, f := range e.Files[:min(len(e.Files), maxList)] {
				row.Diffs = append(row.Diffs, newDiff(f))
			}
		case "ct.status":
			switch {
			case e.State == "missing":
				better("missing")
			case len(e.Drift) > 0:
				better("differs")
			default:
				better("as configured")
			}
			state := e.State
			if e.Template {
				state = "template"
			}
			add("", "state", shownLabel(state))
			if e.HA != "" {
				add("", "HA keeps it", shownLabel(e.HA))
			}
			if e.Lock != "" {
				add(toneWarn, "locked for", shownLabel(e.Lock))
			}
			list(toneWarn, "differs", e.Drift)
			if len(e.Snapshots) > 0 {
				add("", "snapshots", shownText(strings.Join(e.Snapshots, ", ")))
			}
		case "ct.failed", "nginx.failed", "traefik.failed", "ca.failed":
			result = "failed"
			stage := e.Stage
			if stage == "" {
				stage = "export"
			}
			add(toneFailed, "failed", writers[e.Event]+": "+shownLabel(stage)+": "+shownText(e.Error))
		case "ct.skipped":
			result = "skipped"
			because := ""
			if e.Because != 0 && !strings.Contains(e.Reason, strconv.Itoa(e.Because)) {
				because = fmt.Sprintf(" (because of %d)", e.Because)
			}
			add(toneIdle, "skipped", shownText(e.Reason)+because)
		case "ca.status", "nginx.status", "traefik.status":
			switch {
			case e.Error == "":
			case e.OutOfReach:
				add(toneWarn, "out of reach", shownText(e.Error))
			default:
				result = "failed"
				add(toneFailed, "failed", fmt.Sprintf("%s: %s", writers[e.Event], shownText(e.Error)))
			}
			for _, cert := range e.Certificates[:min(len(e.Certificates), maxList)] {
				if cert.Error != "" {
					result = "failed"
					add(toneFailed, "failed", "certificate of "+shownLabel(cert.Name)+": "+shownText(cert.Error))
				}
			}
		case "ca.rotation":
			add(toneWarn, "rotation", "last step: "+shownLabel(e.Step))
		}
		if len(e.Restart) > 0 {
			add(toneWarn, "restart required", shownText(strings.Join(e.Restart, ", ")))
		}
		if e.NotInForce {
			add(toneWarn, "firewall", "configured, and not in force")
		}
		list(toneWarn, "template differs", e.Differs)
	}
	for i, w := range warnings {
		if i == maxList {
			add(toneWarn, "warning", fmt.Sprintf("%d more", len(warnings)-maxList))
			break
		}
		add(toneWarn, "warning", shownLabel(w.Program)+": "+shownText(w.Text))
	}
	if c.outcome() == waiting && r.done {
		result = "only looked at" // of a check, for example
	}
	if s := c.working(); s != nil {
		add(toneFailed, "not finished", fmt.Sprintf("%s: %s, since %s", shownLabel(s.program), shownLabel(s.name),
			lasted(s.start.Sub(r.start))))
	}
	row.Result, row.Tone = result, toneOf(result)
	changes := c.changes()
	for _, change := range changes[:min(len(changes), maxList)] {
		row.Changes = append(row.Changes, shownText(change))
	}
	if len(row.Changes) > shownChanges+1 {
		row.Changes, row.More = row.Changes[:shownChanges], row.Changes[shownChanges:]
	}
	if len(works) > 0 {
		total := time.Duration(0)
		for _, s := range works {
			total += s.end.Sub(s.start)
		}
		if total >= 50*time.Millisecond {
			row.Took = lasted(total)
		}
	}
	return row
}

func newDiff(f fileChange) diff {
	d := diff{Path: shownLabel(f.Path)}
	for l := range strings.Lines(shownText(f.Diff)) {
		tone := ""
		switch {
		case strings.HasPrefix(l, "+++"), strings.HasPrefix(l, "---"):
		case strings.HasPrefix(l, "+"):
			tone = "plus"
		case strings.HasPrefix(l, "-"):
			tone = "minus"
		case strings.HasPrefix(l, "@@"):
			tone = "at"
		}
		d.Lines = append(d.Lines, diffLine{tone, l})
	}
	return d
}

// newTimeline returns nil where no work took any time.
func newTimeline(r *run, ids []int, all map[int][]*work, critical []*work) *timeline {
	total := r.end.Sub(r.start)
	percent := func(d time.Duration) string {
		return strconv.FormatFloat(100*float64(d)/float64(total), 'f', 3, 64) + "%"
	}
	since := func(t time.Time) string { return lasted(t.Sub(r.start)) }
	t := &timeline{Total: lasted(total)}
	used := map[string]bool{}
	some := false
	for _, id := range ids {
		c := r.containers[id]
		l := lane{ID: id, Name: shownLabel(c.name)}
		for _, s := range all[id] {
			l.Critical = l.Critical || s.critical
			used[s.program] = true
			t.Open = t.Open || s.unfinished
			t.Broken = t.Broken || s.failed
			some = some || s.end.After(s.start)
			parts := s.stages
			if len(parts) == 0 || parts[0].start.After(s.start) {
				first := stage{program: s.program, start: s.start, end: s.end}
				if len(parts) > 0 {
					first.end = parts[0].start
				}
				parts = append([]stage{first}, parts...)
			}
			parts = parts[:min(len(parts), maxList)]
			for i, part := range parts {
				last := i == len(parts)-1
				what, how := shownLabel(part.name), "done"
				switch {
				case last && s.failed:
					how = "failed"
				case last && s.unfinished:
					how = "not finished"
				}
				b := bar{
					X: percent(part.start.Sub(r.start)), W: percent(part.end.Sub(part.start)),
					End: percent(part.end.Sub(r.start)), Program: s.program,
					Critical: s.critical, Failed: last && s.failed, Endless: last && s.unfinished, Next: i > 0,
				}
				if part.end.Sub(part.start) > total/16 {
					b.Label = cmp.Or(what, strings.TrimPrefix(s.program, "phx-"))
				}
				b.Title = fmt.Sprintf("%d %s: %s, %s, from %s, took %s", id, l.Name,
					strings.TrimSuffix(s.program+" "+what, " "), how, since(part.start),
					lasted(part.end.Sub(part.start)))
				l.Bars = append(l.Bars, b)
				t.Stages = append(t.Stages, stageRow{
					ID: id, Name: l.Name, Program: s.program, Stage: cmp.Or(what, "all work"), From: since(part.start),
					Took: lasted(part.end.Sub(part.start)), How: how, Critical: s.critical,
				})
			}
		}
		if len(l.Bars) > 0 {
			t.Rows = append(t.Rows, l)
		}
	}
	if !some || total <= 0 {
		return nil
	}
	for _, mark := range ticks(total) {
		words := strings.TrimSuffix(strings.Replace(lasted(mark), ".0 s", " s", 1), " 0 s")
		switch {
		case mark == 0:
			words = "0"
		case mark > total-total/25: // it would stand out on the right
			words = ""
		case mark < time.Second:
			words = fmt.Sprintf("%d ms", mark.Milliseconds())
		}
		t.Ticks = append(t.Ticks, tick{percent(mark), words})
	}
	for _, program := range programs {
		if used[program] {
			t.Programs = append(t.Programs, program)
		}
	}
	before := r.start
	for _, s := range critical {
		st := step{
			ID: s.ctid, Name: shownLabel(r.containers[s.ctid].name), Program: s.program, From: since(s.start),
			Took: lasted(s.end.Sub(s.start)),
		}
		if gap := s.start.Sub(before); gap > total/100 && gap > 50*time.Millisecond {
			st.Waited = lasted(gap)
		}
		before = s.end
		t.Critical = append(t.Critical, st)
	}
	return t
}

// newTrust returns the chain of trust as the events have it, nil where they say
// nothing of it.
func newTrust(r *run) *trust {
	t := &trust{}
	root := cmp.Or(r.caStatus, r.exported)
	if root != nil {
		t.Root, t.SHA256, t.Also = shownLabel(root.Subject), shownLabel(root.SHA256), shownLabel(root.Also)
		t.URL, t.Path = shownLabel(root.CAURL), shownLabel(root.Path)
		t.Expires, t.Tone = r.expiry(root.NotAfter, 90*24*time.Hour)
		if root.FromHost {
			t.Lines = append(t.Lines, remark{toneWarn, "from the host",
				"the CA could not be asked: this is the root that the host has pinned"})
		}
		for _, other := range [][2]string{{"pinned on the host", root.Pinned}, {"in the CA's container", root.Serves}} {
			switch {
			case other[1] == "":
			case other[1] == root.SHA256:
				t.Lines = append(t.Lines, remark{toneGood, other[0], "the same"})
			default:
				t.Lines = append(t.Lines, remark{toneFailed, other[0], "another one: " + shownLabel(other[1])})
			}
		}
		if root.Error != "" {
			t.Lines = append(t.Lines, remark{toneFailed, "failed", shownText(root.Error)})
		}
	}
	if r.caError != "" {
		t.Lines = append(t.Lines, remark{toneFailed, "failed", shownText(r.caError)})
	}
	if r.rotation != nil {
		t.Lines = append(t.Lines, remark{toneWarn, "rotation", fmt.Sprintf(
			"last step: %s; the new root is %s, the old one %s",
			shownLabel(r.rotation.Step), shownLabel(r.rotation.SHA256), shownLabel(r.rotation.Also))})
	}
	issuers := map[string]bool{}
	for _, id := range r.order {
		for _, e := range r.containers[id].results {
			what := parts[writers[e.Event]]
			if what != "gateway" && what != "proxy" {
				continue
			}
			s := trusted{What: what, ID: id}
			switch {
			case e.Error == "":
			case e.OutOfReach:
				s.Lines = append(s.Lines, remark{toneWarn, "out of reach", shownText(e.Error)})
			default:
				s.Lines = append(s.Lines, remark{toneFailed, "failed", shownText(e.Error)})
			}
			certificates := e.served()
			for i, c := range certificates {
				if i == maxList {
					more := fmt.Sprintf("%d more", len(certificates)-maxList)
					s.Lines = append(s.Lines, remark{toneIdle, "not shown", more})
					break
				}
				shown := shownCertificate{
					Name: shownLabel(c.Name), Issuer: shownLabel(c.Issuer), SHA256: shownLabel(c.SHA256),
					Error: shownText(c.Error)}
				shown.Expires, shown.Tone = r.expiry(c.NotAfter, 0)
				if c.Error != "" {
					shown.Tone = toneFailed
				} else if c.Issuer != "" {
					issuers[shown.Issuer] = true
				}
				s.HasSHA256 = s.HasSHA256 || shown.SHA256 != ""
				s.Names = append(s.Names, shown)
			}
			t.Services = append(t.Services, s)
		}
	}
	t.Issuers = slices.Sorted(maps.Keys(issuers))
	if root == nil && len(t.Services) == 0 && len(t.Lines) == 0 {
		return nil
	}
	return t
}

// expiry tells when something expires, and how long that is after the run. The
// tone is a warning if that is less than soon.
func (r *run) expiry(at time.Time, soon time.Duration) (words, tone string) {
	switch left := at.Sub(r.end); {
	case at.IsZero():
		return "", ""
	case left <= 0:
		return stamp(at) + ", which was before the run ended", toneFailed
	case left < soon:
		return fmt.Sprintf("%s, %s after the run", stamp(at), roughly(left)), toneWarn
	default:
		return fmt.Sprintf("%s, %s after the run", stamp(at), roughly(left)), toneGood
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// notices collects what somebody should read first: failures, then warnings, then
// what was skipped. What is the same of several containers is one notice.
func notices(r *run, p *page) []*notice {
	var all []*notice
	same := map[remark]*notice{}
	add := func(l remark, id int, name string) {
		n := same[l]
		if n == nil {
			n = &notice{remark: l}
			same[l] = n
			all = append(all, n)
		}
		switch {
		case id == 0:
		case len(n.About) < shownAbout:
			n.About = append(n.About, about{id, name})
		default:
			n.More++
		}
	}
	for _, row := range p.Containers {
		for _, l := range row.Lines {
			if l.Tone == toneFailed || l.Tone == toneWarn || l.What == "skipped" {
				add(l, row.ID, row.Name)
			}
		}
	}
	for _, w := range r.warnings {
		if r.containers[w.CTID] == nil && len(same) <= maxList {
			add(remark{toneWarn, "warning", shownLabel(w.Program) + ": " + shownText(w.Text)}, w.CTID, "")
		}
	}
	if p.Trust != nil {
		if p.Trust.Tone == toneFailed || p.Trust.Tone == toneWarn {
			add(remark{p.Trust.Tone, "root", "expires " + p.Trust.Expires}, 0, "")
		}
		for _, s := range p.Trust.Services {
			for _, c := range s.Names {
				if c.Tone == toneFailed && c.Error == "" {
					add(remark{toneFailed, "certificate", c.Name + " expires " + c.Expires}, s.ID, s.What)
				}
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *notice) int { return cmp.Compare(severity(a.Tone), severity(b.Tone)) })
	if len(all) > maxList {
		more := remark{toneIdle, "not shown", fmt.Sprintf("%d more", len(all)-maxList)}
		all = append(all[:maxList], &notice{remark: more})
	}
	return all
}

// headline says in one sentence how it went.
func (p *page) headline(r *run) {
	tally := map[string]int{}
	for _, c := range p.Counts {
		tally[c.What] = c.N
	}
	all := len(p.Containers) + p.LeftOut
	of := func(n int) string { return fmt.Sprintf("%d of %s", n, many(all, "container")) }
	points := map[string]int{}
	for _, pt := range p.Points {
		points[pt.Tone]++
	}
	bad := tally["failed"] + tally["missing"]
	if p.Kind == "check" {
		bad = 0 // they are points
	}
	switch {
	case r.ending() == stopped:
		p.Tone, p.Verdict = toneWarn, fmt.Sprintf("It was stopped by signal %d.", r.status-128)
	case !r.done:
		p.Tone, p.Verdict = toneFailed, "It was cut short: a program ended before its work was done."
	case bad > 0:
		p.Tone, p.Verdict = toneFailed, of(bad)+verb(bad, " has failed.", " have failed.")
		if p.Kind == "status" {
			p.Verdict = of(bad) + verb(bad, " is not as it should be.", " are not as they should be.")
		}
	case r.caError != "":
		p.Tone, p.Verdict = toneFailed, "The CA has failed."
	case p.Kind == "check" && points[toneFailed] > 0:
		p.Tone = toneFailed
		p.Verdict = fmt.Sprintf("%d of %s would make a run fail.", points[toneFailed], many(len(p.Points), "point"))
	case p.Kind == "check" && points[toneWarn] > 0:
		p.Tone = toneWarn
		p.Verdict = fmt.Sprintf("A run would work; %s to look at.", many(points[toneWarn], "warning"))
	case p.Kind == "check":
		p.Tone, p.Verdict = toneGood, fmt.Sprintf("A run would work: %s well.", many(len(p.Points), "point"))
	case r.status > 0 && r.status != 3 && tally["skipped"] == 0:
		p.Tone, p.Verdict = toneFailed, fmt.Sprintf("It failed with exit status %d: its messages say why.", r.status)
	case tally["skipped"] > 0:
		p.Tone, p.Verdict = toneWarn, of(tally["skipped"])+verb(tally["skipped"], " was skipped.", " were skipped.")
	case tally["differs"] > 0:
		p.Tone, p.Verdict = toneWarn, of(tally["differs"])+verb(tally["differs"], " differs from", " differ from")+
			" the configuration."
	case tally["would change"] > 0:
		p.Tone, p.Verdict = toneChanged, of(tally["would change"])+" would be changed."
	case tally["changed"] > 0:
		p.Tone = toneGood
		p.Verdict = "All well: " + of(tally["changed"]) + verb(tally["changed"], " was changed.", " were changed.")
	case p.Kind == "status":
		p.Tone, p.Verdict = toneGood, "All is as configured."
	case p.Kind == "dry-run":
		p.Tone, p.Verdict = toneGood, "All well: nothing would be changed."
	default:
		p.Tone, p.Verdict = toneGood, "All well: nothing had to be changed."
	}
	action := "a part of a run"
	if r.begin != nil {
		action = shownLabel(r.begin.Action)
		if r.begin.DryRun {
			action += ", dry run"
		}
		p.Facts = append(p.Facts, [2]string{"Configuration", shownLabel(r.begin.ConfigPath)},
			[2]string{"Domain", shownLabel(r.begin.Domain)})
	}
	p.Title = "phoenix " + action
	p.Facts = append(p.Facts, [2]string{"Began", r.start.UTC().Format("2006-01-02 15:04:05 UTC")},
		[2]string{"Took", lasted(r.end.Sub(r.start))})
	if r.begin != nil {
		p.Facts = append(p.Facts, [2]string{"Run", shownLabel(r.begin.Round)})
	}
	p.Facts = slices.DeleteFunc(p.Facts, func(f [2]string) bool { return f[1] == "" })
}

// verb returns the form of a verb for n of something.
func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// shownText returns what an event says in several lines, in a form that shows all of
// it, and no more than its length allows: what could hide, reorder or overprint is
// escaped.
func shownText(s string) string { return visible(s, maxText, true) }

// shownLabel is shownText for one line.
func shownLabel(s string) string { return visible(s, maxLabel, false) }

func visible(s string, most int, lines bool) string {
	var b strings.Builder
	marks := 0 // that stand on one letter
	for i, r := range s {
		if most--; most < 0 {
			fmt.Fprintf(&b, "… (%d bytes more)", len(s)-i)
			break
		}
		if marks++; !unicode.Is(unicode.M, r) {
			marks = 0
		}
		switch {
		case lines && (r == '\n' || r == '\t'), r == utf8.RuneError, !hidden(r) && marks < 4:
			b.WriteRune(r)
		default:
			b.WriteString(quoted(string(r)))
		}
	}
	return b.String()
}

// dress says how the containers of a graph look.
func (g *graph) dress(rows map[int]row, critical map[int]bool) {
	for _, b := range g.Boxes {
		for i := range b.Nodes {
			n := &b.Nodes[i]
			row := rows[n.ID]
			n.Tone, n.Title = row.Tone, fmt.Sprintf("%d %s: %s", n.ID, row.Name, row.Result)
			n.Critical = critical[n.ID]
			n.Label = shorten(fmt.Sprintf("%d %s", n.ID, row.Name), labelRunes)
		}
	}
}

// shorten returns s in at most the width of most letters.
func shorten(s string, most int) string {
	width := 0
	for i, r := range s {
		if width++; r >= 0x1100 { // wide ones, roughly
			width++
		}
		if width > most {
			return strings.TrimRight(s[:i], " ") + "…"
		}
	}
	return s
}
