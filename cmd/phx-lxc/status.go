package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/event"
)

// reportStatus finds out how the container is and, by a preview, what a run would
// change. Where a run would fail at once, the status is reported as well as the
// error.
func (j *job) reportStatus(ctx context.Context) error {
	status := &event.ContainerStatus{
		CTID: j.c.CTID, Name: j.c.Name, State: j.ct.State(), Template: j.ct.IsTemplate(), Lock: j.ct.Lock(),
		IP: address(j.c), IPs: addresses(j.c), Snapshots: j.ct.SnapshotNames(),
		Applied: maps.Clone(j.ct.Record), Drift: []string{}, RestartRequired: []string{},
	}
	var err error
	if status.HA, err = j.ct.HAState(); err != nil {
		return j.refuse(status, err)
	}
	if j.ct.Conf != nil {
		if err := j.ct.ClearRestartIfDone(ctx); err != nil { // by others
			return j.refuse(status, err)
		}
		status.RestartRequired = j.ct.RestartRequired()
	}
	j.quiet = true
	if j.ct.Conf == nil && !j.knowsSource() {
		status.Drift = []string{"cloned from " + strconv.Itoa(j.c.CloneFrom)}
	} else {
		err = j.converge(ctx)
		status.Drift, status.NotInForce, status.TemplateDiffers = slices.Clone(j.changes), j.notInForce, j.differs
	}
	j.quiet = false
	if err != nil {
		status.Drift = []string{} // a run would change nothing
		return j.refuse(status, err)
	}
	j.logf("%s", describeStatus(status))
	j.status = status
	return nil
}

// refuse reports the status of a container with which a run would fail for err,
// which it returns.
func (j *job) refuse(status *event.ContainerStatus, err error) error {
	j.logf("%s", describeStatus(status))
	j.emit(*status)
	return err
}

// knowsSource reports whether it is known what the container would be made of.
func (j *job) knowsSource() bool {
	return j.source == nil || j.source.container != nil && j.source.conf != nil
}

// hasStatus returns what reportStatus has found.
func (j *job) hasStatus(time.Duration) event.Body { return *j.status }

// describeStatus is a status for people, in a line.
func describeStatus(s *event.ContainerStatus) string {
	text := s.State
	if s.Template {
		text += ", a template"
	}
	if s.Lock != "" {
		text += fmt.Sprintf(", locked (%s)", s.Lock)
	}
	if len(s.Drift) > 0 {
		text += "; a run would change: " + strings.Join(s.Drift, ", ")
	}
	if len(s.RestartRequired) > 0 {
		text += "; a restart is due for: " + strings.Join(s.RestartRequired, " ")
	}
	return text
}
