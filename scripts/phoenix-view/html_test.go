package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keepDir is a directory for the pages and pictures of the tests, for people to
// look at.
var keepDir = flag.String("keep", "", "a `directory` for the pages and pictures of the tests")

// A script writes a stream of events, as the programs would.
type script struct {
	out bytes.Buffer
	now time.Time
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
	s.say(ca+0.4, "ca.exported", "ctid", 103,
		"path", "/usr/local/phoenix_hypervisor/persistent-storage/ssl/phoenix_ca.crt", "sha256", rootSHA,
		"ca_url", "https://10.0.0.10:9000",
		"changed", true, "subject", "Thinkheads.AI Root CA", "not_after", "2035-12-31T15:04:12Z")
	gateway := work(101, base+0.02, "clone", 1.6, "configure", 0.3, "start", 1.2)
	s.say(ca+0.5, "ct.stage", "ctid", 101, "program", "phx-nginx", "stage", "packages")
	s.say(ca+3.5, "ct.stage", "ctid", 101, "program", "phx-nginx", "stage", "certificate")
	s.say(max(gateway, ca)+4.9, "nginx.ready", "ctid", 101, "names", []string{"*.internal.thinkheads.ai"},
		"changed", true, "changes", []string{"installed nginx"}, "not_after", "2026-01-03T15:04:27Z",
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
	s.say(2, "warning", "ctid", 900, "program", "phx-lxc",
		"text", "no snapshot pre-configured: the storage local has none")
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
		`<iframe src="http://canary.example/f" srcdoc="<script>parent.document.title='CANARY-RAN'</script>"></iframe>`,
		`<link rel=stylesheet href=http://canary.example/link>`,
		`<meta http-equiv=refresh content="0;url=http://canary.example/">`,
		`{{.Policy}}{{template "lines"}} url(#tip) --><!-- ]]> &lt;script&gt;`,
		"RTL \u202e\u2066gnp.exe\u2069\u200f \u05d0\u05d1 end",
		"control \x00\x07\x1b[2J\u0085\ufeff\u2028 end",
		"zalgo e" + strings.Repeat("\u0301", 500) + " end",
		strings.Repeat("long", 4000),
		strings.Repeat("line\n", 3000),
	}
	n := 0
	next := func() string { n++; return evil[n%len(evil)] }
	many := func() []string { return evil }
	s.say(0, "plan.started", "round", next(), "action", evil[0], "count", 3,
		"order", []int{100, 101, 102, 103, 104, 103}, "config", evil[1], "domain", evil[2],
		"ca", place_(100), "proxy", place_(101), "gateway", place_(102))
	for id := 100; id < 105; id++ { // each needs the next one, in a circle, itself, and what is not there
		s.say(0, "ct.planned", "ctid", id, "name", next(), "needs", []int{100 + (id-99)%5, id, 999, -1},
			"external", []int{7, -7})
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
		s.say(5, "ca.exported", "ctid", 100, "path", name, "sha256", name, "also", name, "ca_url", name,
			"subject", name, "not_after", "9999-12-31T23:59:59Z")
		s.say(5, "ca.status", "ctid", 100, "path", name, "sha256", name, "pinned", next(),
			"serves", next(), "error", name)
		s.say(5, "ca.rotation", "ctid", 100, "step", name, "sha256", name, "also", name)
		s.say(5, "ca.failed", "ctid", 100, "error", name)
		s.say(1e9, "nginx.ready", "ctid", 102, "names", many(), "not_after", "0001-01-01T00:00:00Z")
		s.say(6, "traefik.status", "ctid", 101, "address", name, "error", next(), "certificates",
			[]map[string]any{{"name": name, "issuer": next(), "sha256": name, "error": next()},
				{"name": next(), "issuer": name, "not_after": "1970-01-01T00:00:00Z"}})
		s.say(6, "traefik.failed", "ctid", 101, "stage", name, "error", next())
		s.say(6, "check.point", "ctid", 101, "program", name, "point", name, "result", name,
			"text", next(), "remedy", name)
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
	status.say(0, "plan.started", "round", "R", "action", "status", "order", []int{900, 101, 102, 103},
		"config", "/c.json", "domain", "internal.thinkheads.ai")
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
	check.say(0.2, "check.point", "program", "phx-lxc", "point", "storage local-zfs", "result", "ok",
		"text", "12 GiB free")
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

	return map[string]*script{
		"4": manyContainers(4), "14": manyContainers(14), "200": manyContainers(200), "hostile": hostile(),
		"status": status, "check": check, "dry-run": preview, "cut-short": short,
	}
}

// TestPages: what each kind of run leads to is on its page, also where a run tells
// little, or was cut short.
func TestPages(t *testing.T) {
	all := pages()
	for name, want := range map[string][]string{
		"4": {
			"phoenix create: All well: 4 of 4 containers were changed.", "/etc/phx/phoenix_lxc_configs.json",
			"2026-01-02 15:04:05 UTC", "no snapshot pre-configured", "step_ca", "Critical path", `href="#ct-103"`,
			rootSHA, leafSHA, "Thinkheads.AI Root CA", "Thinkheads.AI Intermediate CA", "*.internal.thinkheads.ai",
			"2035-12-31 15:04 UTC, 3649 days after the run", "101 waits for the fingerprint of 103's root",
		},
		"14": {
			"1 of 14 containers has failed.", "1 failed", "1 skipped", "restart required", "container 206 is not ready",
			"pct start 206: exit status 1\n| lxc-start: startup failed\n| cgroup: no space left",
		},
		"200":       {"170 changed", "28 unchanged", "and 16 more", "395 web-40"},
		"cut-short": {"It was cut short", "1 not finished", "phx-lxc: traefik, since 25.1 s", "not finished</li>"},
		"status": {
			"2 of 4 containers are not as they should be.", "memory 2048", "HA keeps it", "locked for", "backup",
			"x509: certificate has expired", "the CA does not answer", "the same", "snapshots", "expires 2026-02-01",
			"configured, and not in force",
		},
		"check": {"1 of 2 points would make a run fail.", "storage local-zfs", "pveam download local debian-12",
			"1 ok"},
		"dry-run": {
			"1 of 2 containers would be changed.", "pct set 101 --memory 2048", `sh -c 'echo '\''a b'\'''`,
			`class="plus">+policy_in: DROP`,
		},
	} {
		page := html.UnescapeString(string(content(t, all[name])))
		for _, w := range want {
			if !strings.Contains(page, w) {
				t.Errorf("%s: %q is not on the page", name, w)
			}
		}
	}
}

// TestHostilePage: what events say is text on the page and nothing else, and a page
// of endless events has an end.
func TestHostilePage(t *testing.T) {
	page := content(t, hostile())
	elements := regexp.MustCompile(`(?i)<(script|img|iframe|link|object|form|input)|<svg on|href="[^#]`)
	if m := elements.Find(page); m != nil {
		t.Errorf("an element of the events is in the page: %s", m)
	}
	if n := bytes.Count(page, []byte("<style>")); n != 1 {
		t.Errorf("%d styles", n)
	}
	for _, r := range "\u202e\u2066\u200f\x00\x1b\u2028\ufeff" {
		if bytes.ContainsRune(page, r) {
			t.Errorf("the page has %q as it is", r)
		}
	}
	if len(page) > 4<<20 {
		t.Errorf("the page has %d bytes", len(page))
	}
	for _, m := range regexp.MustCompile(` (?:x|width)="([^"]*)"`).FindAllSubmatch(page, -1) {
		if v, err := strconv.ParseFloat(strings.TrimSuffix(string(m[1]), "%"), 64); err != nil || v < -10 || v > 1e5 {
			t.Errorf("a length of %s", m[1])
		}
	}
}

// TestPagePolicy: the policy has the hash of the style that is in the page, and
// allows nothing else.
func TestPagePolicy(t *testing.T) {
	page := string(content(t, manyContainers(4)))
	_, style, _ := strings.Cut(page, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	want := "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-" +
		base64.StdEncoding.EncodeToString(sum[:]) + "'"
	_, policy, _ := strings.Cut(page, `"Content-Security-Policy" content="`)
	policy, _, _ = strings.Cut(policy, `"`)
	if policy = html.UnescapeString(policy); policy != want {
		t.Errorf("the policy is %s, want %s", policy, want)
	}
	if strings.Contains(page, "style=") {
		t.Error("there is a style in an attribute, which the policy forbids")
	}
}

// TestPageIsWrittenWhole: a page that cannot be written leaves the old one, and
// nothing that is half a page.
func TestPageIsWrittenWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run.html")
	r := manyContainers(4).run(t)
	if err := writePage(path, r); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(path)
	if err := writePage(path, newRun()); err == nil {
		t.Error("a page of nothing")
	}
	err := writePage(filepath.Join(dir, "no", "run.html"), r)
	if err == nil || !strings.Contains(err.Error(), "write the page") {
		t.Errorf("in a directory that is not there: %v", err)
	}
	after, _ := os.ReadFile(path)
	if files, _ := os.ReadDir(dir); len(files) != 1 || !bytes.Equal(before, after) ||
		!bytes.HasSuffix(after, []byte("</html>\n")) {
		t.Errorf("%v, %d bytes before, %d after", files, len(before), len(after))
	}
}

// TestDevicesAreNotReplaced: a page or metrics that are written to /dev/stdout or
// /dev/null leave these as they are.
func TestDevicesAreNotReplaced(t *testing.T) {
	dir := t.TempDir()
	link, pipe := filepath.Join(dir, "stdout"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.Symlink("/proc/self/fd/1", link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	r := manyContainers(4).run(t)
	for _, path := range []string{link, pipe} {
		before, _ := os.Lstat(path)
		if err := writePage(path, r); err == nil {
			t.Errorf("the page is written to %s", path)
		}
		if err := writeMetrics(path, r, time.Now()); err == nil {
			t.Errorf("the metrics are written to %s", path)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s is another one: %v", path, err)
		}
	}
}

// TestManyOfAKind: what very many warnings, stages and lines become is bounded, and
// does not take for ever.
func TestManyOfAKind(t *testing.T) {
	s := newScript()
	s.say(0, "plan.started", "action", "check", "order", []int{101})
	for i := range 3_000 {
		s.say(1, "warning", "ctid", 101, "program", "p", "text", fmt.Sprint("something ", i))
		s.say(1, "warning", "ctid", 102, "program", "p", "text", fmt.Sprint("something else ", i))
	}
	stage := `{"event":"ct.stage","time":"2026-01-02T15:04:06Z","ctid":101,"program":"p%d","stage":"s"}` + "\n"
	for i := range 100_000 {
		fmt.Fprintf(&s.out, stage, i)
	}
	s.say(2, "check.point", "program", "p", "point", "x", "result", "failed", "text", strings.Repeat("x\n", 200_000),
		"remedy", strings.Repeat("y\n", 50_000))
	r := s.run(t)
	if page := content(t, s); len(page) > 2<<20 || bytes.Count(page, []byte("something")) > 4*maxList {
		t.Errorf("the page has %d bytes, %d warnings", len(page), bytes.Count(page, []byte("something")))
	}
	if lines := (&screen{}).point(r, r.points[0]); len(lines) > 3*maxError {
		t.Errorf("%d lines are shown of a point", len(lines))
	}
	if n := len(r.containers[101].stages); n != 100_000 {
		t.Errorf("%d stages", n)
	}
}

// TestCriticalPath: it goes from what ended last to what that waited for longest:
// what it needs, or the fingerprint.
func TestCriticalPath(t *testing.T) {
	way := func(s *script) string {
		r := s.run(t)
		var names []string
		for _, w := range r.criticalPath(r.works()) {
			names = append(names, fmt.Sprint(w.ctid, " ", w.program))
		}
		return strings.Join(names, ", ")
	}
	if got, want := way(manyContainers(4)), "900 phx-lxc, 103 phx-lxc, 102 phx-lxc, 102 phx-traefik"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}

	// The gateway's container is ready long before the root is exported.
	s := newScript()
	s.say(0, "plan.started", "order", []int{101, 103})
	s.say(1, "ct.ready", "ctid", 101, "elapsed_ms", 1000)
	s.say(5, "ct.ready", "ctid", 103, "elapsed_ms", 5000)
	s.say(6, "ca.exported", "ctid", 103, "sha256", rootSHA)
	s.say(9, "nginx.ready", "ctid", 101, "elapsed_ms", 3000)
	if got, want := way(s), "103 phx-lxc, 103 phx-ca-export, 101 phx-nginx"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// Where nothing is to be done on a container, gateway and proxy do not wait for its health checks.
	s = newScript()
	s.say(0, "plan.started", "order", []int{101, 103})
	s.say(1, "ct.running", "ctid", 101)
	s.say(1, "ct.running", "ctid", 103)
	s.say(2, "ca.exported", "ctid", 103, "sha256", rootSHA)
	s.say(4, "ct.ready", "ctid", 103, "elapsed_ms", 4000)
	s.say(5, "ct.ready", "ctid", 101, "elapsed_ms", 5000)
	s.say(6, "nginx.ready", "ctid", 101, "elapsed_ms", 4000)
	if got, want := way(s), "103 phx-ca-export, 101 phx-nginx"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}

	if got := way(hostile()); !strings.Contains(got, " phx-") { // it ends, for one thing
		t.Errorf("got %s", got)
	}
}

// TestMadeAndSkipped: the work on a container that was made and not started ends when it is skipped.
func TestMadeAndSkipped(t *testing.T) {
	s := newScript()
	s.say(0, "plan.started", "order", []int{101, 102, 103})
	s.say(1, "ct.stage", "ctid", 102, "program", "phx-lxc", "stage", "clone")
	s.say(3, "ct.failed", "ctid", 103, "stage", "start")
	s.say(3, "ct.skipped", "ctid", 102, "because", 103, "created", true)
	s.say(3, "ct.skipped", "ctid", 101, "because", 103)
	s.say(9, "plan.done")
	works := s.run(t).works()
	if len(works[102]) != 1 || len(works[101]) != 0 {
		t.Fatalf("%d works on what was made, %d on what was not", len(works[102]), len(works[101]))
	}
	if w := works[102][0]; w.unfinished || w.end.Sub(w.start) != 2*time.Second {
		t.Errorf("%+v", *w)
	}
}

// TestTimesAreWithinTheRun: no bar begins before the run or ends after it, or before
// it begins, whatever the events say.
func TestTimesAreWithinTheRun(t *testing.T) {
	for name, s := range pages() {
		r := s.run(t)
		for _, works := range r.works() {
			for _, w := range works {
				at := []time.Time{r.start, w.start, w.end, r.end}
				if !slices.IsSortedFunc(at, time.Time.Compare) {
					t.Errorf("%s: %d %s: %v", name, w.ctid, w.program, at)
				}
				for _, st := range w.stages {
					at := []time.Time{r.start, st.start, st.end, r.end}
					if !slices.IsSortedFunc(at, time.Time.Compare) {
						t.Errorf("%s: %d %s: stage %.20s: %v", name, w.ctid, w.program, st.name, at)
					}
				}
			}
		}
	}
}

func TestTicks(t *testing.T) {
	for _, total := range []time.Duration{1, time.Millisecond, 90 * time.Millisecond, time.Second, 59 * time.Second,
		82 * time.Second, 2 * time.Hour, 400 * time.Hour, 1<<63 - 1} {
		marks := ticks(total)
		if len(marks) == 0 || len(marks) > 10 || marks[0] != 0 || marks[len(marks)-1] > total {
			t.Errorf("%v: %v", total, marks)
		}
	}
}

// TestGraph: each container is in the picture once and no two stand on one place,
// arrows lead to the right, those that follow from others are left out, a circle is
// marked, and what is too much is not drawn.
func TestGraph(t *testing.T) {
	g := newGraph([]int{1, 2, 3, 4, 5}, []link{
		{from: 1, to: 2}, {from: 2, to: 3}, {from: 1, to: 3}, {from: 1, to: 4}, {from: 1, to: 5}, {from: 9, to: 1},
		{from: 3, to: 3}, {from: 2, to: 4, trust: true},
	})
	at := map[int]float64{}
	var edges []string
	for _, b := range g.Boxes {
		for _, n := range b.Nodes {
			at[n.ID] = b.X
		}
	}
	for _, e := range g.Edges {
		edges = append(edges, e.Title)
	}
	slices.Sort(edges)
	want := []string{"2 needs 1", "3 needs 2", "4 needs 1", "4 waits for the fingerprint of 2's root", "5 needs 1"}
	if !slices.Equal(edges, want) {
		t.Errorf("arrows %q, want %q", edges, want)
	}
	if !(at[1] < at[2] && at[2] < at[3] && at[2] < at[4] && at[5] == at[2]) {
		t.Errorf("places %v", at)
	}

	circle := newGraph([]int{1, 2, 3}, []link{{from: 1, to: 2}, {from: 2, to: 3}, {from: 3, to: 1}})
	if !circle.HasBack || len(circle.Edges) != 3 {
		t.Errorf("a circle: %+v", circle.Edges)
	}
	var links []link
	var ids []int
	for i := range 100 {
		ids = append(ids, i)
		for j := range i {
			links = append(links, link{from: j, to: i})
		}
	}
	if newGraph(ids, links) != nil {
		t.Error("too much, and drawn")
	}

	for name, s := range pages() {
		p := newPage(s.run(t))
		if p.Graph == nil {
			continue
		}
		seen := map[int]bool{}
		for i, a := range p.Graph.Boxes {
			for _, n := range a.Nodes {
				if seen[n.ID] || n.X+nodeWidth > a.W+1 || n.Y+nodeHeight > a.H+1 {
					t.Errorf("%s: %d is there twice, or not in its box", name, n.ID)
				}
				seen[n.ID] = true
			}
			if a.X < 0 || a.Y < -.001 || a.X+a.W > p.Graph.Width || a.Y+a.H > p.Graph.Height {
				t.Errorf("%s: a box is outside: %+v", name, a)
			}
			for _, b := range p.Graph.Boxes[:i] {
				if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H-.001 && b.Y < a.Y+a.H-.001 {
					t.Errorf("%s: %v and %v stand on one place", name, a.ids, b.ids)
				}
			}
		}
		if len(seen) != len(p.Containers) {
			t.Errorf("%s: %d of %d containers", name, len(seen), len(p.Containers))
		}
	}
}
