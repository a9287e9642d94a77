package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// An event is a line of the stream: the fields, of all events, that are shown.
// docs/events.md says what each means.
type event struct {
	Event string    `json:"event"`
	Time  time.Time `json:"time"`
	CTID  int       `json:"ctid"`

	Round        string          `json:"round"`
	Action       string          `json:"action"`
	DryRun       bool            `json:"dry_run"`
	Order        []int           `json:"order"`
	ConfigPath   string          `json:"-"` // "config" of plan.started; ct.planned has an object there
	Config       json.RawMessage `json:"config"`
	Domain       string          `json:"domain"`
	Name         string          `json:"name"`
	Needs        []int           `json:"needs"`
	External     []int           `json:"external"`
	Program      string          `json:"program"`
	Stage        string          `json:"stage"`
	Text         string          `json:"text"`
	Point        string          `json:"point"`
	Result       string          `json:"result"`
	Remedy       string          `json:"remedy"`
	Changed      bool            `json:"changed"`
	Changes      []string        `json:"changes"`
	Commands     [][]string      `json:"commands"`
	Files        []fileChange    `json:"files"`
	Restart      []string        `json:"restart_required"`
	NotInForce   bool            `json:"firewall_not_in_force"`
	Differs      []string        `json:"template_differs"`
	Error        string          `json:"error"`
	Reason       string          `json:"reason"`
	Because      int             `json:"because"`
	OutOfReach   bool            `json:"out_of_reach"`
	State        string          `json:"state"`
	Template     bool            `json:"template"`
	Lock         string          `json:"lock"`
	HA           string          `json:"ha"`
	IP           string          `json:"ip"`
	IPs          []string        `json:"ips"`
	Snapshots    []string        `json:"snapshots"`
	Applied      map[string]any  `json:"applied"`
	Drift        []string        `json:"drift"`
	Path         string          `json:"path"`
	SHA256       string          `json:"sha256"`
	Also         string          `json:"also"`
	Pinned       string          `json:"pinned"`
	Serves       string          `json:"serves"`
	Subject      string          `json:"subject"`
	NotAfter     time.Time       `json:"not_after"`
	CAURL        string          `json:"ca_url"`
	FromHost     bool            `json:"from_host"`
	Step         string          `json:"step"`
	Address      string          `json:"address"`
	Names        []string        `json:"names"`
	ElapsedMS    int64           `json:"elapsed_ms"`
	Status       int             `json:"status"` // of run.ended
	Certificates []certificate   `json:"certificates"`
	CA           *place          `json:"ca"`
	Proxy        *place          `json:"proxy"`
	Gateway      *place          `json:"gateway"`
}

// A place is the container of a part, in plan.started.
type place struct {
	CTID int `json:"ctid"`
}

type fileChange struct {
	Path string `json:"path"`
	Diff string `json:"diff"`
}

type certificate struct {
	Name     string    `json:"name"`
	Issuer   string    `json:"issuer"`
	SHA256   string    `json:"sha256"`
	NotAfter time.Time `json:"not_after"`
	Error    string    `json:"error"`
}

// parse reads a line of the stream.
func parse(line []byte) (*event, error) {
	e := &event{}
	if err := json.Unmarshal(line, e); err != nil {
		return nil, err
	}
	if e.Event == "" {
		return nil, fmt.Errorf("no event: %.60q", line)
	}
	if bytes.HasPrefix(e.Config, []byte(`"`)) {
		if err := json.Unmarshal(e.Config, &e.ConfigPath); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// A run is what the events from one plan.started to its plan.done say.
type run struct {
	begin      *event // plan.started; nil when the stream begins in the middle
	start, end time.Time
	done       bool // plan.done has come: no program has died
	status     int  // the exit status of phoenix; -1 where it is not known

	containers map[int]*container
	order      []int // of containers, as planned, then those that were left out
	warnings   []*event
	points     []*event // of a check

	exported, caStatus, rotation *event // the last ca.exported, ca.status and ca.rotation; nil without
	caError                      string // of ca.failed
}

// A container is what the events of a run say about one container.
type container struct {
	ctid            int
	name            string
	needs, external []int
	config          json.RawMessage
	stages          []stage
	begun           map[string]int // of each program, the index of its last stage
	results         []*event       // how the programs have ended with it, in the order of the stream
}

// A stage is a piece of work on a container.
type stage struct {
	program, name string
	start, end    time.Time // end is zero while it is under way
}

func newRun() *run { return &run{containers: map[int]*container{}, status: -1} }

// container returns the container with an id, which is made if it is not there.
func (r *run) container(ctid int) *container {
	c := r.containers[ctid]
	if c == nil {
		c = &container{ctid: ctid}
		r.containers[ctid] = c
		r.order = append(r.order, ctid)
	}
	return c
}

// observe notes what an event says. The events of a run come in the order of the
// stream.
func (r *run) observe(e *event) {
	if r.start.IsZero() {
		r.start = e.Time
	}
	if e.Time.After(r.end) {
		r.end = e.Time
	}
	switch e.Event {
	case "plan.started":
		r.begin = e
		for _, id := range e.Order {
			r.container(id)
		}
	case "plan.done":
		r.done = true
	case "run.ended":
		r.status = e.Status
	case "warning":
		r.warnings = append(r.warnings, e)
	case "check.point":
		r.points = append(r.points, e)
	case "ct.planned":
		c := r.container(e.CTID)
		c.name, c.needs, c.external, c.config = e.Name, e.Needs, e.External, e.Config
	case "ct.stage":
		c := r.container(e.CTID)
		c.endStage(e.Program, e.Time)
		if c.begun == nil {
			c.begun = map[string]int{}
		}
		c.begun[e.Program] = len(c.stages)
		c.stages = append(c.stages, stage{program: e.Program, name: e.Stage, start: e.Time})
	case "ca.fingerprint": // says no more than ca.exported
	default:
		program := writers[e.Event]
		if program == "" || e.CTID == 0 {
			return
		}
		c := r.container(e.CTID)
		if e.Name != "" {
			c.name = e.Name
		}
		c.endStage(program, e.Time)
		c.results = append(c.results, e)
		switch e.Event {
		case "ca.exported":
			r.exported = e
		case "ca.status":
			r.caStatus = e
		case "ca.rotation":
			r.rotation = e
		case "ca.failed":
			r.caError = e.Error
		}
	}
}

// writers names who writes each event that is a result.
var writers = map[string]string{
	"ct.ready": "phx-lxc", "ct.started": "phx-lxc", "ct.stopped": "phx-lxc", "ct.removed": "phx-lxc",
	"ct.status": "phx-lxc", "ct.preview": "phx-lxc", "ct.failed": "phx-lxc", "ct.skipped": "phx-lxc",
	"ca.exported": "phx-ca-export", "ca.failed": "phx-ca-export", "ca.rotation": "phx-ca-export",
	"ca.status":   "phx-ca-export",
	"nginx.ready": "phx-nginx", "nginx.failed": "phx-nginx", "nginx.status": "phx-nginx",
	"traefik.ready": "phx-traefik", "traefik.failed": "phx-traefik", "traefik.status": "phx-traefik",
}

// endStage ends the stage of a program that is under way, if there is one.
func (c *container) endStage(program string, at time.Time) {
	if i, ok := c.begun[program]; ok && c.stages[i].end.IsZero() {
		c.stages[i].end = at
	}
}

// isFailure reports whether an event says that something has failed, or is not as
// it must be. What cannot be reached may be well.
func (e *event) isFailure() bool {
	switch e.Event {
	case "ct.failed", "ca.failed", "nginx.failed", "traefik.failed":
		return true
	case "ca.status", "nginx.status", "traefik.status":
		return e.Error != "" && !e.OutOfReach ||
			slices.ContainsFunc(e.Certificates, func(c certificate) bool { return c.Error != "" })
	}
	return false
}

// served returns the certificates of a service: those that it has shown, or, where
// none has been asked for, one for each name.
func (e *event) served() []certificate {
	if len(e.Certificates) > 0 {
		return e.Certificates
	}
	var all []certificate
	for _, name := range e.Names {
		all = append(all, certificate{Name: name, NotAfter: e.NotAfter})
	}
	return all
}

// isOver reports whether e belongs to the next run: phx-plan warns before it plans.
func (r *run) isOver(e *event) bool {
	return r.done && e.Event != "run.ended" || r.begin != nil && e.Event == "plan.started"
}

// runs takes the events of a stream, and calls ended with each run that is over.
type runs struct {
	now   *run
	ended func(*run) error
}

func (s *runs) add(e *event) error {
	if s.now.isOver(e) {
		if err := s.end(); err != nil {
			return err
		}
	}
	s.now.observe(e)
	return nil
}

// end ends the last run.
func (s *runs) end() error {
	r := s.now
	s.now = newRun()
	if r.start.IsZero() {
		return nil
	}
	return s.ended(r)
}

// An outcome is what has become of a container.
type outcome int

const (
	waiting outcome = iota // nothing has been said of it yet
	working
	unchanged
	changed
	skipped
	failed
)

func (o outcome) String() string {
	return [...]string{"waiting", "working", "unchanged", "changed", "skipped", "failed"}[o]
}

// due returns the container of the CA where that is what the gateway or the proxy
// is still to be set up by, else 0.
func (r *run) due(c *container) int {
	if r.done || r.begin == nil || r.begin.CA == nil || r.action() != "create" || r.dryRun() {
		return 0
	}
	for part, of := range map[string]*place{"nginx": r.begin.Gateway, "traefik": r.begin.Proxy} {
		if of != nil && of.CTID == c.ctid && c.last(part+".ready") == nil && c.last(part+".failed") == nil {
			return r.begin.CA.CTID
		}
	}
	return 0
}

// outcome returns what has become of c so far: the worst of all results while
// nobody works on it.
func (c *container) outcome() outcome {
	if c.working() != nil {
		return working
	}
	worst := waiting
	for _, e := range c.results {
		worst = max(worst, e.outcome())
	}
	return worst
}

// outcome returns what a result means for its container.
func (e *event) outcome() outcome {
	switch {
	case e.isFailure():
		return failed
	case e.Event == "ct.skipped":
		return skipped
	case e.Changed:
		return changed
	}
	return unchanged
}

// elapsed returns how long the work took of which an event tells.
func (e *event) elapsed() time.Duration { return time.Duration(e.ElapsedMS) * time.Millisecond }

// working returns the stage that is under way, nil where there is none. Of several,
// it is the last to have begun.
func (c *container) working() *stage {
	for i := range slices.Backward(c.stages) {
		if c.stages[i].end.IsZero() {
			return &c.stages[i]
		}
	}
	return nil
}

// took returns how long the programs have worked on c until now, which counts where
// one still does.
func (c *container) took(now time.Time) time.Duration {
	var sum time.Duration
	for _, s := range c.stages {
		if s.end.IsZero() {
			s.end = now
		}
		sum += s.end.Sub(s.start)
	}
	var measured time.Duration // by the programs, which work also between the stages
	for _, e := range c.results {
		measured += e.elapsed()
	}
	return max(sum, measured)
}

// changes returns what has been changed of c, for people.
func (c *container) changes() []string {
	var all []string
	for _, e := range c.results {
		if !e.Changed || e.Event == "ct.removed" && c.last("ct.ready") != nil { // which says it as well
			continue
		}
		switch e.Event {
		case "ct.started", "ct.stopped":
			all = append(all, e.Event[len("ct."):])
		case "ct.removed":
			all = append(all, "destroyed")
		case "ca.exported":
			all = append(all, "wrote "+e.Path)
		case "ca.rotation":
			all = append(all, "rotation of the root: "+e.Step)
		default:
			all = append(all, e.Changes...)
		}
	}
	return all
}

// last returns the last result of a name, nil where there is none.
func (c *container) last(name string) *event {
	for _, e := range slices.Backward(c.results) {
		if e.Event == name {
			return e
		}
	}
	return nil
}

// label returns the container's number and name.
func (c *container) label() string {
	if c.name == "" {
		return fmt.Sprint(c.ctid)
	}
	return fmt.Sprintf("%d %s", c.ctid, c.name)
}

// action returns the plan's action, "" where plan.started has not been seen.
func (r *run) action() string {
	if r.begin == nil {
		return ""
	}
	return r.begin.Action
}

// dryRun reports whether the run was to change nothing.
func (r *run) dryRun() bool { return r.begin != nil && r.begin.DryRun }

// all returns the containers in the order of the plan.
func (r *run) all() []*container {
	all := make([]*container, len(r.order))
	for i, id := range r.order {
		all[i] = r.containers[id]
	}
	return all
}

// with returns the containers of an outcome, in the order of the plan.
func (r *run) with(o outcome) []*container {
	var all []*container
	for _, id := range r.order {
		if c := r.containers[id]; c.outcome() == o {
			all = append(all, c)
		}
	}
	return all
}

// An ending is how a run has ended.
type ending int

const (
	well      ending = iota
	different        // something is to be changed: a dry run, or the action status
	broken
	stopped // by a signal
)

// ending returns how the run has ended. An exit status says more than the events,
// and is not always known.
func (r *run) ending() ending {
	if r.status > 128 {
		return stopped
	}
	if r.status == 3 {
		return different
	}
	if r.status > 0 || r.begin == nil || !r.done {
		return broken
	}
	if r.anyFailure() {
		return broken
	}
	for _, c := range r.containers {
		e := c.last("ct.status")
		if r.dryRun() && c.outcome() == changed || e != nil && e.condition() != asConfigured {
			return different
		}
	}
	return well
}

// anyFailure reports whether an event tells of a failure.
func (r *run) anyFailure() bool {
	return len(r.with(failed))+len(r.with(skipped)) > 0 ||
		slices.ContainsFunc(r.points, func(e *event) bool { return e.Result == "failed" })
}

// kind returns what kind of run it is: status, check or dry-run, which change nothing, or run.
func (r *run) kind() string {
	switch {
	case r.begin == nil:
		for _, c := range r.containers {
			for _, e := range c.results {
				switch e.Event {
				case "ct.status":
					return "status"
				case "ct.preview":
					return "dry-run"
				}
			}
		}
		if len(r.points) > 0 {
			return "check"
		}
	case r.begin.Action == "status", r.begin.Action == "check":
		return r.begin.Action
	case r.begin.DryRun:
		return "dry-run"
	}
	return "run"
}
