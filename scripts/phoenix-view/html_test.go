package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
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

// hostile is a stream of all that somebody who writes into it could think of.
func hostile() *script {
	s := newScript()
	evil := []string{
		`<script>document.title='CANARY-RAN'</script>`,
		`"><img src=http://canary.example/x onerror="document.title='CANARY-RAN'">`,
		`</title></style></svg><svg onload="document.title='CANARY-RAN'"><script>document.title='CANARY-RAN'</script>`,
		`</style><style>@import url(http://canary.example/css); body{background:url(http://canary.example/bg)}</style>`,
		`javascript:document.title='CANARY-RAN'`,
		`<iframe src="http://canary.example/frame" srcdoc="<script>parent.document.title='CANARY-RAN'</script>"></iframe>`,
		`<link rel=stylesheet href=http://canary.example/link><meta http-equiv=refresh content="0;url=http://canary.example/">`,
		`{{.Policy}}{{template "lines"}} url(#tip) --><!-- ]]> &lt;script&gt;`,
		"RTL \u202e\u2066gnp.exe\u2069\u200f \u05d0\u05d1 end",
		"control \x00\x07\x1b[2J\u0085\ufeff\u2028 end",
		"zalgo e" + strings.Repeat("\u0301", 500) + " end",
		strings.Repeat("long", 40000),
		strings.Repeat("line\n", 20000),
	}
	n := 0
	next := func() string { n++; return evil[n%len(evil)] }
	many := func() []string { return evil }
	s.say(0, "plan.started", "round", next(), "action", evil[0], "count", 3, "order", []int{100, 101, 102, 103, 104, 103},
		"config", evil[1], "domain", evil[2], "ca", place_(100), "proxy", place_(101), "gateway", place_(102))
	for id := 100; id < 105; id++ { // each needs the next one, in a circle, itself, and what is not there
		s.say(0, "ct.planned", "ctid", id, "name", next(), "needs", []int{100 + (id-99)%5, id, 999, -1}, "external", []int{7, -7})
	}
	for range evil {
		name := next()
		s.say(1, "warning", "ctid", 100, "program", name, "text", next())
		s.say(1, "warning", "program", next(), "text", name)
		s.say(-500, "ct.stage", "ctid", 100, "program", "phx-lxc", "stage", name)
		s.say(9, "ct.stage", "ctid", 101, "program", name, "stage", name)
		s.say(3, "ct.ready", "ctid", 101, "name", name, "ip", name, "ips", many(), "changed", true, "changes", many(),
			"restart_required", many(), "template_differs", many(), "elapsed_ms", int64(1)<<62)
		s.say(2, "ct.failed", "ctid", 100, "name", name, "stage", name, "error", next())
		s.say(1, "ct.skipped", "ctid", 102, "name", name, "reason", name, "because", -5)
		s.say(4, "ct.status", "ctid", 103, "name", name, "state", name, "ha", name, "lock", name, "snapshots", many(),
			"drift", many(), "elapsed_ms", -(int64(1) << 62))
		s.say(4, "ct.preview", "ctid", 104, "name", name, "changed", true, "commands", [][]string{many(), {}},
			"files", []map[string]string{{"path": name, "diff": name + "\n+" + name + "\n-" + name + "\n@@"}})
		s.say(5, "ca.exported", "ctid", 100, "path", name, "sha256", name, "also", name, "ca_url", name, "subject", name,
			"not_after", "9999-12-31T23:59:59Z")
		s.say(5, "ca.status", "ctid", 100, "path", name, "sha256", name, "pinned", next(), "serves", next(), "error", name)
		s.say(5, "ca.rotation", "ctid", 100, "step", name, "sha256", name, "also", name)
		s.say(5, "ca.failed", "ctid", 100, "error", name)
		s.say(1e9, "nginx.ready", "ctid", 102, "names", many(), "not_after", "0001-01-01T00:00:00Z")
		s.say(6, "traefik.status", "ctid", 101, "address", name, "error", next(), "certificates",
			[]map[string]any{{"name": name, "issuer": next(), "sha256": name, "error": next()},
				{"name": next(), "issuer": name, "not_after": "1970-01-01T00:00:00Z"}})
		s.say(6, "traefik.failed", "ctid", 101, "stage", name, "error", next())
		s.say(6, "check.point", "ctid", 101, "program", name, "point", name, "result", name, "text", next(), "remedy", name)
		s.say(6, name, "ctid", 101)
	}
	for _, raw := range []string{
		`{"event":"ct.ready","time":"NaN","ctid":100}`, `{"event":"ct.ready","time":1e400,"ctid":100}`,
		`{"event":"ct.ready","ctid":1e30}`, `{"event":"ct.ready","ctid":"<b>"}`, `[]`, `null`, `{`, "\xff\xfe\x00",
		`{"event":"ct.stage","ctid":-1,"program":"phx-lxc","stage":"x"}`, // no time
		`{"event":"ct.ready","ctid":100,"time":"0001-01-01T00:00:00Z","elapsed_ms":9223372036854775807}`,
		`{"event":"ct.ready","ctid":100,"time":"9999-12-31T23:59:59Z"}`,
		`{"event":"` + strings.Repeat("x", 2<<20) + `"}`,
	} {
		s.out.WriteString(raw + "\n")
	}
	s.out.WriteString(`{"event":"ct.failed","ctid":103,"error":"no newline at the end"`)
	return s
}

// pages are the runs of which the tests make pages, by name.
func pages() map[string]*script {
	status := newScript()
	status.say(0, "plan.started", "round", "R", "action", "status", "order", []int{900, 101, 102, 103}, "config", "/c.json",
		"domain", "internal.thinkheads.ai")
	status.say(0.2, "ct.status", "ctid", 900, "name", "Copy-Base", "state", "stopped", "template", true, "snapshots",
		[]string{"final-form"})
	status.say(0.3, "ct.status", "ctid", 101, "name", "Nginx-Phoenix", "state", "running", "ip", "10.0.0.153",
		"drift", []string{"memory 2048"}, "ha", "started", "restart_required", []string{"memory"})
	status.say(0.3, "ct.status", "ctid", 102, "name", "Traefik-Internal", "state", "running", "lock", "backup",
		"firewall_not_in_force", true)
	status.say(0.3, "ct.status", "ctid", 103, "name", "Step-CA", "state", "missing", "drift", []string{"create"})
	status.say(0.4, "ca.status", "ctid", 103, "path", "/ca.crt", "sha256", rootSHA, "pinned", rootSHA,
		"subject", "Thinkheads.AI Root CA", "not_after", "2026-02-01T00:00:00Z", "error", "the CA does not answer")
	status.say(0.5, "nginx.status", "ctid", 101, "address", "10.0.0.153:443",
		"certificates", certificates("ca.internal.thinkheads.ai"))
	status.say(0.5, "traefik.status", "ctid", 102, "address", "10.0.0.12:443", "certificates", []map[string]any{
		{"name": "ca.internal.thinkheads.ai", "error": "x509: certificate has expired or is not yet valid"}})
	status.say(0.1, "plan.done", "round", "R")

	check := newScript()
	check.say(0, "plan.started", "round", "R", "action", "check", "order", []int{101}, "config", "/c.json")
	check.say(0, "ct.planned", "ctid", 101, "name", "Nginx-Phoenix", "needs", []int{})
	check.say(0.2, "check.point", "program", "phx-lxc", "point", "storage local-zfs", "result", "ok", "text", "12 GiB free")
	check.say(0.2, "check.point", "ctid", 101, "program", "phx-lxc", "point", "template debian-12", "result", "failed",
		"text", "the archive is not there", "remedy", "pveam download local debian-12")
	check.say(0.1, "plan.done", "round", "R")

	preview := newScript()
	preview.say(0, "plan.started", "round", "R", "action", "create", "dry_run", true, "order", []int{101, 102})
	preview.say(0.3, "ct.preview", "ctid", 101, "name", "Nginx-Phoenix", "changed", true, "commands",
		[][]string{{"pct", "set", "101", "--memory", "2048"}, {"pct", "exec", "101", "--", "sh", "-c", "echo 'a b'"}},
		"files", []map[string]string{{"path": "/etc/pve/firewall/101.fw",
			"diff": "--- a\n+++ b\n@@ -1,1 +1,1 @@\n-policy_in: ACCEPT\n+policy_in: DROP\n"}})
	preview.say(0.3, "ct.preview", "ctid", 102, "name", "Traefik-Internal", "changed", false)
	preview.say(0, "plan.done", "round", "R")

	short := manyContainers(4)
	at := bytes.Index(short.out.Bytes(), []byte(`"stage":"traefik"`)) // which is under way when all ends
	short.out.Truncate(at + bytes.IndexByte(short.out.Bytes()[at:], '\n') + 1)

	return map[string]*script{"4": manyContainers(4), "14": manyContainers(14), "200": manyContainers(200), "hostile": hostile(),
		"status": status, "check": check, "dry-run": preview, "cut-short": short}
}
