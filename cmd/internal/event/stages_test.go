package event

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each stage lasts until the next one begins, or until the end; one that begins again while it lasts is one.
func TestStages(t *testing.T) {
	now := time.Now()
	s := &Stages{now: func() time.Time { return now }}
	pass := func(ms int) { now = now.Add(time.Duration(ms) * time.Millisecond) }
	if took := s.Took(); took != nil {
		t.Errorf("without a stage: %v", took)
	}
	pass(1)
	for _, step := range []struct {
		stage string
		told  bool
		ms    int
	}{
		{"clone", true, 2300}, {"clone", false, 1}, {"waiting for a lock", true, 10}, {"clone", true, 5},
	} {
		if told := s.Begins(step.stage); told != step.told {
			t.Errorf("%s: told %t", step.stage, told)
		}
		pass(step.ms)
	}
	s.End()
	pass(7)
	if !s.Begins("clone") {
		t.Error("not told again after its end")
	}
	pass(3)
	want := []StageTime{{"clone", 2301}, {"waiting for a lock", 10}, {"clone", 5}, {"clone", 3}}
	if took := s.Took(); !slices.Equal(took, want) {
		t.Errorf("took %v, want %v", took, want)
	}
	pass(1)
	if took := s.Took(); took != nil {
		t.Errorf("a second time: %v", took)
	}
}

// An event has room for them, however many there were and whatever they were called.
func TestManyStages(t *testing.T) {
	now := time.Now()
	s := &Stages{now: func() time.Time { return now }}
	for i := range maxStages + 10 {
		s.Begins(fmt.Sprintf("%d %s", i, strings.Repeat("\x01", 1000)))
		now = now.Add(time.Millisecond)
	}
	took := s.Took()
	if len(took) != maxStages || took[maxStages-1] != (StageTime{otherStages, 11}) || took[maxStages-2].MS != 1 {
		t.Errorf("%d: …%v", len(took), took[len(took)-1])
	}
	if line, err := Append(nil, ContainerReady{CTID: 100, Stages: took}); err != nil || len(line) > 100<<10 {
		t.Errorf("%d bytes, %v", len(line), err)
	}
}
