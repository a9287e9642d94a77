// Package labtest brings the whole lab up and down, as a user would, and checks what it promises.
//
// It needs root, takes minutes and runs only with PHX_TEST_LAB=1, as scripts/test sets it. Its lab lives in
// PHX_TEST_LAB_DIR (default /var/lib/phx-lab-test), beside a lab that a user may have. With PHX_TEST_LAB_KEEP=1
// a lab that failed a check stays for a look. PHX_TEST_LONG=1 (scripts/test --long) adds what takes long.
package labtest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	base, gateway, proxy, ca = "900", "101", "102", "103"

	gatewayIP, proxyIP = "10.0.0.153", "10.0.0.12"

	domain = "internal.thinkheads.ai"
	health = `{"status":"ok"}`

	firstBudget, secondBudget = 18, 0 // calls of pct
)

// secondBudgets are the calls of pct of a run that changes nothing, by the way into containers.
var secondBudgets = map[string]int{"direct": secondBudget, "pct": 5}

// tag is in the environment of everything that the test starts, and so finds what outlives the lab.
var tag = fmt.Sprintf("PHX_LABTEST=%d-%d", os.Getpid(), time.Now().UnixNano())

type lab struct {
	repo, dir string
}

func (l lab) path(elem ...string) string { return filepath.Join(append([]string{l.dir}, elem...)...) }

func (l lab) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = l.repo
	cmd.Env = append(os.Environ(), tag, "PHX_LAB_DIR="+l.dir)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// namespace is the name of the lab's network namespace: it follows from the directory.
func (l lab) namespace() string {
	return fmt.Sprintf("phx-lab-%x", sha256.Sum256([]byte(l.dir+"\n")))[:len("phx-lab-")+8]
}

type result struct {
	stdout, stderr string
	status         int
}

func (l lab) try(t *testing.T, name string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := l.command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// do runs a command that must end with 0 and returns its standard output.
func (l lab) do(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := l.try(t, name, args...)
	if r.status != 0 {
		t.Fatalf("%s %q: status %d\nstdout: %s\nstderr: %s", name, args, r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

// inside runs a command in the lab.
func (l lab) inside(t *testing.T, args ...string) string {
	t.Helper()
	return l.do(t, "scripts/lab", append([]string{"run"}, args...)...)
}

// in runs a command in a container.
func (l lab) in(t *testing.T, ctid string, args ...string) string {
	t.Helper()
	return l.inside(t, append([]string{"pct", "exec", ctid, "--"}, args...)...)
}

func (l lab) read(t *testing.T, elem ...string) string {
	t.Helper()
	data, err := os.ReadFile(l.path(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// calls is the number of calls of pct in the lab's life.
func (l lab) calls(t *testing.T) int {
	t.Helper()
	return strings.Count(l.read(t, "log", "pct.log"), "\n")
}

type event struct {
	Event   string `json:"event"`
	CTID    int    `json:"ctid"`
	Changed *bool  `json:"changed"`
	line    string
}

func parseEvents(t *testing.T, text string) []event {
	t.Helper()
	var events []event
	for line := range strings.Lines(text) {
		ev := event{line: line}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatalf("not an event: %q: %v", line, err)
		}
		events = append(events, ev)
	}
	return events
}

// checkUnchanged: every result of the four containers is there, and each says that nothing was changed.
func checkUnchanged(t *testing.T, text string) {
	t.Helper()
	checkUnchangedOf(t, text, 4)
}

// checkUnchangedOf is checkUnchanged for a number of containers.
func checkUnchangedOf(t *testing.T, text string, containers int) {
	t.Helper()
	counts := map[string]int{}
	for _, ev := range parseEvents(t, text) {
		counts[ev.Event]++
		switch ev.Event {
		case "ct.ready", "ca.exported", "nginx.ready", "traefik.ready":
			if ev.Changed == nil || *ev.Changed {
				t.Errorf("something was changed: %s", ev.line)
			}
		case "ct.failed", "ct.skipped", "ca.failed", "nginx.failed", "traefik.failed":
			t.Errorf("failed: %s", ev.line)
		}
	}
	for name, want := range map[string]int{"plan.started": 1, "ct.ready": containers, "ca.exported": 1,
		"ca.fingerprint": 1, "nginx.ready": 1, "traefik.ready": 1, "plan.done": 1} {
		if counts[name] != want {
			t.Errorf("%d events %s, want %d", counts[name], name, want)
		}
	}
}

// services tells when each service was started, and as which process.
func (l lab) services(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, s := range [][2]string{{ca, "step-ca"}, {gateway, "nginx"}, {proxy, "traefik"}} {
		text := l.in(t, s[0], "systemctl", "show", "-p", "ActiveState", "-p", "ActiveEnterTimestamp", "-p",
			"ExecMainStartTimestampMonotonic", "-p", "MainPID", s[1])
		if !strings.Contains(text, "ActiveState=active\n") {
			t.Errorf("%s in container %s is not active:\n%s", s[1], s[0], text)
		}
		fmt.Fprintf(&b, "%s %s\n%s", s[0], s[1], text)
	}
	return b.String()
}

func TestLab(t *testing.T) {
	if os.Getenv("PHX_TEST_LAB") != "1" {
		t.Skip("takes minutes and needs root: run scripts/test, or set PHX_TEST_LAB=1")
	}
	if os.Geteuid() != 0 {
		t.Fatal("the lab needs root")
	}
	repo, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	l := lab{repo: repo, dir: os.Getenv("PHX_TEST_LAB_DIR")}
	if l.dir == "" {
		l.dir = "/var/lib/phx-lab-test"
	}
	l.do(t, "scripts/lab", "down") // what a killed test left
	before := observe(t, l)
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("PHX_TEST_LAB_KEEP") == "1" {
			return
		}
		l.try(t, "scripts/lab", "down")
	})

	if r := l.try(t, "scripts/lab", "run", "true"); r.status != 1 || !strings.Contains(r.stderr, "up") {
		t.Errorf("run without a lab: status %d, stderr %q; want 1 and the way out", r.status, r.stderr)
	}

	var seen *evidence
	t.Run("Up", func(t *testing.T) { seen = l.testUp(t) })
	if seen == nil {
		t.FailNow()
	}
	t.Run("Answer", l.testAnswer)
	t.Run("Certificates", l.testCertificates)
	t.Run("Unprivileged", l.testUnprivileged)
	t.Run("SecondUp", l.testSecondUp)
	t.Run("Check", l.testCheck)
	t.Run("PipeByHand", l.testPipeByHand)
	t.Run("Sessions", func(t *testing.T) { l.testSessions(t, seen) }) // before others give containers features
	t.Run("Ways", l.testWays)
	t.Run("Status", l.testStatus)
	t.Run("Secrets", func(t *testing.T) { l.testSecrets(t, seen) })
	t.Run("Firewall", l.testFirewall)
	t.Run("Neighbour", l.testNeighbour)
	t.Run("Policy", l.testPolicy)
	t.Run("Exposure", l.testExposure)
	t.Run("Clients", l.testClients)
	t.Run("Healing", l.testHealing)
	t.Run("Terminal", l.testTerminal)
	t.Run("Flood", l.testFlood)
	t.Run("Changes", l.testChanges)
	t.Run("AptProxy", l.testAptProxy)
	t.Run("Init", l.testInit)
	filters := []string{"phx-lxc"}
	if long() {
		filters = append(filters, "phx-ca-export", "phx-fingerprint", "phx-nginx", "phx-traefik")
	}
	for _, filter := range filters {
		t.Run("Kill/"+filter, func(t *testing.T) { l.testKilledFilter(t, filter) })
	}
	t.Run("Kill/up", func(t *testing.T) { l.testKilledUp(t, false) })
	t.Run("Kill/everything", func(t *testing.T) { l.testKilledUp(t, true) })
	t.Run("Pages", l.testPages)
	t.Run("Rotation", l.testRotation)
	t.Run("Networks", l.testNetworks)
	if long() {
		t.Run("Adoption", l.testAdoption)
	}
	t.Run("Package", l.testPackage)
	t.Run("Shape", l.testShape)
	t.Run("Down", func(t *testing.T) {
		l.do(t, "scripts/lab", "down")
		observe(t, l).compare(t, before)
		l.do(t, "scripts/lab", "down")
	})
}

// evidence is all that a run showed to anybody: the haystacks in which no secret may be.
type evidence struct {
	events, stderr, output, pctLog, processes string
}

func (l lab) testUp(t *testing.T) *evidence {
	stop := l.sampleProcesses()
	start := time.Now()
	r := l.try(t, "scripts/lab", "up")
	processes := stop()
	if r.status != 0 {
		t.Fatalf("status %d\nstdout: %s\nstderr: %s", r.status, r.stdout, r.stderr)
	}
	if _, err := os.Stat("/run/netns/" + l.namespace()); err != nil {
		t.Error(err)
	}
	t.Logf("first up: %.1f s, pct calls: %d\n%s", time.Since(start).Seconds(), l.calls(t), r.stdout)
	if !strings.Contains(r.stdout, health) {
		t.Errorf("up printed no answer: %q", r.stdout)
	}
	if n := l.calls(t); n > firstBudget {
		t.Errorf("%d calls of pct, the budget is %d:\n%s", n, firstBudget, l.read(t, "log", "pct.log"))
	}
	return &evidence{l.read(t, "log", "events.jsonl"), l.read(t, "log", "phoenix.log"), r.stdout + r.stderr,
		l.read(t, "log", "pct.log"), processes}
}

func (l lab) testAnswer(t *testing.T) {
	const line = `eval "$(./scripts/lab env)"
		./scripts/lab run curl --silent --show-error --noproxy '*' --cacert "$PHX_CA_FILE" \
			--resolve ca.internal.thinkheads.ai:443:` + gatewayIP + ` https://ca.internal.thinkheads.ai/health`
	if got := strings.TrimSpace(l.do(t, "bash", "-c", line)); got != health {
		t.Errorf("the gateway answered %q, want %q", got, health)
	}
	if got := l.do(t, "scripts/lab", "status"); !strings.Contains(got, health) || !strings.Contains(got, "Step-CA") {
		t.Errorf("status: %s", got)
	}
	r := l.try(t, "scripts/lab", "run", "sh", "-c", "cat; echo problem >&2; exit 7")
	if r.status != 7 || r.stderr != "problem\n" {
		t.Errorf("run: status %d, stderr %q; want 7 and what the command wrote", r.status, r.stderr)
	}
	if got := l.inside(t, "scripts/lab", "run", "pct", "status", ca); got != "status: running\n" {
		t.Errorf("run in run: %q", got)
	}
	if r := l.try(t, "scripts/lab", "run", "ip", "route", "get", "192.0.2.1"); r.status == 0 {
		t.Errorf("there is a way out of the lab: %s", r.stdout)
	}
}

// served returns the chain that a server shows for the CA's name.
func (l lab) served(t *testing.T, ip string) []*x509.Certificate {
	t.Helper()
	out := l.inside(t, "openssl", "s_client", "-connect", ip+":443", "-servername", "ca."+domain, "-showcerts")
	var chain []*x509.Certificate
	for rest := []byte(out); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	if len(chain) < 2 {
		t.Fatalf("%s shows %d certificates, want leaf and intermediate: %s", ip, len(chain), out)
	}
	return chain
}

// provisioner reads the extension in which step-ca says who asked for a certificate.
func provisioner(t *testing.T, cert *x509.Certificate) (kind int, name string) {
	t.Helper()
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 37476, 9000, 64, 1}) {
			continue
		}
		var v struct {
			Type         int
			Name         []byte
			CredentialID []byte
			KeyValues    []string `asn1:"optional,omitempty"`
		}
		if _, err := asn1.Unmarshal(ext.Value, &v); err != nil {
			t.Fatal(err)
		}
		return v.Type, string(v.Name)
	}
	t.Fatal("the certificate does not name its provisioner")
	return 0, ""
}

func (l lab) testCertificates(t *testing.T) {
	root := l.read(t, "persistent-storage", "ssl", "phoenix_ca.crt")
	if inCA := l.in(t, ca, "cat", "/home/step/certs/root_ca.crt"); inCA != root {
		t.Errorf("phoenix_ca.crt is not the root of this run's CA:\n%s\n%s", root, inCA)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(root)) {
		t.Fatal("phoenix_ca.crt: no certificate")
	}
	verify := func(chain []*x509.Certificate, name string) {
		t.Helper()
		intermediates := x509.NewCertPool()
		for _, cert := range chain[1:] {
			intermediates.AddCert(cert)
		}
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates,
			DNSName: name}); err != nil {
			t.Error(err)
		}
	}
	const jwk, acme = 1, 6 // step-ca's provisioner types

	chain := l.served(t, gatewayIP)
	verify(chain, domain)
	verify(chain, "any."+domain)
	names := slices.Sorted(slices.Values(chain[0].DNSNames))
	if want := []string{"*." + domain, domain}; !slices.Equal(names, want) {
		t.Errorf("the gateway's certificate is for %q, want %q", names, want)
	}
	if kind, name := provisioner(t, chain[0]); kind != jwk {
		t.Errorf("the gateway's certificate is from provisioner %q of type %d, want a one-time token's (%d)", name,
			kind, jwk)
	}

	chain = l.served(t, proxyIP)
	verify(chain, "ca."+domain)
	if kind, name := provisioner(t, chain[0]); kind != acme {
		t.Errorf("the proxy's certificate is from provisioner %q of type %d, want ACME (%d)", name, kind, acme)
	}
}

func (l lab) testUnprivileged(t *testing.T) {
	for _, ctid := range []string{base, gateway, proxy, ca} {
		if conf := l.read(t, "pve", "lxc", ctid+".conf"); !strings.Contains(conf, "\nunprivileged: 1\n") {
			t.Errorf("container %s is privileged:\n%s", ctid, conf)
		}
	}
	for _, ctid := range []string{gateway, proxy, ca} {
		fields := strings.Fields(l.in(t, ctid, "cat", "/proc/self/uid_map"))
		if len(fields) != 3 || fields[0] != "0" || fields[1] == "0" {
			t.Errorf("container %s maps its root to the machine's: %q", ctid, fields)
		}
	}

	const shared = "/etc/nginx/ssl/"
	keys := regexp.MustCompile(`(?m)^\s*ssl_certificate_key\s+(\S+);`).FindAllStringSubmatch(l.in(t,
		gateway, "nginx", "-T"), -1)
	if len(keys) == 0 {
		t.Error("nginx names no key")
	}
	for _, key := range keys {
		if mode := strings.TrimSpace(l.in(t, gateway, "stat", "-L", "-c", "%a %U", key[1])); mode != "600 root" {
			t.Errorf("%s in container %s is %s, want 600 root", key[1], gateway, mode)
		}
		if place := l.in(t, gateway, "readlink", "-f", key[1]); strings.HasPrefix(place, shared) {
			t.Errorf("nginx's key lies in the shared directory: %s", place)
		}
	}
	err := filepath.WalkDir(l.path("persistent-storage"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if data, err := os.ReadFile(path); err != nil || bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s in the shared directory: a private key, or %v", path, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	r := l.try(t, "scripts/lab", "run", "pct", "exec", gateway, "--", "touch", shared+"written")
	if r.status == 0 {
		t.Errorf("container %s can write to the shared directory", gateway)
	}
}

func (l lab) testSecondUp(t *testing.T) {
	services, chain := l.services(t), l.served(t, gatewayIP)
	calls := l.calls(t)
	start := time.Now()
	stdout := l.do(t, "scripts/lab", "up")
	calls = l.calls(t) - calls
	t.Logf("second up: %.1f s, pct calls: %d", time.Since(start).Seconds(), calls)
	if !strings.Contains(stdout, health) {
		t.Errorf("up printed no answer: %q", stdout)
	}
	if calls > secondBudget {
		t.Errorf("%d calls of pct, the budget is %d", calls, secondBudget)
	}
	checkUnchanged(t, l.read(t, "log", "events.jsonl"))
	if after := l.services(t); after != services {
		t.Errorf("a service was restarted:\nbefore:\n%s\nafter:\n%s", services, after)
	}
	if !l.served(t, gatewayIP)[0].Equal(chain[0]) {
		t.Error("the gateway has another certificate")
	}
}

const pipe = `set -o pipefail; phx-plan | phx-lxc | phx-ca-export | phx-fingerprint | phx-nginx | phx-traefik`

func (l lab) testPipeByHand(t *testing.T) {
	for way, budget := range secondBudgets {
		services, calls := l.services(t), l.calls(t)
		out := l.inside(t, "env", "PHX_ATTACH="+way, "bash", "-c", pipe)
		if calls = l.calls(t) - calls; calls > budget {
			t.Errorf("%s: %d calls of pct, the budget is %d", way, calls, budget)
		}
		t.Logf("the pipe by hand, %s: pct calls: %d", way, calls)
		checkUnchanged(t, out)
		if after := l.services(t); after != services {
			t.Errorf("%s: a service was restarted:\nbefore:\n%s\nafter:\n%s", way, services, after)
		}
	}
}

// testSecrets takes the secrets out of the containers and looks for each in all that the first run showed.
func (l lab) testSecrets(t *testing.T, seen *evidence) {
	secrets := map[string]string{} // text: where it is from
	add := func(path, text string) {
		if strings.Count(text, "\n") < 2 {
			secrets[strings.TrimSpace(text)] = path
			return
		}
		for line := range strings.Lines(text) { // a key in PEM: the lines of its body
			if line = strings.TrimSpace(line); len(line) >= 40 && !strings.Contains(line, " ") {
				secrets[line] = path
			}
		}
	}
	find := func(ctid, what string, args ...string) {
		t.Helper()
		paths := strings.Fields(l.in(t, ctid, append([]string{"find"}, args...)...))
		for _, path := range paths {
			add(path, l.in(t, ctid, "cat", path))
		}
		if len(paths) == 0 {
			t.Errorf("no %s in container %s: this test looks for nothing", what, ctid)
		}
	}
	find(ca, "password", "/home/step", "-type", "f", "-iname", "*password*")
	find(ca, "key", "/home/step", "-type", "f", "-name", "*_key")
	find(gateway, "key", "/etc", "/var/lib", "-xdev", "-type", "f", "-name", "*.key", "-perm", "600")
	acmeKey := regexp.MustCompile(`"(?:key|PrivateKey)": *"([^"]{40,})"`)
	for _, path := range strings.Fields(l.in(t, proxy, "find", "/etc", "/var/lib", "-xdev", "-type", "f", "-name",
		"acme*.json")) {
		for _, m := range acmeKey.FindAllStringSubmatch(l.in(t, proxy, "cat", path), -1) {
			secrets[m[1][:40]] = path
		}
	}
	// What phx keeps on the host: for root alone.
	recordKey := regexp.MustCompile(`"key": *"([^"]+)"`)
	err := filepath.WalkDir(l.path("pve", "priv", "phx"), func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %s: others can read it", path, info.Mode())
		}
		if ext := filepath.Ext(path); entry.IsDir() || ext != ".key" && ext != ".password" && ext != ".json" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if m := recordKey.FindSubmatch(text); m != nil {
			add(path, string(m[1]))
		} else if filepath.Ext(path) != ".json" {
			add(path, string(text))
		}
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for secret, path := range secrets {
		if len(secret) < 12 {
			t.Errorf("%s: too short for a secret: %d characters", path, len(secret))
		}
	}
	for _, place := range []string{"password", "root_ca_key|/priv/phx/.*key", "intermediate_ca_key", `\.key`, "acme"} {
		if !slices.ContainsFunc(mapValues(secrets), regexp.MustCompile(place).MatchString) {
			t.Errorf("no secret from a file named %s: this test looks for less than it should", place)
		}
	}
	t.Logf("%d secrets", len(secrets))

	patterns := []*regexp.Regexp{
		regexp.MustCompile(`eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.`), // a one-time token
		regexp.MustCompile(`PRIVATE KEY`),
	}
	for place, text := range map[string]string{
		"the event stream": seen.events, "phoenix's stderr": seen.stderr, "what up printed": seen.output,
		"the pct log": seen.pctLog, "the process list": seen.processes,
	} {
		if text == "" {
			t.Errorf("%s is empty: nothing was looked at", place)
		}
		for secret, path := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("the secret of %s is in %s", path, place)
			}
		}
		for _, pattern := range patterns {
			if at := pattern.FindStringIndex(text); at != nil {
				t.Errorf("%s shows what matches %s: %q…", place, pattern, text[max(0, at[0]-80):at[0]])
			}
		}
	}
	for _, program := range []string{"phx-lxc", "phx-nginx apply", "phx-traefik apply", "ca token"} {
		if !strings.Contains(seen.processes, program) {
			t.Errorf("the process list never showed %q: it was not looked at often enough", program)
		}
	}
}

func mapValues(m map[string]string) []string {
	var values []string
	for _, v := range m {
		values = append(values, v)
	}
	return values
}

// testKilledFilter destroys the proxy's container, kills one filter while the pipe makes it anew, and lets the next
// run complete the job.
func (l lab) testKilledFilter(t *testing.T, filter string) {
	l.inside(t, "pct", "stop", proxy)
	l.inside(t, "pct", "destroy", proxy)

	pidFile := filepath.Join(t.TempDir(), "pid")
	script := strings.Replace(pipe, filter, `{ echo $BASHPID >`+pidFile+`; exec `+filter+`; }`, 1)
	cmd := l.command("scripts/lab", "run", "bash", "-c", script)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	volumes := l.path("storage", "lab", "images", proxy)
	if !within(time.Minute, func() bool { entries, _ := os.ReadDir(volumes); return len(entries) > 0 }) {
		cmd.Process.Kill()
		t.Fatalf("the container was not begun\nstderr: %s", errs.String())
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(name)) != filter {
		t.Fatalf("process %d is %q, want %s", pid, name, filter)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(2 * time.Minute):
		cmd.Process.Kill()
		t.Fatalf("the other programs did not end\nstdout: %s\nstderr: %s", out.String(), errs.String())
	}
	// The pipe's status is that of the last program in it that failed; nothing comes after phx-traefik.
	want := 1
	if filter == "phx-traefik" {
		want = 128 + int(syscall.SIGKILL)
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("status %d, want %d\nstderr: %s", got, want, errs.String())
	}
	l.inside(t, "bash", "-c", pipe)
	checkUnchanged(t, l.inside(t, "bash", "-c", pipe))
}

// testKilledUp kills `lab up`, and with everything set all that it started, while phoenix makes the proxy's container
// anew. The next one completes the job. Only where the tasks of pct were killed, too, somebody has to take their locks
// away before, as on a Proxmox host.
func (l lab) testKilledUp(t *testing.T, everything bool) {
	l.inside(t, "pct", "stop", proxy)
	l.inside(t, "pct", "destroy", proxy)
	cmd := l.command("scripts/lab", "up")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	volumes := l.path("storage", "lab", "images", proxy)
	begun := within(2*time.Minute, func() bool { entries, _ := os.ReadDir(volumes); return len(entries) > 0 })
	cmd.Process.Kill()
	if everything {
		for _, pid := range pids() {
			cgroup, _ := os.ReadFile("/proc/" + pid + "/cgroup") // a container and its monitor have one of the lab's
			if n, _ := strconv.Atoi(pid); l.owns(pid) && !bytes.Contains(cgroup, []byte("/"+l.namespace()+"/")) &&
				n != os.Getpid() {
				syscall.Kill(n, syscall.SIGKILL)
			}
		}
	}
	cmd.Wait()
	if !begun {
		t.Fatal("the container was not begun")
	}
	if everything {
		for _, ctid := range []string{base, proxy} {
			lock := regexp.MustCompile(`(?m)^lock: (.*)$`).FindStringSubmatch(l.read(t, "pve", "lxc", ctid+".conf"))
			if lock == nil {
				continue
			}
			l.inside(t, "pct", "unlock", ctid)
			if lock[1] == "create" {
				l.inside(t, "pct", "destroy", ctid, "--destroy-unreferenced-disks", "1")
			}
		}
	}
	if got := l.do(t, "scripts/lab", "up"); !strings.Contains(got, health) {
		t.Errorf("up printed no answer: %q", got)
	}
	checkUnchanged(t, l.inside(t, "bash", "-c", pipe))
}

func within(limit time.Duration, done func() bool) bool {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if done() {
			return true
		}
	}
	return false
}

// testPages runs the commands of README.md and of the pages in docs, in a lab that is up: of each page all blocks
// fenced as ```sh, in order, in one shell at the top of the repository. README.md says how its shell gets the lab's
// environment; for the others that has been done. Blocks fenced as ```sh norun, ```sh host or ```console are not run.
func (l lab) testPages(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(l.repo, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, page := range append([]string{filepath.Join(l.repo, "README.md")}, pages...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
		if len(blocks) == 0 {
			continue
		}
		ran++
		script := `eval "$(./scripts/lab env)"` + "\n"
		if ran == 1 {
			script = ""
		}
		for _, block := range blocks {
			script += block[1]
		}
		t.Run(filepath.Base(page), func(t *testing.T) {
			if r := l.try(t, "bash", "-euxo", "pipefail", "-c", script); r.status != 0 {
				t.Errorf("status %d\nstdout: %s\nstderr: %s", r.status, r.stdout, r.stderr)
			}
		})
	}
	if ran < 4 {
		t.Errorf("%d pages have a block fenced as ```sh", ran)
	}
}

// owns reports whether a process is the lab's: started by this test, in the lab's namespace, or in one of its
// containers.
func (l lab) owns(pid string) bool {
	environ, _ := os.ReadFile("/proc/" + pid + "/environ")
	if bytes.Contains(environ, []byte(tag)) {
		return true
	}
	if cgroup, _ := os.ReadFile("/proc/" + pid + "/cgroup"); bytes.Contains(cgroup, []byte("/"+l.namespace()+"/")) {
		return true
	}
	theirs, err := os.Stat("/proc/" + pid + "/ns/net")
	if err != nil {
		return false
	}
	ours, err := os.Stat("/run/netns/" + l.namespace())
	return err == nil && os.SameFile(theirs, ours)
}

// sampleProcesses notes every command line of the lab, the containers' too, until stop is called.
func (l lab) sampleProcesses() (stop func() string) {
	var wg sync.WaitGroup
	quit := make(chan struct{})
	seen := map[string]bool{}
	wg.Go(func() {
		for {
			for _, pid := range pids() {
				if line, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil && l.owns(pid) {
					seen[strings.ReplaceAll(string(line), "\x00", " ")] = true
				}
			}
			select {
			case <-quit:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return func() string {
		close(quit)
		wg.Wait()
		var b strings.Builder
		for line := range seen {
			b.WriteString(line + "\n")
		}
		return b.String()
	}
}

func pids() []string {
	entries, _ := os.ReadDir("/proc")
	var pids []string
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, entry.Name())
		}
	}
	return pids
}

// machine is what a lab could leave behind.
type machine struct {
	namespaces, mounts, containers, cgroups, locks, processes []string

	others bool // whether there are network namespaces, which keep /run/netns mounted
}

// observe leaves out the namespaces of other labs: they come and go as their users like.
func observe(t *testing.T, l lab) machine {
	t.Helper()
	var m machine
	lines := func(text string) []string {
		return slices.Sorted(slices.Values(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })))
	}
	other := regexp.MustCompile(`phx-[\w-]+`)
	foreign := func(line string) bool {
		return other.MatchString(line) && !strings.Contains(line, l.namespace())
	}
	m.namespaces = slices.DeleteFunc(lines(l.do(t, "ip", "netns")), foreign)
	m.mounts = slices.DeleteFunc(lines(l.do(t, "mount")), foreign)
	entries, err := os.ReadDir("/run/netns")
	m.others = err == nil && len(entries) > 0
	// On a bare machine lxc comes with the first up, and stays.
	m.containers = lines(l.do(t, "sh", "-c", `test ! -e /var/lib/lxc || find /var/lib/lxc -mindepth 1`))
	m.cgroups = slices.DeleteFunc(lines(l.do(t, "find", "/sys/fs/cgroup", "-maxdepth", "2", "-type", "d", "(", "-name",
		"*lxc*", "-o", "-name", "phx-*", ")")), foreign)
	m.locks = lines(l.do(t, "sh", "-c", `find /run/lock; ls -d "/run/lxc/lock$0" 2>/dev/null || true`, l.dir))
	for _, pid := range pids() {
		var about []byte
		for _, name := range []string{"cmdline", "environ", "cgroup"} {
			text, _ := os.ReadFile("/proc/" + pid + "/" + name)
			about = append(about, text...)
		}
		if pid != strconv.Itoa(os.Getpid()) && (l.owns(pid) || bytes.Contains(about, []byte(l.dir))) {
			m.processes = append(m.processes, pid+": "+string(bytes.ReplaceAll(about, []byte{0}, []byte{' '})))
		}
	}
	return m
}

func (m machine) compare(t *testing.T, before machine) {
	t.Helper()
	// Who starts tests has processes that come and go; only a new one is of the lab.
	m.processes = slices.DeleteFunc(m.processes, func(p string) bool { return slices.Contains(before.processes, p) })
	before.processes = nil
	if before.others || m.others {
		for _, mounts := range []*[]string{&m.mounts, &before.mounts} {
			*mounts = slices.DeleteFunc(*mounts,
				func(line string) bool { return strings.Contains(line, " on /run/netns ") })
		}
	}
	for _, c := range []struct {
		what          string
		after, before []string
	}{
		{"network namespaces", m.namespaces, before.namespaces},
		{"mounts", m.mounts, before.mounts},
		{"/var/lib/lxc", m.containers, before.containers},
		{"cgroups", m.cgroups, before.cgroups},
		{"locks", m.locks, before.locks},
		{"processes", m.processes, before.processes},
	} {
		if !slices.Equal(c.after, c.before) {
			t.Errorf("%s: after down:\n%s\nbefore up:\n%s", c.what, strings.Join(c.after, "\n"),
				strings.Join(c.before, "\n"))
		}
	}
}
