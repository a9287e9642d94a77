package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"testing"
	"time"
)

// keepDir is a directory for the pages and pictures of the tests, for people to
// look at.
var keepDir = flag.String("keep", "", "a `directory` for the pages and pictures of the tests")

// A script writes a stream of events, as the programs would.
type script struct {
	out   bytes.Buffer
	now   time.Time
	limit time.Time
}

func newScript() *script { return &script{now: time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)} }

// say writes an event at a number of seconds after the run has begun. Fields are
// in pairs: key, value.
func (s *script) say(at float64, name string, fields ...any) {
	e := map[string]any{"event": name, "time": s.now.Add(time.Duration(at * float64(time.Second)))}
	for i := 0; i < len(fields); i += 2 {
		e[fields[i].(string)] = fields[i+1]
	}
	text, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	s.out.Write(append(text, '\n'))
}

func (s *script) run(t *testing.T) *run {
	t.Helper()
	r := newRun()
	if err := readRuns(bytes.NewReader(s.out.Bytes()), func(last *run) error { r = last; return nil }); err != nil {
		t.Fatal(err)
	}
	return r
}

func place_(id int) map[string]any { return map[string]any{"ctid": id, "ip": "10.0.0.1"} }

const (
	rootSHA = "d1088fa67fb5dda6a2dc5ef392f15a80011fff5124e4720f38a77703b8988ec6"
	leafSHA = "7c11a3a3e4a26b0b9e2a5f7f8c2b6cc8a2f9d1d6c4f7e6d1b1b5a0a4a8e0f3d2"
)

func certificates(names ...string) []map[string]any {
	var all []map[string]any
	for _, name := range names {
		all = append(all, map[string]any{"name": name, "issuer": "Thinkheads.AI Intermediate CA", "sha256": leafSHA,
			"not_after": "2026-01-03T15:04:27Z"})
	}
	return all
}

// manyContainers is a run of n containers: a template, a CA, a proxy, a gateway
// and others, that clone the template, some of them in chains. One fails, and
// what needs it is skipped.
func manyContainers(n int) *script {
	s := newScript()
	names := map[int]string{900: "Copy-Base", 103: "Step-CA", 102: "Traefik-Internal", 101: "Nginx-Phoenix"}
	needs := map[int][]int{900: {}, 103: {900}, 102: {103, 900}, 101: {900}}
	order := []int{900, 103, 102, 101}
	for i := range n - 4 {
		id := 200 + i
		order = append(order, id)
		names[id] = []string{"web", "db", "queue", "build", "mail"}[i%5] + fmt.Sprint("-", i/5+1)
		needs[id] = []int{900}
		if i%5 == 0 && i+1 < n-4 {
			needs[id] = append(needs[id], id+1) // a web server needs its database
		}
		if i%25 == 2 {
			needs[id] = append(needs[id], 102)
		}
	}
	s.say(0, "plan.started", "round", "TZZGMY4CBOJ22AL2QVOONPS6KR", "action", "create", "count", n, "order", order,
		"config", "/etc/phx/phoenix_lxc_configs.json", "domain", "internal.thinkheads.ai",
		"ca", place_(103), "proxy", place_(102), "gateway", place_(101))
	for _, id := range order {
		s.say(0.01, "ct.planned", "ctid", id, "name", names[id], "action", "create", "needs", needs[id],
			"external", []int{}, "config", map[string]any{"name": names[id]})
	}
	work := func(id int, from float64, stages ...any) float64 {
		begin := from
		for i := 0; i < len(stages); i += 2 {
			s.say(from, "ct.stage", "ctid", id, "program", "phx-lxc", "stage", stages[i])
			from += stages[i+1].(float64)
		}
		s.say(from, "ct.ready", "ctid", id, "name", names[id], "ip", fmt.Sprintf("10.0.%d.%d", id/250, id%250),
			"changed", true, "changes", []string{"cloned from 900@final-form", "memory 1024", "started"},
			"restart_required", []string{}, "application_script", "", "elapsed_ms", int((from-begin)*1000))
		return from
	}
	base := work(900, 0.05, "create", 4.2, "start", 1.1, "base_setup", 6.5, "step_cli", 1.2, "snapshot", 0.8)
	ca := work(103, base+0.02, "clone", 2.1, "configure", 0.4, "start", 1.3, "step_ca", 3.8, "health check", 0.6)
	s.say(ca+0.01, "ct.stage", "ctid", 103, "program", "phx-ca-export", "stage", "export")
	s.say(ca+0.4, "ca.exported", "ctid", 103, "path", "/usr/local/phoenix_hypervisor/persistent-storage/ssl/phoenix_ca.crt",
		"sha256", rootSHA, "ca_url", "https://10.0.0.10:9000", "changed", true, "subject", "Thinkheads.AI Root CA",
		"not_after", "2035-12-31T15:04:12Z")
	gateway := work(101, base+0.02, "clone", 1.6, "configure", 0.3, "start", 1.2)
	s.say(ca+0.5, "ct.stage", "ctid", 101, "program", "phx-nginx", "stage", "packages")
	s.say(ca+3.5, "ct.stage", "ctid", 101, "program", "phx-nginx", "stage", "certificate")
	s.say(max(gateway, ca)+4.9, "nginx.ready", "ctid", 101, "names", []string{"*.internal.thinkheads.ai"}, "changed", true,
		"changes", []string{"installed nginx"}, "not_after", "2026-01-03T15:04:27Z",
		"certificates", certificates("internal.thinkheads.ai", "*.internal.thinkheads.ai"), "elapsed_ms", 4400)
	proxy := work(102, ca+0.02, "clone", 1.4, "configure", 0.4, "start", 1.2, "traefik", 2.2)
	s.say(proxy+0.01, "ct.stage", "ctid", 102, "program", "phx-traefik", "stage", "apply")
	s.say(proxy+3.1, "traefik.ready", "ctid", 102, "names", []string{"gateway.internal.thinkheads.ai"}, "changed", true,
		"changes", []string{"hosts of container 103"}, "not_after", "2026-01-03T15:04:27Z",
		"certificates", certificates("gateway.internal.thinkheads.ai", "ca.internal.thinkheads.ai"), "elapsed_ms", 3100)
	for i, id := range order[4:] {
		from := base + float64(i/8)*2.7 + float64(i%8)*0.3
		switch {
		case i == 6:
			s.say(from, "ct.stage", "ctid", id, "program", "phx-lxc", "stage", "clone")
			s.say(from+1, "ct.stage", "ctid", id, "program", "phx-lxc", "stage", "start")
			s.say(from+2.5, "ct.failed", "ctid", id, "name", names[id], "stage", "start", "error",
				"pct start "+fmt.Sprint(id)+": exit status 1\n| lxc-start: startup failed\n| cgroup: no space left")
		case i == 5:
			s.say(from+3, "ct.skipped", "ctid", id, "name", names[id],
				"reason", fmt.Sprintf("container %d is not ready", id+1), "because", id+1)
		case i%7 == 3:
			s.say(from, "ct.ready", "ctid", id, "name", names[id], "ip", "", "changed", false, "changes", []string{},
				"restart_required", []string{"memory"}, "application_script", "", "elapsed_ms", 120)
		default:
			work(id, from, "clone", 1.1, "configure", 0.4, "start", 1.0)
		}
	}
	s.say(2, "warning", "ctid", 900, "program", "phx-lxc", "text", "no snapshot pre-configured: the storage local has none")
	s.say(0, "plan.done", "round", "TZZGMY4CBOJ22AL2QVOONPS6KR", "count", n)
	return s
}
