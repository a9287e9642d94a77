package service

import (
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/event"
)

// status runs the filter of a program over the events of a plan that asks for its status, and returns the events
// nginx.status and nginx.failed that it has written.
func (f *fixture) status(t *testing.T, lines ...string) (statuses []event.NginxStatus, failed string, err error) {
	t.Helper()
	r := f.filter(t, append(append([]string{started(), f.planned("status")}, lines...), done())...)
	for l := range strings.Lines(r.out) {
		if ev, _ := event.Parse([]byte(l)); ev.Name == event.NameNginxStatus {
			statuses = append(statuses, ev.Body.(event.NginxStatus))
		}
	}
	if len(r.targets) > 0 {
		t.Error("it was set up")
	}
	return statuses, r.failure(), r.err
}

// The status is told once, whatever else the events say of the container, and nothing is set up.
func TestStatusOfWhatCannotBeAsked(t *testing.T) {
	f := newFixture(t)
	for name, tt := range map[string]struct {
		lines []string
		want  string
	}{
		"stopped": {[]string{of(gateway, "ct.status", `,"state":"stopped"`)}, "its container is stopped"},
		"missing, and a run would fail": {[]string{of(gateway, "ct.status", `,"state":"missing"`),
			of(gateway, "ct.failed", `,"stage":"define","error":"no"`)}, "its container is missing"},
		"not to be looked at": {[]string{of(gateway, "ct.failed", `,"stage":"define","error":"elsewhere"`)},
			"its container: elsewhere"},
		"skipped": {[]string{of(gateway, "ct.skipped", `,"reason":"the plan broke off"`)},
			"its container was skipped: the plan broke off"},
		"nothing is pinned": {[]string{of(gateway, "ct.status", `,"state":"running"`)},
			"no root certificate is pinned"},
		"with what a run says": {[]string{of(gateway, "ct.status", `,"state":"stopped"`), f.exported(), f.fingerprint(),
			of(gateway, "ct.ready", "")}, "its container is stopped"},
	} {
		statuses, failed, err := f.status(t, tt.lines...)
		if len(statuses) != 1 || !strings.HasPrefix(statuses[0].Error, tt.want) || failed != "" || err == nil ||
			statuses[0].OutOfReach || statuses[0].Certificates == nil {
			t.Errorf("%s: %+v, failed %q, %v; want %q", name, statuses, failed, err, tt.want)
		}
	}
	// phx-lxc has said nothing.
	statuses, failed, err := f.status(t)
	if len(statuses) != 0 || !strings.Contains(failed, "no ct.status of the container has come") || err == nil {
		t.Errorf("%+v, failed %q, %v", statuses, failed, err)
	}
}

// Names in somebody's certificate, which are in errors, cannot begin a line.
func TestErrorsOfOneLine(t *testing.T) {
	if got := cmdline.OneLine("a\nphx-nginx: all well\x1b[2J"); got != `a\nphx-nginx: all well\x1b[2J` {
		t.Errorf("%q", got)
	}
}

// Of many problems the first are said.
func TestManyProblems(t *testing.T) {
	s := &serviceStatus{}
	for range 100 {
		s.Certificates = append(s.Certificates, event.Certificate{Name: "a.example", Error: "expired"})
	}
	if all := s.problems(); len(all) != 17 || all[0] != "a.example: expired" || all[16] != "and 84 more" {
		t.Errorf("%d: %q", len(all), all)
	}
}
