package event

import "time"

// StageTime is how long a stage of the work on a container took.
type StageTime struct {
	Stage string `json:"stage"` // as in [ContainerStage]
	MS    int64  `json:"ms"`    // milliseconds
}

// maxStages is how many an event names. Those that begin after the last but one are
// [otherStages].
const (
	maxStages   = 64
	otherStages = "others"
)

// Stages measures the stages of one work on a container. Each ends when the next one
// begins, or with the work.
type Stages struct {
	told  string // what has begun last
	since time.Time
	took  []StageTime

	now func() time.Time // nil for time.Now
}

// Begins notes that a stage begins, and reports whether that is to be told: once,
// and again after another one.
func (s *Stages) Begins(stage string) bool {
	if stage == s.told {
		return false
	}
	s.end()
	s.told, s.since = stage, s.clock()
	return true
}

// End ends the last stage: what follows is not measured before the next one begins.
func (s *Stages) End() {
	s.end()
	s.told = ""
}

// Took ends the work, and returns how long each stage has taken, in the order in which
// they began; nil when there was none.
func (s *Stages) Took() []StageTime {
	s.End()
	took := s.took
	s.took = nil
	return took
}

func (s *Stages) end() {
	if s.told == "" {
		return
	}
	t := StageTime{shorten(s.told, maxStage), s.clock().Sub(s.since).Milliseconds()}
	switch n := len(s.took); {
	case n < maxStages-1:
		s.took = append(s.took, t)
	case n < maxStages:
		s.took = append(s.took, StageTime{otherStages, t.MS})
	default:
		s.took[n-1].MS += t.MS
	}
}

func (s *Stages) clock() time.Time {
	if s.now == nil {
		return time.Now()
	}
	return s.now()
}
