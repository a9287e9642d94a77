package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// A look that waits for ever, as for a file system that does not answer, keeps no
// other from being reported.
func TestHungLook(t *testing.T) {
	before := looks
	defer func() { looks = before }()
	never := make(chan struct{})
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	looks = []look{
		{"first", func(*survey, context.Context) []point { return []point{good("fine")} }},
		{"hung", func(*survey, context.Context) []point {
			cancel(errors.New("enough"))
			<-never
			return nil
		}},
		{"last", func(*survey, context.Context) []point { return []point{good("fine")} }},
	}
	var out bytes.Buffer
	p := &provisioner{options: options{host: pve.Host{PVERoot: t.TempDir()}}}
	p.stream = event.NewStream(strings.NewReader(""), &out, p.fail)
	r := p.newRound(ctx, &event.PlanStarted{Action: "check"})
	r.states = func() (map[int]string, error) { return nil, nil }
	c := &config.Container{CTID: 103, Name: "ca"}
	r.checked = []*job{{c: c, records: r.records, options: r.options, emit: r.emit, datacenter: &sync.Once{}}}
	r.check()
	var have []string
	for line := range strings.Lines(out.String()) {
		ev, err := event.Parse([]byte(strings.TrimSpace(line)))
		if err != nil {
			t.Fatal(err)
		}
		p := ev.Body.(event.CheckPoint)
		have = append(have, p.Point+": "+p.Result+": "+p.Text)
	}
	want := "first: ok: fine, hung: left out: enough, last: ok: fine"
	if got := strings.Join(have, ", "); got != want {
		t.Errorf("have %s, want %s", got, want)
	}
}

// What many containers have in common is said once.
func TestFindingsAreGrouped(t *testing.T) {
	var f findings
	for id := 200; id < 212; id++ {
		f.add(&config.Container{CTID: id}, fails(remedy.Errorf("make it", "it is not there")))
	}
	f.add(&config.Container{CTID: 300}, fails(errors.New("another one")))
	f.add(&config.Container{CTID: 301}, fails(remedy.Errorf("make it elsewhere", "it is not there")))
	points := f.points()
	if len(points) != 3 || points[2].c.CTID != 301 || points[2].remedy != "make it elsewhere" ||
		points[0].c != nil || points[1].c.CTID != 300 || points[0].remedy != "make it" ||
		points[0].text != "it is not there (containers 200, 201, 202, 203, 204, 205, 206, 207, 208, 209, and 2 more)" {
		t.Errorf("%+v", points)
	}
}

func TestRoom(t *testing.T) {
	const gib = 1 << 30
	s := &survey{host: &pve.Host{PVERoot: t.TempDir()}}
	for _, c := range []struct {
		need
		state     string
		available int64
		want      string
	}{
		{need{gigabytes: 40, disks: 4}, "active", 100 * gib,
			"ok: active, 100.0 GiB free; 4 disks of 40 GiB in all still to be made"},
		{need{gigabytes: 40, disks: 4}, "active", 10 * gib,
			"ok: active, 10.0 GiB free; 4 disks of 40 GiB in all still to be made, which take room only as they are"},
		{need{gigabytes: 40, disks: 4}, "active", 3 * gib, "warning: 3.0 GiB free, and 4 disks of 40 GiB in all"},
		{need{}, "active", 0, "ok: active, 0.0 GiB free"},
		{need{}, "inactive", 0, "failed: it is inactive"},
	} {
		c.name = "local"
		points := s.checkNeed(&c.need, map[string]pve.StorageStatus{"local": {State: c.state, Available: c.available}})
		if have := points[0].result + ": " + points[0].text; len(points) != 1 || !strings.HasPrefix(have, c.want) {
			t.Errorf("%s, want %s", have, c.want)
		}
	}
	for want, status := range map[string]map[string]pve.StorageStatus{
		"left out": nil, "failed": {"other": {State: "active"}},
	} {
		if points := s.checkNeed(&need{name: "local"}, status); len(points) != 1 || points[0].result != want {
			t.Errorf("%+v, want %s", points, want)
		}
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestReach(t *testing.T) {
	const url = "https://example.test/a.tar.gz"
	for status, want := range map[int]string{200: "", 404: "404", 302: "it leads to http://other.test"} {
		err := reach(t.Context(), transport(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodHead || r.URL.String() != url {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			const evil = "any: run phoenix --rerun 1\x1b[2J" // of the server's own
			answer := &http.Response{StatusCode: status, Status: evil, Body: http.NoBody}
			answer.Header = http.Header{"Location": {"http://other.test/"}}
			return answer, nil
		}), url)
		if want == "" && err != nil || want != "" && (err == nil ||
			!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "any")) {
			t.Errorf("%d: %v, want %q", status, err, want)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(time.Millisecond, func() { cancel(errors.New("enough")) })
	err := reach(ctx, transport(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}), url)
	if err == nil || err.Error() != "enough" {
		t.Errorf("%v, want enough", err)
	}
}
