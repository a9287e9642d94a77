package main

import (
	"bytes"
	"crypto/x509"
	"net/netip"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/event"
)

// points has an exporter look, and returns what it has reported.
func points(t *testing.T, look func(*exporter)) []event.CheckPoint {
	t.Helper()
	var out bytes.Buffer
	e := &exporter{}
	e.stream = event.NewStream(strings.NewReader(""), &out, e.fail)
	look(e)
	var all []event.CheckPoint
	for line := range bytes.Lines(out.Bytes()) {
		ev, err := event.Parse(bytes.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ev.Body.(event.CheckPoint))
	}
	failed := false
	for _, p := range all {
		failed = failed || p.Result == event.CheckFailed
		if (p.Result == event.CheckFailed || p.Result == event.CheckWarning) == (p.Remedy == "") {
			t.Errorf("%+v", p)
		}
	}
	if failed != e.failed {
		t.Errorf("failed is %t with %+v", e.failed, all)
	}
	return all
}

func TestLifeOfTheRoot(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	root := &x509.Certificate{NotBefore: begin, NotAfter: begin.AddDate(10, 0, 0)}
	for now, want := range map[time.Time]string{
		begin.Add(-time.Second):        event.CheckFailed,
		begin:                          event.CheckOK,
		begin.AddDate(9, 11, 15):       event.CheckWarning,
		root.NotAfter.Add(time.Second): event.CheckFailed,
		root.NotAfter.Add(-soon - 1):   event.CheckOK,
		time.Unix(0, 0):                event.CheckFailed, // a host without a battery
	} {
		have := points(t, func(e *exporter) { e.checkLife(root, now) })
		if len(have) != 1 || have[0].Result != want {
			t.Errorf("at %s: %+v, want %s", now, have, want)
		}
	}
}

func TestClock(t *testing.T) {
	before := time.Unix(1_000_000, 900_000_000)
	after := before.Add(2 * time.Second)
	for seconds, want := range map[int64]string{
		1_000_000: event.CheckOK, 1_000_002: event.CheckOK,
		1_000_032: event.CheckOK, 1_000_033: event.CheckFailed,
		999_970: event.CheckOK, 999_969: event.CheckFailed, 0: event.CheckFailed,
	} {
		r := &report{before: before, after: after, clock: time.Unix(seconds, 0)}
		have := points(t, func(e *exporter) { e.checkClock(place{"CA", 103}, r) })
		if len(have) != 1 || have[0].Result != want {
			t.Errorf("at %d: %+v, want %s", seconds, have, want)
		}
	}
}

// What comes out of a container may be anything.
func TestReport(t *testing.T) {
	for out, wrong := range map[string]string{
		"1000\n":                      "",
		"1000\n1 no answer\n0 open\n": "",
		"1000\n0 open\n0 open\n":      "",
		"":                            "does not tell the time",
		"now\n0 open\n":               "does not tell the time",
		"1000\n2 open\n":              "something else than asked",
		"1000\n-1 open\n":             "something else than asked",
		"1000\n0 fine\n":              "something else than asked:\n| 0 fine",
		"1000\nopen\n":                "something else than asked",
	} {
		r := &report{results: make([]string, 2)}
		err := r.parse(out)
		if wrong == "" && err != nil || wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)) {
			t.Errorf("%q: %v, want %q", out, err, wrong)
		}
	}
}

func TestConnections(t *testing.T) {
	to := netip.MustParseAddr("fd00::12")
	r := &report{
		flows: []ca.Flow{
			{To: "proxy", ToCTID: 102, Dest: to, Port: 443}, {To: "CA", ToCTID: 103, Dest: to, Port: 9000},
			{To: "service nas", Dest: to, Port: 80}, {To: "service web", ToCTID: 500, Dest: to, Port: 80},
		},
		results: []string{"unreachable", "open", "no answer", ""},
	}
	var have []string
	for _, p := range points(t, func(e *exporter) { e.checkFlows(place{"gateway", 101}, r) }) {
		have = append(have, p.Point+": "+p.Result+": "+p.Text)
	}
	want := []string{
		"gateway to proxy: failed: the proxy at [fd00::12]:443 cannot be reached: unreachable",
		"gateway to service nas: warning: the service nas at [fd00::12]:80 cannot be reached: no answer",
		"gateway to service web: left out: the service web at [fd00::12]:80: the container has not told",
		"connections of the gateway: ok: open to the CA at [fd00::12]:9000",
	}
	if strings.Join(have, "\n") != strings.Join(want, "\n") {
		t.Errorf("have\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}
