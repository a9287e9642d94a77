package service

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remote"
)

const (
	gateway = 101
	caID    = 103
)

// fixture is a host with the CA's root, and the events of a plan for it.
type fixture struct {
	host *pve.Host
	root string // the file
	pin  string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := &fixture{&pve.Host{PVERoot: filepath.Join(dir, "pve")}, filepath.Join(dir, "ssl", "phoenix_ca.crt"),
		cert.Fingerprint(root)}
	for _, d := range []string{filepath.Dir(f.root), filepath.Join(f.host.PVERoot, "lxc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(f.root, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

func line(name, fields string) string {
	return fmt.Sprintf(`{"event":%q,"time":"2026-01-02T03:04:05Z"%s}`, name, fields)
}

func of(ctid int, name, fields string) string {
	return line(name, fmt.Sprintf(`,"ctid":%d%s`, ctid, fields))
}

func started() string {
	return line("plan.started", `,"domain":"example.test","services":[],`+
		`"ca":{"ctid":103,"ip":"10.0.0.10","mac":"52:54:00:67:89:C3"},`+
		`"gateway":{"ctid":101,"ip":"10.0.0.153","mac":"52:54:00:67:89:B3"}`)
}

func done() string { return line("plan.done", "") }

func (f *fixture) planned(action string) string { return f.plannedWith(action, true) }

func (f *fixture) plannedWith(action string, readOnly bool) string {
	return of(gateway, "ct.planned", fmt.Sprintf(`,"name":"gw","action":%q,`+
		`"config":{"name":"gw","template":"local:vztmpl/x.tar.zst",`+
		`"memory_mb":64,"cores":1,"storage_pool":"local","storage_size_gb":1,`+
		`"network_config":{"name":"eth0","bridge":"vmbr0","ip":"10.0.0.153/24","gw":"10.0.0.1"},`+
		`"mac_address":"52:54:00:67:89:B3","unprivileged":true,"start_at_boot":true,"boot_order":1,"boot_delay":1,`+
		`"mount_points":[{"host_path":%q,"container_path":"/ssl","read_only":%t}],"features":[],`+
		`"application_script":"phoenix_hypervisor_lxc_101.sh"}`,
		action, filepath.Dir(f.root), readOnly))
}

func (f *fixture) caPlanned() string {
	return of(caID, "ct.planned", `,"name":"ca","action":"create",`+
		`"config":{"application_script":"phoenix_hypervisor_lxc_103.sh"}`)
}

func (f *fixture) exported() string {
	return of(caID, "ca.exported", fmt.Sprintf(`,"path":%q,"sha256":%q`, f.root, f.pin))
}

func (f *fixture) fingerprint() string {
	return line("ca.fingerprint", fmt.Sprintf(`,"path":%q,"sha256":%q,"ca_url":"https://10.0.0.10:9000"`, f.root,
		f.pin))
}

// exist gives the host a container.
func (f *fixture) exist(t *testing.T, ctid int) {
	t.Helper()
	conf := filepath.Join(f.host.PVERoot, "lxc", fmt.Sprintf("%d.conf", ctid))
	if err := os.WriteFile(conf, []byte("arch: amd64\n"), 0o640); err != nil {
		t.Fatal(err)
	}
}

// result is what a filter has made of a stream.
type result struct {
	out string
	err error

	mu      sync.Mutex
	targets []*Target
}

// failure returns the error of the gateway's failed event, "" for none.
func (r *result) failure() string {
	for _, l := range strings.Split(r.out, "\n") {
		if ev, _ := event.Parse([]byte(l)); ev.Name == event.NameNginxFailed {
			failed := ev.Body.(event.NginxFailed)
			return failed.Stage + ": " + failed.Error
		}
	}
	return ""
}

// program returns the filter of a program that is like phx-nginx.
func (f *fixture) program(setUp func(context.Context, *Target) (*remote.Answer, error)) *filter {
	return &filter{host: f.host, program: Program{
		Name: "nginx", Script: config.GatewayScript, SetUp: setUp,
		Ready:  func(r event.ServiceReady) event.Body { return event.NginxReady(r) },
		Failed: func(f event.ServiceFailed) event.Body { return event.NginxFailed(f) },
		Status: func(s event.ServiceStatus) event.Body { return event.NginxStatus(s) },
		Shows:  func(p *config.Plan) []string { return append([]string{p.Domain}, p.Hosts()...) },
	}}
}

// filter runs the filter over these lines.
func (f *fixture) filter(t *testing.T, lines ...string) *result {
	t.Helper()
	r := &result{}
	var out bytes.Buffer
	j := f.program(func(_ context.Context, target *Target) (*remote.Answer, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.targets = append(r.targets, target)
		return &remote.Answer{}, nil
	})
	j.stream = event.NewStream(strings.NewReader(strings.Join(lines, "\n")+"\n"), &out, j.fail)
	r.err = j.run(t.Context())
	r.out = out.String()
	return r
}

func permutations(of []string) [][]string {
	if len(of) < 2 {
		return [][]string{of}
	}
	var all [][]string
	for i := range of {
		rest := slices.Concat(of[:i], of[i+1:])
		for _, p := range permutations(rest) {
			all = append(all, append([]string{of[i]}, p...))
		}
	}
	return all
}

// The three things that the work waits for come in any order, and it begins
// once, with what they have said.
func TestAnyOrder(t *testing.T) {
	f := newFixture(t)
	for _, events := range permutations([]string{of(gateway, "ct.ready", ""), f.exported(), f.fingerprint()}) {
		events = append(events, events...) // a second time: nothing begins again
		r := f.filter(t, slices.Concat([]string{started(), f.planned("create")}, events, []string{done()})...)
		if r.err != nil || len(r.targets) != 1 {
			t.Fatalf("%q: %d times, %v\n%s", events, len(r.targets), r.err, r.out)
		}
		target := r.targets[0]
		if target.CTID != gateway || target.CADown || target.Trust.Fingerprint != f.pin ||
			target.Trust.Root != "/ssl/phoenix_ca.crt" || target.Trust.CAURL != "https://10.0.0.10:9000" {
			t.Errorf("%q: %+v", events, target)
		}
		ready, end := strings.Index(r.out, `"nginx.ready"`), strings.Index(r.out, `"plan.done"`)
		if ready < 0 || end < ready || strings.Contains(r.out, "nginx.failed") {
			t.Errorf("%q: want nginx.ready before plan.done:\n%s", events, r.out)
		}
		if !cahost.Taken(f.host, "nginx", []string{f.pin}) {
			t.Error("it is not noted which root the gateway trusts")
		}
	}
}

// The work begins when the container runs as it should, and not again at its end,
// whatever that is.
func TestRunning(t *testing.T) {
	f := newFixture(t)
	running := of(gateway, "ct.running", "")
	for _, end := range []string{
		of(gateway, "ct.ready", ""),
		of(gateway, "ct.failed", `,"stage":"health check","error":"not healthy"`),
		of(gateway, "ct.failed", `,"stage":"disk","error":"no disk"`),
		of(gateway, "ct.skipped", `,"reason":"103 is not ready","because":103`),
	} {
		r := f.filter(t, started(), f.planned("create"), running, f.exported(), f.fingerprint(), end, done())
		if r.err != nil || len(r.targets) != 1 || !strings.Contains(r.out, `"nginx.ready"`) {
			t.Errorf("%s: %d times, %v\n%s", end, len(r.targets), r.err, r.out)
		}
	}
	// Without the CA's root it is said what has become of the container.
	skipped := of(gateway, "ct.skipped", `,"reason":"103 is not ready","because":103`)
	r := f.filter(t, started(), f.planned("create"), running, skipped, done())
	if r.err == nil || len(r.targets) != 0 || r.failure() != "join: the container was skipped: 103 is not ready" {
		t.Errorf("%d times, %v, %q", len(r.targets), r.err, r.failure())
	}
}

// What has failed is mended as far as that goes, and only where something is.
func TestWithoutTheCA(t *testing.T) {
	skipped := of(gateway, "ct.skipped", `,"reason":"103 failed","because":103`)
	fromHost := func(f *fixture) string {
		return strings.TrimSuffix(f.exported(), "}") + `,"from_host":true}`
	}
	for _, tt := range []struct {
		name    string
		exists  bool
		skipped string
		begins  bool
	}{
		{"the gateway exists", true, skipped, true},
		{"the gateway is not there", false, skipped, false},
		{"the template has failed too", true, of(gateway, "ct.skipped", `,"reason":"900 failed","because":900`), true},
		{"the plan broke off", true, of(gateway, "ct.skipped", `,"reason":"the plan broke off"`), false},
		{"failed by itself", true, of(gateway, "ct.failed", `,"stage":"disk","error":"no disk"`), false},
		{"not healthy", true, of(gateway, "ct.failed", `,"stage":"health check","error":"not healthy"`), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			if tt.exists {
				f.exist(t, gateway)
			}
			events := []string{of(caID, "ca.failed", `,"error":"it has failed"`), fromHost(f), f.fingerprint(),
				tt.skipped}
			for _, order := range permutations(events) {
				r := f.filter(t, slices.Concat([]string{started(), f.caPlanned(), f.planned("create")}, order,
					[]string{done()})...)
				switch {
				case tt.begins && (r.err != nil || len(r.targets) != 1 || !r.targets[0].CADown):
					t.Errorf("%q: %d times, %v\n%s", order, len(r.targets), r.err, r.out)
				case !tt.begins && (r.err == nil || len(r.targets) != 0 ||
					!strings.HasPrefix(r.failure(), "join: the container ")):
					t.Errorf("%q: %d times, %v, %q", order, len(r.targets), r.err, r.failure())
				}
			}
		})
	}
}

// What was waited for is named as it is.
func TestMissing(t *testing.T) {
	f := newFixture(t)
	ready := of(gateway, "ct.ready", "")
	withoutCA := line("plan.started", `,"domain":"example.test","services":[]`)
	for _, tt := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"no ct.ready", []string{started(), f.planned("create"), f.exported(), f.fingerprint()},
			"is phx-lxc in the pipe?"},
		{"it failed", []string{started(), f.planned("create"), of(gateway, "ct.failed", `,"error":"no disk"`)},
			"the container failed: no disk"},
		{"no ca.fingerprint", []string{started(), f.planned("create"), ready, f.exported()},
			"is phx-fingerprint in the pipe?"},
		{"no export", []string{started(), f.caPlanned(), f.planned("create"), ready,
			of(caID, "ca.failed", `,"error":"no answer"`)},
			"the CA's root certificate was not exported: no answer"},
		{"the CA is not planned", []string{started(), f.planned("create"), ready}, "plan the CA's container 103 too"},
		{"the CA is only stopped", []string{started(), strings.Replace(f.caPlanned(), `"create"`, `"stop"`, 1),
			f.planned("create"), ready}, "plan the CA's container 103 too"},
		{"the CA failed", []string{started(), f.caPlanned(), f.planned("create"), ready,
			of(caID, "ct.failed", `,"error":"no disk"`)},
			"the CA's container 103 failed: no disk"},
		{"the CA was skipped", []string{started(), f.caPlanned(),
			of(caID, "ct.skipped", `,"reason":"900 failed","because":900`), f.planned("create"), ready},
			"the CA's container 103 was skipped: 900 failed"},
		{"the CA is not ready", []string{started(), f.caPlanned(), f.planned("create"), ready},
			"the CA's container 103 has not become ready"},
		{"the CA is ready", []string{started(), f.caPlanned(), of(caID, "ct.ready", ""), f.planned("create"), ready},
			"is phx-ca-export in the pipe?"},
		{"the file has no CA", []string{withoutCA, f.planned("create"), ready},
			"no container of the file is a CA with a fixed address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := f.filter(t, append(slices.Clone(tt.lines), done())...)
			if r.err == nil || len(r.targets) != 0 {
				t.Fatalf("%d times, %v", len(r.targets), r.err)
			}
			if got := r.failure(); !strings.HasPrefix(got, "join: ") || !strings.Contains(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// Nothing is done for a container that is not to be created, in a dry run, or
// of a stream that says otherwise about who is what.
func TestNothingBegins(t *testing.T) {
	f := newFixture(t)
	ready, preview := of(gateway, "ct.ready", ""), of(gateway, "ct.preview", "")
	rest := []string{f.exported(), f.fingerprint(), done()}
	other := of(102, "ca.exported", fmt.Sprintf(`,"path":%q,"sha256":%q`, f.root, f.pin))
	for _, tt := range []struct {
		name   string
		lines  []string
		failed bool
	}{
		{"another action", []string{f.planned("stop"), ready}, false},
		{"not planned", []string{ready}, false},
		{"a dry run", []string{f.planned("create"), preview}, false},
		{"ready, and a dry run", []string{f.planned("create"), ready, preview}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := f.filter(t, slices.Concat([]string{started()}, tt.lines, rest)...)
			if r.err != nil || len(r.targets) != 0 || strings.Contains(r.out, `"nginx.`) {
				t.Errorf("%d times, %v\n%s", len(r.targets), r.err, r.out)
			}
		})
	}
	t.Run("exported from another container", func(t *testing.T) {
		r := f.filter(t, started(), f.planned("create"), ready, other, f.fingerprint(), done())
		if r.err == nil || len(r.targets) != 0 {
			t.Errorf("%d times, %v", len(r.targets), r.err)
		}
	})
	t.Run("two gateways", func(t *testing.T) {
		second := strings.Replace(f.planned("create"), `"ctid":101`, `"ctid":105`, 1)
		r := f.filter(t, started(), f.planned("create"), second, of(105, "ct.ready", ""), f.exported(), f.fingerprint(),
			done())
		if r.err == nil || len(r.targets) != 0 {
			t.Errorf("%d times, %v", len(r.targets), r.err)
		}
	})
	t.Run("one round's events are not another's", func(t *testing.T) {
		r := f.filter(t, started(), f.caPlanned(), f.exported(), f.fingerprint(), done(), started(),
			f.planned("create"), ready, done())
		if r.err == nil || len(r.targets) != 0 {
			t.Errorf("%d times, %v", len(r.targets), r.err)
		}
	})
}

// Where nothing has changed, changes is an empty list, not null.
func TestNoChanges(t *testing.T) {
	f := newFixture(t)
	lines := []string{started(), f.planned("create"), of(gateway, "ct.ready", ""),
		f.exported(), f.fingerprint(), done()}
	const want = `"changed":false,"changes":[],"elapsed_ms":`
	if r := f.filter(t, lines...); r.err != nil || !strings.Contains(r.out, want) {
		t.Errorf("%v\n%s", r.err, r.out)
	}
}

// A stream that ends early: what has begun is finished, and nothing begins.
func TestTruncated(t *testing.T) {
	f := newFixture(t)
	whole := []string{started(), f.planned("create"), of(gateway, "ct.ready", ""), f.exported(), f.fingerprint()}
	for n := 1; n <= len(whole); n++ {
		r := f.filter(t, whole[:n]...)
		if !errors.Is(r.err, event.ErrTruncated) {
			t.Errorf("after %d lines: %v", n, r.err)
		}
		begun := n == len(whole)
		if (len(r.targets) == 1) != begun || strings.Contains(r.out, `"nginx.ready"`) != begun ||
			strings.Contains(r.out, "plan.done") {
			t.Errorf("after %d lines: %d times\n%s", n, len(r.targets), r.out)
		}
	}
}

// The stream is not believed about the root.
func TestTrustIsChecked(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	for _, tt := range []struct {
		name        string
		fingerprint func(*fixture) string
		pinned      string
		readOnly    bool
		want        string
	}{
		{"another CA's URL", func(f *fixture) string {
			return strings.Replace(f.fingerprint(), "10.0.0.10", "10.0.0.66", 1)
		}, "", true, "not that of the CA of the plan"},
		{"a URL that is none", func(f *fixture) string {
			return strings.Replace(f.fingerprint(), "https://10.0.0.10:9000", "https://10.0.0.10:9000/;x", 1)
		}, "", true, "not https://HOST:PORT"},
		{"no fingerprint", func(f *fixture) string { return strings.Replace(f.fingerprint(), f.pin, "1", 1) }, "", true,
			"not 64 hexadecimal digits"},
		{"another root", func(f *fixture) string { return strings.Replace(f.fingerprint(), f.pin, zeros, 1) }, "", true,
			"it is another CA's"},
		{"another root than is pinned", (*fixture).fingerprint, zeros, true, "this host has pinned " + zeros},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			if tt.pinned != "" {
				dir := f.host.State("ca").Path("")
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "pin.json"), fmt.Appendf(nil, `{"primary":%q}`, tt.pinned),
					0o600); err != nil {
					t.Fatal(err)
				}
			}
			r := f.filter(t, started(), f.plannedWith("create", tt.readOnly), of(gateway, "ct.ready", ""), f.exported(),
				tt.fingerprint(f), done())
			if r.err == nil || len(r.targets) != 0 || !strings.HasPrefix(r.failure(), "trust: ") ||
				!strings.Contains(r.failure(), tt.want) {
				t.Errorf("%d times, %v, %q; want %q", len(r.targets), r.err, r.failure(), tt.want)
			}
			if cahost.Taken(f.host, "nginx", []string{f.pin}) {
				t.Error("it is noted that the gateway trusts the root")
			}
		})
	}
}

// The root goes with the request unless the container sees it, and cannot change
// it, by a path that is fit for a configuration.
func TestRootIsMountedOrCarried(t *testing.T) {
	f := newFixture(t)
	dir, deeper := filepath.Dir(f.root), filepath.Dir(filepath.Dir(f.root))
	text, err := os.ReadFile(f.root)
	if err != nil {
		t.Fatal(err)
	}
	carried := guest.Trust{Root: guest.CarriedRoot, Carried: string(text)}
	mount := func(host, at string, readOnly bool) string {
		return fmt.Sprintf(`{"host_path":%q,"container_path":%q,"read_only":%t}`, host, at, readOnly)
	}
	for _, tt := range []struct {
		name   string
		mounts []string
		want   guest.Trust
	}{
		{"not mounted", nil, carried},
		{"something else is mounted", []string{mount(dir+"/other", "/ssl", true)}, carried},
		{"its directory", []string{mount(dir, "/ssl", true)}, guest.Trust{Root: "/ssl/phoenix_ca.crt"}},
		{"a directory above", []string{mount(deeper, "/s", true)}, guest.Trust{Root: "/s/ssl/phoenix_ca.crt"}},
		{"the file", []string{mount(f.root, "/root.pem", true)}, guest.Trust{Root: "/root.pem"}},
		{"for writing", []string{mount(dir, "/ssl", false)}, carried},
		{"for writing as well", []string{mount(dir, "/ssl", true), mount(deeper, "/s", false)}, carried},
		{"at a path with a blank", []string{mount(dir, "/s l", true)}, carried},
	} {
		planned := strings.Replace(f.planned("create"), mount(dir, "/ssl", true), strings.Join(tt.mounts, ","), 1)
		r := f.filter(t, started(), planned, of(gateway, "ct.ready", ""), f.exported(), f.fingerprint(), done())
		if r.err != nil || len(r.targets) != 1 {
			t.Errorf("%s: %d times, %v: %s", tt.name, len(r.targets), r.err, r.failure())
			continue
		}
		tt.want.Fingerprint, tt.want.CAURL = f.pin, "https://10.0.0.10:9000"
		if got := r.targets[0].Trust; got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// What waits for the gateway is told in any case.
func TestGatewayReady(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		name string
		end  []string
		want bool
	}{
		{"ready", []string{of(gateway, "nginx.ready", "")}, true},
		{"failed", []string{of(gateway, "nginx.failed", "")}, false},
		{"failed, and then ready", []string{of(gateway, "nginx.failed", ""), of(gateway, "nginx.ready", "")}, false},
		{"the end of the plan", []string{done()}, false},
		{"the end of the stream", nil, false},
		{"another plan", []string{started()}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ready, asked bool
			j := f.program(func(ctx context.Context, target *Target) (*remote.Answer, error) {
				ready, asked = target.GatewayReady(ctx), true
				return &remote.Answer{}, nil
			})
			lines := slices.Concat([]string{started(), f.planned("create"), of(gateway, "ct.ready", ""), f.exported(),
				f.fingerprint()}, tt.end)
			j.stream = event.NewStream(strings.NewReader(strings.Join(lines, "\n")+"\n"), io.Discard, j.fail)
			j.run(t.Context())
			if !asked || ready != tt.want {
				t.Errorf("asked %v, ready %v, want %v", asked, ready, tt.want)
			}
		})
	}
}
