package cahost

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
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

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/pve"
)

const domain = "internal.example"

var settings = ca.Settings{Domain: domain, Addr: netip.MustParseAddr("10.0.0.10"), Name: "ca", Port: 9000}

// The tests wait more than they work.
func TestMain(m *testing.M) {
	flag.Set("test.parallel", "10")
	m.Run()
}

// tools builds step and step-ca, or finds them built.
var tools = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("../../../scripts/internal/tools/build", "step", "step-ca").Output()
	return string(out), err
})

// site is a host and the container of its CA: namespaces in which /home,
// /etc, /root, /run and /usr/local/bin are the test's own, with a network that
// leads nowhere. step and step-ca are real; systemctl has what is needed of
// systemd's.
type site struct {
	host   *pve.Host
	dir    string
	holder string // pid of what keeps the namespaces
	keys   map[encryptedKey]crypto.Signer
}

const systemctl = `#!/bin/bash
unit=/etc/systemd/system/step-ca.service
value() { sed -n "s/^$1=//p" "$unit" 2>/dev/null; }
active() { [[ -s /run/pid ]] && kill -0 "$(cat /run/pid)" 2>/dev/null; }
stop() {
	active || return 0
	kill "$(cat /run/pid)"
	for _ in {1..100}; do active || return 0; sleep 0.02; done
	kill -9 "$(cat /run/pid)"
}
start() {
	setsid setpriv --reuid "$(value User)" --regid "$(value User)" --clear-groups \
		env -i PATH=/usr/bin:/bin HOME=/ STEPPATH="$(value Environment | sed s/STEPPATH=//)" \
		$(value ExecStart) >>/run/log 2>&1 </dev/null 9>&- & echo $! >/run/pid
}
case $1 in
show)
	case $3 in
	ExecStart) value ExecStart | sed 's/.*/{ path=x ; argv[]=& ; ignore_errors=no }/' ;;
	*) value "$3" ;;
	esac ;;
is-active) active ;;
reload) active && kill -HUP "$(cat /run/pid)" ;;
restart | start) stop; start ;;
stop) stop ;;
esac
`

const makeSite = `set -eu
dir=$1
mkdir -p "$dir/etc" "$dir/bin"
cp -a /etc/. "$dir/etc"
mount --bind "$dir/etc" /etc
mount --bind "$dir/bin" /usr/local/bin
for place in home root run; do mount -t tmpfs -o mode=755 tmpfs "/$place"; done
mkdir -m 700 /home/step
chown 990:990 /home/step
ip link set lo up
ip address add 10.0.0.10/32 dev lo
echo ready
exec sleep infinity`

func newSite(t *testing.T) *site {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces")
	}
	programs, err := tools()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: t.TempDir(), keys: map[encryptedKey]crypto.Signer{}}
	os.Chmod(s.dir, 0o755)
	bin := filepath.Join(s.dir, "ct/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, program := range strings.Fields(programs) {
		if out, err := exec.Command("cp", program, bin).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	write(t, filepath.Join(bin, "systemctl"), systemctl, 0o755)

	holder := exec.Command("unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", makeSite, "sh",
		filepath.Join(s.dir, "ct"))
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	holder.Stderr = os.Stderr
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	if ready := make([]byte, 6); func() error { _, err := out.Read(ready); return err }() != nil ||
		string(ready) != "ready\n" {
		t.Fatal("no namespaces")
	}
	s.holder = fmt.Sprint(holder.Process.Pid)
	t.Cleanup(func() { s.try("systemctl", "stop") })
	s.cut(t, 0)
	s.host = &pve.Host{PCT: filepath.Join(s.dir, "pct"), PVERoot: filepath.Join(s.dir, "pve")}
	return s
}

// cut lets a conversation break off after n commands, 0 for none.
func (s *site) cut(t *testing.T, n int) {
	t.Helper()
	first := ""
	if n > 0 {
		first = fmt.Sprintf(`n=%d; while [ "$n" -gt 0 ] && IFS= read -r line; do `+
			`printf '%%s\n' "$line"; n=$((n - 1)); done | `, n)
	}
	write(t, filepath.Join(s.dir, "pct"), "#!/bin/sh\nshift 5\necho >>"+s.dir+"/calls\n"+first+s.enter()+` "$@"`+"\n",
		0o755)
}

func (s *site) enter() string {
	return "nsenter --mount=/proc/" + s.holder + "/ns/mnt --net=/proc/" + s.holder +
		"/ns/net --wd=/ env -i PATH=/usr/local/bin:/usr/bin:/bin"
}

// try runs a command in the container.
func (s *site) try(argv ...string) (string, error) {
	cmd := exec.Command("sh", append([]string{"-c", "exec " + s.enter() + ` "$@"`, "sh"}, argv...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *site) do(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := s.try(argv...)
	if err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
	return out
}

// serve starts step-ca, as the application script has it.
func (s *site) serve(t *testing.T) { t.Helper(); s.serveAt(t, settings) }

func (s *site) serveAt(t *testing.T, set ca.Settings) {
	t.Helper()
	s.do(t, "sh", "-c", `mkdir -p /etc/systemd/system
unit=/etc/systemd/system/step-ca.service
[ -e $unit ] || cat >$unit <<UNIT
User=990
Environment=STEPPATH=/home/step
ExecStart=/usr/local/bin/step-ca /home/step/config/ca.json --password-file /home/step/secrets/ca_password
UNIT
systemctl start`)
	s.healthy(t, set)
}

func (s *site) healthy(t *testing.T, set ca.Settings) {
	t.Helper()
	var out string
	var err error
	for range 100 {
		if out, err = s.try("env", "HOME=/tmp", "step", "ca", "health", "--ca-url", set.URL(), "--root",
			ca.RootPath); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	log, _ := s.try("tail", "-n", "5", "/run/log")
	t.Fatalf("not healthy: %s\n%s", out, log)
}

func (s *site) converge(t *testing.T, o Options) (*Result, string, error) {
	t.Helper()
	store, closeStore, err := OpenStore(t.Context(), s.host)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore()
	store.keys = s.keys // decrypting takes seconds under the race detector
	var log strings.Builder
	o.Log = func(format string, args ...any) { fmt.Fprintf(&log, format+"\n", args...) }
	r, err := Converge(context.Background(), s.host, 103, store, o)
	return r, log.String(), err
}

func (s *site) must(t *testing.T, o Options) (*Result, string) {
	t.Helper()
	r, log, err := s.converge(t, o)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return r, log
}

func (s *site) calls(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(s.dir, "calls"))
	return len(data)
}

// issue orders a certificate by one-time token, as phx-nginx does.
func (s *site) issue(t *testing.T, set ca.Settings, name string, names ...string) (string, error) {
	t.Helper()
	token, err := s.try(ca.TokenCommand(set.URL(), name, names...)...)
	if err != nil {
		return "", fmt.Errorf("token: %s", token)
	}
	lines := strings.Fields(token)
	out, err := s.try("sh", "-c", `cd /run && rm -f x.crt x.key &&
STEPPATH=/run/client HOME=/run STEP_TOKEN=$1 step ca certificate "$2" x.crt x.key --force \
	--ca-url "$3" --root `+ca.RootPath+` 2>&1 </dev/null && cat x.crt`,
		"sh", lines[len(lines)-1], name, set.URL())
	if err != nil {
		return "", errors.New(out)
	}
	return out[strings.Index(out, "-----BEGIN"):], nil
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	// A program that a parallel test starts meanwhile would hold the file open
	// for writing, and what is open for writing cannot be run.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func (s *site) tree(t *testing.T) string {
	t.Helper()
	return s.do(t, "sh", "-c", `cd /home/step && find . -path ./db -prune -o -printf '%m %U %p\n' | sort -k3`)
}

func TestCreate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r, log := s.must(t, Options{Settings: &settings, Create: true})
	if s.calls(t) != 1 {
		t.Error("more than one pct exec")
	}
	if !strings.Contains(log, "made the CA for "+domain) || len(r.Changes) != 1 || len(r.Roots) != 1 {
		t.Errorf("changes %q\n%s", r.Changes, log)
	}
	tree := s.tree(t)
	if strings.Contains(tree, "root_ca_key") || strings.Contains(tree, ".new") || strings.Contains(tree, "thrown") {
		t.Errorf("the container has what it should not have:\n%s", tree)
	}
	for line := range strings.Lines(tree) {
		if f := strings.Fields(line); f[1] != "990" || !strings.HasSuffix(f[0], "00") {
			t.Errorf("not for the CA's user alone: %s", line)
		}
	}
	s.serve(t)

	// A second run changes nothing.
	r, _ = s.must(t, Options{Settings: &settings, Create: true})
	if len(r.Changes) > 0 || s.tree(t) != tree || s.calls(t) != 1 {
		t.Errorf("a second run changed %q", r.Changes)
	}
	checkStore(t, s, r.Pin.Primary)

	// What it issues, and what it does not.
	with := settings
	with.Names = []string{"ca." + domain, "a.b." + domain, "c.d.elsewhere.example"}
	if _, err := s.issue(t, settings, "a.b."+domain); err == nil {
		t.Error("a name two labels below the domain was issued, though no service has it")
	}
	s.must(t, Options{Settings: &with})
	for _, names := range [][]string{{domain, domain, "*." + domain}, {"x." + domain}, {"a.b." + domain}} {
		text, err := s.issue(t, with, names[0], names[min(1, len(names)-1):]...)
		if err != nil {
			t.Errorf("%q: %v", names, err)
			continue
		}
		verify(t, r.Roots, text, names[0], true)
	}
	for _, names := range [][]string{{"evil.example"}, {"10.0.0.99"}, {"10.0.0.10"},
		{"x." + domain, "x." + domain, "evil.example"}, {"evil" + domain}, {"c.d.elsewhere.example"}} {
		if _, err := s.issue(t, with, names[0], names[min(1, len(names)-1):]...); err == nil {
			t.Errorf("%q was issued", names)
		}
	}
	config := s.do(t, "cat", ca.ConfigPath)
	if !regexp.MustCompile(`"challenges": \[\s*"tls-alpn-01"\s*\]`).MatchString(config) {
		t.Errorf("challenges of ACME: %s", config)
	}
}

// checkStore checks that a store holds one root with its key, for root alone.
func checkStore(t *testing.T, s *site, sum string) {
	t.Helper()
	dir := stateOf(s.host).Path("")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if info, _ := e.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", e.Name(), info.Mode().Perm())
		}
	}
	if want := []string{sum + ".crt", sum + ".key", sum + ".password", "pin.json"}; !slices.Equal(names, want) {
		t.Errorf("%s holds %q, want %q", dir, names, want)
	}
	if key, _ := os.ReadFile(filepath.Join(dir, sum+".key")); !bytes.Contains(key, []byte("ENCRYPTED")) {
		t.Error("the root's key is not encrypted")
	}
}

// verify checks a chain in PEM by Go, openssl and, where it is in PATH, step
// alike.
func verify(t *testing.T, roots []*x509.Certificate, chain, name string, good bool) {
	t.Helper()
	all, err := cert.ParseChain([]byte(chain))
	if err != nil {
		t.Fatal(err)
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	for _, c := range all[1:] {
		between.AddCert(c)
	}
	_, goErr := all[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, DNSName: name})
	dir := t.TempDir()
	write(t, dir+"/root.crt", string(cert.Encode(roots...)), 0o600)
	write(t, dir+"/chain.crt", chain, 0o600)
	write(t, dir+"/between.crt", string(cert.Encode(all[1:]...)), 0o600)
	ssl, sslErr := exec.Command("openssl", "verify", "-x509_strict", "-CAfile", dir+"/root.crt", "-untrusted",
		dir+"/between.crt", dir+"/chain.crt").CombinedOutput()
	verdicts := map[string]error{"Go": goErr, "openssl: " + string(ssl): sslErr}
	if program, err := exec.LookPath("step"); err == nil { // scripts/test builds it
		step := exec.Command(program, "certificate", "verify", dir+"/chain.crt", "--roots", dir+"/root.crt",
			"--host", name)
		step.Env = []string{"HOME=" + dir, "PATH=/usr/bin:/bin"}
		out, err := step.CombinedOutput()
		verdicts["step: "+string(out)] = err
	}
	for program, err := range verdicts {
		if (err == nil) != good {
			t.Errorf("%s: good %t, %s says %v", name, good, program, err)
		}
	}
}

// What the intermediate signs for others is worth nothing, whoever has its
// key.
func TestNameConstraints(t *testing.T) {
	now := time.Now()
	root, rootKey, err := newRoot(now)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	settings := settings
	settings.Also = []netip.Addr{netip.MustParseAddr("fd00::10")}
	intermediate, err := signIntermediate(requestOf(t, key), settings, root, rootKey, now)
	if err != nil {
		t.Fatal(err)
	}
	if why := misfit(intermediate, settings, root, now); why != "" {
		t.Error(why)
	}
	if why := misfit(intermediate, settings, root,
		now.Add(intermediateLife-renewBefore/2)); why != "it is about to expire" {
		t.Errorf("near its end: %q", why)
	}
	other := settings
	other.Addr = netip.MustParseAddr("10.0.0.11")
	if why := misfit(intermediate, other, root, now); why != "it is for other names" {
		t.Errorf("of another address: %q", why)
	}
	leaf := func(parent *x509.Certificate, signer *ecdsa.PrivateKey, change func(*x509.Certificate)) (*x509.Certificate,
		*ecdsa.PrivateKey) {
		t.Helper()
		key := newKey(t)
		serial, _ := newSerial()
		template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "x"},
			NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			BasicConstraintsValid: true}
		change(template)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, key
	}
	for name, good := range map[string]bool{
		domain: true, "a." + domain: true, "a.b." + domain: true, "10.0.0.10": true, "127.0.0.1": true,
		"fd00::10": true, "fd00::11": false,
		"evil.example": false, "evil" + domain: false, "10.0.0.99": false, "10.0.0.11": false, "::1": false,
	} {
		c, _ := leaf(intermediate, key, func(c *x509.Certificate) {
			if ip := net.ParseIP(name); ip != nil {
				c.IPAddresses = []net.IP{ip}
			} else {
				c.DNSNames = []string{name}
			}
		})
		verify(t, []*x509.Certificate{root}, string(cert.Encode(c, intermediate)), name, good)
	}
	// Whatever it signs is for TLS alone.
	c, _ := leaf(intermediate, key, func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"a." + domain}, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	})
	if _, err := c.Verify(x509.VerifyOptions{Roots: cert.Pool(root), Intermediates: cert.Pool(intermediate),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}); err == nil {
		t.Error("a certificate to sign code counts")
	}
	// It signs no further CA.
	below, belowKey := leaf(intermediate, key, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	})
	c, _ = leaf(below, belowKey, func(c *x509.Certificate) { c.DNSNames = []string{"a." + domain} })
	verify(t, []*x509.Certificate{root}, string(cert.Encode(c, below, intermediate)), "a."+domain, false)

	for what, request := range map[string][]byte{
		"the root's own key": requestOf(t, rootKey),
		"nothing":            nil,
		"a certificate":      cert.Encode(root),
		"two":                append(requestOf(t, key), requestOf(t, key)...),
	} {
		if _, err := signIntermediate(request, settings, root, rootKey, now); err == nil {
			t.Errorf("a request with %s was signed", what)
		}
	}
	forged := requestOf(t, key)
	forged[len(forged)/2] ^= 1
	if _, err := signIntermediate(forged, settings, root, rootKey, now); err == nil {
		t.Error("a damaged request was signed")
	}
	// Nothing outlives its issuer.
	late := now.Add(rootLife - time.Hour)
	if c, err := signIntermediate(requestOf(t, key), settings, root, rootKey, late); err != nil ||
		c.NotAfter.After(root.NotAfter) {
		t.Errorf("%v, %v", c, err)
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func requestOf(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: "evil"}, DNSNames: []string{"evil.example"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return encodePEM("CERTIFICATE REQUEST", der)
}

// long reports whether tests are to break off everywhere, and not only here
// and there.
func long() bool { return os.Getenv("PHX_TEST_LONG") == "1" }

// A conversation that breaks off anywhere is completed by the next run.
func TestCreateIsCompleted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first, step := 2, 3 // after make, put, ready, read
	if long() {
		first, step = 1, 1
	}
	for n := first; ; n += step {
		s.do(t, "sh", "-c", "rm -rf /home/step/* /home/step/.[a-z]*")
		os.RemoveAll(s.host.PVERoot)
		s.cut(t, n)
		_, _, err := s.converge(t, Options{Settings: &settings, Create: true})
		s.cut(t, 0)
		r, log := s.must(t, Options{Settings: &settings, Create: true})
		if err == nil {
			if n < 10 {
				t.Errorf("only %d commands: this test breaks off nothing", n)
			}
			if len(r.Changes) > 0 {
				t.Errorf("changed once more: %s", log)
			}
			break
		}
		checkStore(t, s, r.Pin.Primary)
		if again, _ := s.must(t, Options{Settings: &settings, Create: true}); len(again.Changes) > 0 {
			t.Errorf("after %d commands, the second run changed %q", n, again.Changes)
		}
	}
	s.serve(t)
}

// Another domain or address asks for another certificate of the intermediate.
func TestOtherSettings(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first, _ := s.must(t, Options{Settings: &settings, Create: true})
	s.serve(t)
	other := settings
	other.Domain, other.Name, other.Port = "other.example", "pki", 9443
	r, log := s.must(t, Options{Settings: &other})
	if !strings.Contains(log, "other names") || r.Pin != first.Pin {
		t.Errorf("%s", log)
	}
	s.healthy(t, other)
	text, err := s.issue(t, other, "x.other.example")
	if err != nil {
		t.Fatal(err)
	}
	verify(t, r.Roots, text, "x.other.example", true)
	if again, _ := s.must(t, Options{Settings: &other}); len(again.Changes) > 0 {
		t.Errorf("the next run changed %q", again.Changes)
	}
	if tree := s.tree(t); strings.Count(tree, "intermediate_ca") != 2 {
		t.Errorf("former intermediates are left:\n%s", tree)
	}
	// A lost certificate is made again, and so is a lost root.
	s.do(t, "sh", "-c", "rm /home/step/certs/*")
	if _, log := s.must(t, Options{Settings: &other}); !strings.Contains(log, "cannot be read") {
		t.Error(log)
	}
	s.healthy(t, other)
}

// The root's key is not decrypted where nothing is to be signed; a damaged one is
// found before anything is changed, and by a check.
func TestDamagedKey(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if has, err := CheckKey(s.host, strings.Repeat("0", 64)); has || err != nil {
		t.Errorf("no key: %t, %v", has, err)
	}
	r, _ := s.must(t, Options{Settings: &settings, Create: true})
	if has, err := CheckKey(s.host, r.Pin.Primary); !has || err != nil {
		t.Errorf("%t, %v", has, err)
	}
	s.serve(t)
	write(t, stateOf(s.host).Path(r.Pin.Primary+".key"), "damaged\n", 0o600)
	if again, log := s.must(t, Options{Settings: &settings}); len(again.Changes) > 0 || log != "" {
		t.Errorf("%q\n%s", again.Changes, log)
	}
	if has, err := CheckKey(s.host, r.Pin.Primary); !has || err == nil || !strings.Contains(err.Error(), ".key") {
		t.Errorf("%t, %v", has, err)
	}
	s.do(t, "sh", "-c", "rm /home/step/certs/intermediate*")
	before := s.tree(t)
	if _, _, err := s.converge(t, Options{Settings: &settings}); err == nil || !strings.Contains(err.Error(), ".key") {
		t.Errorf("%v", err)
	}
	if after := s.tree(t); after != before {
		t.Errorf("it has changed\n%s\nwas\n%s", after, before)
	}
}

// A change of settings that breaks off anywhere is completed by the next run,
// in which the CA serves as it is told.
func TestOtherSettingsAreCompleted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.must(t, Options{Settings: &settings, Create: true})
	s.serve(t)
	first, step := 6, 3 // after the request, ca.json
	if long() {
		first, step = 1, 1
	}
	for n := first; ; n += step {
		other := settings
		other.Domain, other.Port = fmt.Sprintf("n%d.example", n), 9000+n
		s.cut(t, n)
		_, _, err := s.converge(t, Options{Settings: &other})
		s.cut(t, 0)
		r, log := s.must(t, Options{Settings: &other})
		s.healthy(t, other)
		text, issueErr := s.issue(t, other, "a."+other.Domain)
		if issueErr != nil {
			t.Fatalf("after %d commands: %v\n%s", n, issueErr, log)
		}
		verify(t, r.Roots, text, "a."+other.Domain, true)
		if again, _ := s.must(t, Options{Settings: &other}); len(again.Changes) > 0 {
			t.Errorf("after %d commands, the second run changed %q", n, again.Changes)
		}
		if tree := s.tree(t); strings.Count(tree, "intermediate_ca") != 2 {
			t.Errorf("after %d commands, former intermediates are left:\n%s", n, tree)
		}
		if err == nil {
			if n < 8 {
				t.Errorf("only %d commands: this test breaks off nothing", n)
			}
			break
		}
	}
}

// A CA may have IPv6 alone, or several addresses: it answers, makes tokens and
// issues at each of them, and for nobody else's.
func TestSeveralAddresses(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.do(t, "ip", "address", "add", "fd00::10/128", "dev", "lo", "nodad")
	six := settings
	six.Addr = netip.MustParseAddr("fd00::10")
	r, _ := s.must(t, Options{Settings: &six, Create: true})
	s.serveAt(t, six)
	if again, log := s.must(t, Options{Settings: &six}); len(again.Changes) > 0 {
		t.Errorf("the second run: %s", log)
	}
	text, err := s.issue(t, six, domain, domain, "*."+domain)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, r.Roots, text, domain, true)

	both := six
	both.Also = []netip.Addr{settings.Addr}
	if _, log := s.must(t, Options{Settings: &both}); !strings.Contains(log, "changed the CA's names") {
		t.Errorf("another address: %s", log)
	}
	for _, at := range []ca.Settings{six, settings} {
		s.healthy(t, at)
		if _, err := s.issue(t, at, "x."+domain); err != nil {
			t.Error(err)
		}
		if _, err := s.issue(t, at, at.Addr.String()); err == nil {
			t.Errorf("%v was issued", at.Addr)
		}
	}
	both.Names = []string{"a.b." + domain}
	s.must(t, Options{Settings: &both})
	// Nor does one who knows a part of it, as the feature.
	for name, set := range map[string]ca.Settings{"all": both, "the address": six} {
		if again, log := s.must(t, Options{Settings: &set, Create: true}); len(again.Changes) > 0 {
			t.Errorf("a second run that knows %s: %s", name, log)
		}
	}
	if _, err := s.issue(t, settings, "a.b."+domain); err != nil {
		t.Error(err)
	}
}

// A configuration that the CA cannot start with is taken back.
func TestTakenBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.must(t, Options{Settings: &settings, Create: true})
	s.serve(t)
	other := settings
	other.Port = 9443
	s.must(t, Options{Settings: &other})
	s.healthy(t, other)
	before := s.do(t, "cat", ca.ConfigPath)
	taken := other
	taken.Port = 80 // not for the CA's user
	if _, _, err := s.converge(t, Options{Settings: &taken}); err == nil ||
		!strings.Contains(err.Error(), "the former configuration is in place again") {
		t.Errorf("%v", err)
	}
	if after := s.do(t, "cat", ca.ConfigPath); after != before {
		t.Errorf("the configuration was not taken back: %s", after)
	}
	s.healthy(t, other)
}

// makeLegacy makes a CA as phx did before, with the root's key in its container.
func (s *site) makeLegacy(t *testing.T) string {
	t.Helper()
	s.do(t, "setpriv", "--reuid", "990", "--regid", "990", "--clear-groups", "sh", "-euc", `umask 077
cd /home/step
export HOME=/home/step STEPPATH=/home/step
mkdir secrets; for p in ca provisioner; do head -c 32 /dev/urandom | base64 >secrets/${p}_password; done
step ca init --deployment-type standalone --name "Phoenix CA" \
	--dns ca.internal.example --dns 10.0.0.10 --dns Step-CA --dns localhost --dns 127.0.0.1 \
	--address :9000 --with-ca-url https://localhost:9000 --provisioner phoenix --acme \
	--password-file secrets/ca_password --provisioner-password-file secrets/provisioner_password`)
	return strings.TrimSpace(s.do(t, "env", "HOME=/tmp", "step", "certificate", "fingerprint", ca.RootPath))
}

// A rotation, of a CA whose root's key lies in its container. Clients that
// trust the exported file, and renew by certificates of the old root, never
// notice.
func TestRotation(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	old := s.makeLegacy(t)
	s.serve(t)
	r, log := s.must(t, Options{Settings: &settings, Create: true})
	if r.Pin.Primary != old || !strings.Contains(log, "the key of this CA's root is in its container") {
		t.Fatalf("%+v\n%s", r, log)
	}
	if again, _ := s.must(t, Options{Settings: &settings, Create: true}); len(again.Changes) > 0 {
		t.Errorf("the second run changed %q", again.Changes)
	}
	// A client with a certificate of the old root.
	if _, err := s.issue(t, settings, "client."+domain); err != nil {
		t.Fatal(err)
	}
	s.do(t, "sh", "-c", "cp /run/x.crt /run/old.crt; cp /run/x.key /run/old.key")

	// While all goes on, the CA answers to whoever trusts the file, and renews.
	trusted := filepath.Join(s.dir, "ct/etc/trusted.crt")
	export := func(r *Result) {
		write(t, trusted+".new", string(cert.Encode(r.Roots...)), 0o644)
		os.Rename(trusted+".new", trusted)
	}
	export(r)
	stop, stopped := make(chan struct{}), make(chan struct{})
	requests, failed := 0, []string{}
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, root := range []string{"/etc/trusted.crt", ca.RootPath} {
				requests++
				if out, err := s.try("env", "HOME=/tmp", "step", "ca", "health", "--ca-url", settings.URL(), "--root",
					root); err != nil {
					failed = append(failed, root+": "+out)
				}
			}
		}
	}()
	renew := func(step string) {
		t.Helper()
		s.do(t, "sh", "-c", "cp /run/old.crt /run/r.crt; cp /run/old.key /run/r.key")
		if out, err := s.try("env", "HOME=/tmp", "STEPPATH=/run/client", "step", "ca", "renew", "--force", "--ca-url",
			settings.URL(), "--root", "/etc/trusted.crt", "/run/r.crt", "/run/r.key"); err != nil {
			t.Errorf("%s: renewing by a certificate of the old root: %s", step, out)
		}
	}
	takenBy := errors.New("phx-nginx has not")
	rotate := func(step string) *Result {
		t.Helper()
		r, log := s.must(t, Options{Settings: &settings, Rotate: step, Taken: func([]string) error { return takenBy }})
		if r.Refused != nil {
			t.Fatalf("%s: %v\n%s", step, r.Refused, log)
		}
		return r
	}
	refuse := func(step, why string) {
		t.Helper()
		r, _ := s.must(t, Options{Settings: &settings, Rotate: step, Taken: func([]string) error { return takenBy }})
		if r.Refused == nil || !strings.Contains(r.Refused.Error(), why) || r.Rotated || len(r.Changes) > 0 {
			t.Errorf("%s: %v, changed %q", step, r.Refused, r.Changes)
		}
	}

	refuse(StepCertificates, "first step is trust")
	refuse(StepDrop, "first step is trust")
	r = rotate(StepTrust)
	if r.Pin.Primary != old || r.Pin.Also == "" || !r.Rotated || len(r.Roots) != 2 {
		t.Fatalf("%+v", r.Pin)
	}
	export(r)
	if again := rotate(StepTrust); again.Rotated || len(again.Changes) > 0 {
		t.Error("trust, again, changed something")
	}
	renew(StepTrust)
	refuse(StepDrop, "next step is certificates")
	refuse(StepCertificates, "phx-nginx has not")
	text, err := s.issue(t, settings, "a."+domain)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, r.Roots[:1], text, "a."+domain, true)

	takenBy = nil
	now := r.Pin.Also
	r = rotate(StepCertificates)
	if r.Pin.Primary != now || r.Pin.Also != old {
		t.Fatalf("%+v", r.Pin)
	}
	export(r)
	if again := rotate(StepCertificates); again.Rotated || len(again.Changes) > 0 {
		t.Errorf("certificates, again, changed %q", again.Changes)
	}
	refuse(StepTrust, "next step is drop")
	renew(StepCertificates)
	if text, err = s.issue(t, settings, "b."+domain); err != nil {
		t.Fatal(err)
	}
	verify(t, r.Roots[:1], text, "b."+domain, true)
	if out := s.do(t, ca.TokenCommand(settings.URL(), "c."+domain)...); !strings.Contains(out, ".") {
		t.Error(out)
	}

	r = rotate(StepDrop)
	if r.Pin.Primary != now || r.Pin.Also != "" || r.Pin.Dropped != old {
		t.Fatalf("%+v", r.Pin)
	}
	export(r)
	if again := rotate(StepDrop); again.Rotated || len(again.Changes) > 0 {
		t.Errorf("drop, again, changed %q", again.Changes)
	}
	close(stop)
	<-stopped
	if len(failed) > 0 || requests < 20 {
		t.Errorf("%d of %d requests failed: %q", len(failed), requests, failed)
	}
	t.Logf("%d requests, %d failed", requests, len(failed))
	tree := s.tree(t)
	if strings.Contains(tree, "root_ca_key") || strings.Count(tree, "intermediate_ca") != 2 {
		t.Errorf("left in the container:\n%s", tree)
	}
	checkStore(t, s, now)
	s.do(t, "systemctl", "restart")
	s.healthy(t, settings)

	// What a drop that was killed has left goes before the next rotation.
	left := filepath.Join(stateOf(s.host).Path(""), old+".key")
	write(t, left, "a key", 0o600)
	write(t, filepath.Join(stateOf(s.host).Path(""), old+".crt"), "its certificate", 0o600)
	rotate(StepTrust)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key of a root that was dropped: %v", err)
	}
}

// A step of a rotation that breaks off anywhere is completed by the next run,
// which is told nothing of a rotation.
func TestRotationIsCompleted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.must(t, Options{Settings: &settings, Create: true})
	s.serve(t)
	yes := func([]string) error { return nil }
	broken, rounds := 0, []int{0, 3}
	if long() {
		rounds = []int{0, 1, 2, 3, 4}
	}
	for _, i := range rounds {
		after := map[string]int{StepTrust: 4 + i%2, StepCertificates: 5 + i, StepDrop: 4 + i%4}
		for _, step := range []string{StepTrust, StepCertificates, StepDrop} {
			n := after[step]
			s.cut(t, n)
			_, _, err := s.converge(t, Options{Settings: &settings, Rotate: step, Taken: yes})
			if err != nil {
				broken++
			}
			s.cut(t, 0)
			r, log := s.must(t, Options{Settings: &settings})
			s.healthy(t, settings)
			text, err := s.issue(t, settings, "a."+domain)
			if err != nil {
				t.Fatalf("%s after %d: %v\n%s", step, n, err, log)
			}
			verify(t, r.Roots[:1], text, "a."+domain, true)
			if again, _ := s.must(t, Options{Settings: &settings}); len(again.Changes) > 0 {
				t.Errorf("%s after %d: the second run changed %q", step, n, again.Changes)
			}
			if want := map[string]string{StepTrust: StepTrust,
				StepCertificates: StepCertificates}[step]; r.Pin.Step != want {
				t.Fatalf("%s after %d: the pin is %+v", step, n, r.Pin)
			}
		}
	}
	if broken < 2*len(rounds) {
		t.Errorf("%d conversations broke off: this test interrupts nothing", broken)
	}
}

func TestAnotherRootIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	old := s.makeLegacy(t)
	if r, _ := s.must(t, Options{}); r.Pin.Primary != old {
		t.Fatalf("%+v", r.Pin)
	}
	s.do(t, "sh", "-c", "rm -rf /home/step/*")
	if _, _, err := s.converge(t, Options{Settings: &settings, Create: true}); err == nil ||
		!strings.Contains(err.Error(), old) {
		t.Errorf("a new CA in place of one that is pinned: %v", err)
	}
	other := s.makeLegacy(t)
	for _, accept := range []string{"", strings.Repeat("0", 64), old} {
		_, _, err := s.converge(t, Options{Settings: &settings, Create: true, Accept: accept})
		if err == nil || !strings.Contains(err.Error(), old) ||
			!strings.Contains(err.Error(), "PHX_ACCEPT_NEW_ROOT="+other) {
			t.Errorf("accept %q: %v", accept, err)
		}
	}
	if r, _ := s.must(t, Options{Accept: other}); r.Pin.Primary != other {
		t.Errorf("%+v", r.Pin)
	}
	if r, _ := s.must(t, Options{}); r.Pin.Primary != other {
		t.Errorf("%+v", r.Pin)
	}
	s.do(t, "sh", "-c", "rm -rf /home/step/*")
	r, _ := s.must(t, Options{Settings: &settings, Create: true, Accept: "1"})
	if r.Pin.Primary == other {
		t.Error("no new root")
	}
	// Its key is on the host: the same root serves a new container.
	s.do(t, "sh", "-c", "rm -rf /home/step/*")
	if again, _ := s.must(t, Options{Settings: &settings, Create: true}); again.Pin != r.Pin {
		t.Errorf("%+v, before %+v", again.Pin, r.Pin)
	}
	s.serve(t)
}

// makeOld makes a CA as the scripts leave it that phx replaces.
func (s *site) makeOld(t *testing.T, place, acme string) {
	t.Helper()
	s.do(t, "sh", "-euc", `umask 022; mkdir -p "$1"; cd "$1"; export HOME=/tmp STEPPATH=$1
echo "the password of the keys" >ca_password.txt; echo "the password of the provisioner" >provisioner_password.txt
step ca init --deployment-type standalone --name "ThinkHeads Internal CA" \
	--dns ca.internal.example --dns 10.0.0.10 --address :9000 --with-ca-url https://ca.internal.example:9000 \
	--provisioner admin@internal.example $2 \
	--password-file ca_password.txt --provisioner-password-file provisioner_password.txt`, "sh", place, acme)
}

func (s *site) oldUnit(t *testing.T, place string) {
	t.Helper()
	s.do(t, "sh", "-euc", `mkdir -p /etc/systemd/system
cat >/etc/systemd/system/step-ca.service <<UNIT
User=0
Environment=STEPPATH=$1
ExecStart=/usr/local/bin/step-ca $1/config/ca.json --password-file $1/ca_password.txt
UNIT
systemctl start`, "sh", place)
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"/etc/step-ca/ssl", "/etc/step-ca", "/root/.step"} {
		t.Run(strings.ReplaceAll(place, "/", "_"), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.makeOld(t, place, "")
			s.oldUnit(t, place)
			listing := `cd "$1"; find . -path ./db -prune -o -type f ! -name 'ca.json*' -exec sha256sum {} +; ` +
				`sha256sum /etc/systemd/system/step-ca.service`
			before := s.do(t, "sh", "-c", listing, "sh", place)
			former := s.do(t, "cat", place+"/config/ca.json")

			if _, _, err := s.converge(t, Options{Settings: &settings}); err == nil ||
				!strings.Contains(err.Error(), "has not taken over") {
				t.Errorf("without the feature: %v", err)
			}
			r, log := s.must(t, Options{Settings: &settings, Create: true})
			for _, said := range []string{"ACME provisioner acme", "policy: " + domain, "took over the CA at " + place +
				"/config/ca.json", "ca.json.before-phx"} {
				if !strings.Contains(log, said) {
					t.Errorf("it does not say %q:\n%s", said, log)
				}
			}
			s.healthy(t, settings) // by the link at the usual place
			if after := s.do(t, "sh", "-c", listing, "sh", place); after != before {
				t.Errorf("files were replaced:\n%s\n%s", before, after)
			}
			if kept := s.do(t, "cat", place+"/config/ca.json.before-phx"); kept != former {
				t.Error("the copy is another file")
			}
			if root := strings.TrimSpace(s.do(t, "env", "HOME=/tmp", "step", "certificate", "fingerprint",
				place+"/certs/root_ca.crt")); root != r.Pin.Primary {
				t.Errorf("pinned %s, the root is %s", r.Pin.Primary, root)
			}
			text, err := s.issue(t, settings, domain, domain, "*."+domain)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, r.Roots, text, domain, true)
			if _, err := s.issue(t, settings, "evil.example"); err == nil {
				t.Error("evil.example was issued")
			}
			s.calls(t)
			again, log := s.must(t, Options{Settings: &settings, Create: true})
			if len(again.Changes) > 0 || s.calls(t) != 1 {
				t.Errorf("the second run: %s", log)
			}
			if r, _ := s.must(t, Options{Settings: &settings, Rotate: StepTrust}); r.Refused == nil {
				t.Error("the root of a CA that was there before was rotated")
			}
			// A service with a name of several labels comes later.
			with := settings
			with.Names = []string{"x." + domain, "a.b." + domain}
			if _, err := s.issue(t, settings, "a.b."+domain); err == nil {
				t.Error("a name two labels below the domain was issued, though no service has it")
			}
			s.calls(t)
			if _, log := s.must(t, Options{Settings: &with}); !strings.Contains(log, "added to "+place+
				"/config/ca.json: policy: a.b."+domain+"\n") || s.calls(t) != 1 {
				t.Errorf("a name of two labels: %s", log)
			}
			if text, err = s.issue(t, with, "a.b."+domain); err != nil {
				t.Fatal(err)
			}
			verify(t, r.Roots, text, "a.b."+domain, true)
			if again, log := s.must(t, Options{Settings: &with}); len(again.Changes) > 0 {
				t.Errorf("the run after that: %s", log)
			}
			// And so does another address.
			s.do(t, "ip", "address", "add", "fd00::10/128", "dev", "lo", "nodad")
			with.Also = []netip.Addr{netip.MustParseAddr("fd00::10")}
			if _, log := s.must(t, Options{Settings: &with}); !strings.Contains(log, "ca.json: name fd00::10\n") {
				t.Errorf("another address: %s", log)
			}
			six := with
			six.Addr = with.Also[0]
			s.healthy(t, six)
		})
	}
}

// A conversation that takes over a CA, and breaks off anywhere, is completed by
// the next run: nothing of that CA is lost, nor added twice.
func TestAdoptIsCompleted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const place = "/root/.step"
	first, step := 4, 3 // after password, reload
	if long() {
		first, step = 1, 1
	}
	for n := first; ; n += step {
		s.do(t, "sh", "-c", "systemctl stop; rm -rf /etc/phx /root/.step /home/step/* "+
			"/etc/systemd/system/step-ca.service")
		os.RemoveAll(s.host.PVERoot)
		s.makeOld(t, place, "")
		s.oldUnit(t, place)
		former := s.do(t, "cat", place+"/config/ca.json")
		s.cut(t, n)
		_, _, err := s.converge(t, Options{Settings: &settings, Create: true})
		s.cut(t, 0)
		r, log := s.must(t, Options{Settings: &settings, Create: true})
		if err == nil {
			if n < 8 {
				t.Errorf("only %d commands: this test breaks off nothing", n)
			}
			break
		}
		if kept := s.do(t, "cat", place+"/config/ca.json.before-phx"); kept != former {
			t.Errorf("after %d commands, the copy is another file", n)
		}
		// The running service has what was added.
		s.do(t, "curl", "--silent", "--show-error", "--fail", "--cacert", place+"/certs/root_ca.crt",
			settings.URL()+"/acme/acme/directory")
		if text := s.do(t, "cat", place+"/config/ca.json"); strings.Count(text, `"ACME"`) != 1 {
			t.Errorf("after %d commands, ca.json is\n%s", n, text)
		}
		s.healthy(t, settings)
		text, err := s.issue(t, settings, "a."+domain)
		if err != nil {
			t.Fatalf("after %d commands: %v\n%s", n, err, log)
		}
		verify(t, r.Roots, text, "a."+domain, true)
		if again, _ := s.must(t, Options{Settings: &settings, Create: true}); len(again.Changes) > 0 {
			t.Errorf("after %d commands, the second run changed %q", n, again.Changes)
		}
	}
}

func TestNotAdopted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tt := range []struct{ name, make, why string }{
		{"several", "", "more than one CA: /etc/step-ca/ssl/config/ca.json,/root/.step/config/ca.json"},
		{"no password", "rm /etc/step-ca/ssl/provisioner_password.txt", "no JWK provisioner whose password"},
		{"another port", "sed -i 's/:9000/:9001/' /etc/step-ca/ssl/config/ca.json", "traefik_service says port 9000"},
		{"no root", "rm /etc/step-ca/ssl/certs/root_ca.crt", "root_ca.crt: it is empty"},
		{"mount missing", "mv /etc/step-ca /etc/away", "was a CA, and /etc/step-ca/ssl/config/ca.json is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.do(t, "sh", "-c", "systemctl stop; rm -rf /etc/step-ca /etc/away /root/.step /home/step/* "+
				"/etc/systemd/system/step-ca.service")
			os.RemoveAll(s.host.PVERoot)
			s.makeOld(t, "/etc/step-ca/ssl", "")
			if tt.make == "" {
				s.makeOld(t, "/root/.step", "")
			} else {
				s.oldUnit(t, "/etc/step-ca/ssl")
				s.do(t, "sh", "-c", tt.make)
			}
			const listing = `find /etc/step-ca /etc/away /root/.step /home/step ` +
				`-path '*/db' -prune -o -type f -exec sha256sum {} + 2>/dev/null`
			before, _ := s.try("sh", "-c", listing)
			_, log, err := s.converge(t, Options{Settings: &settings, Create: true})
			if err == nil || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("%v\n%s", err, log)
			}
			if after, _ := s.try("sh", "-c", listing); after != before {
				t.Errorf("files were changed:\n%s\n%s", before, after)
			}
		})
	}
}

// Of a root's file only the certificates count, and a long one is not read.
func TestLongRootFile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.makeLegacy(t)
	first, _ := s.must(t, Options{Settings: nil})
	for size, refused := range map[int]bool{1 << 10: false, 16 << 20: true} {
		s.do(t, "sh", "-euc", `cd /home/step/certs; cp root_ca.crt kept
{ yes '# a comment' | head -c "$1"; echo; cat kept; } >root_ca.crt`, "sh", strconv.Itoa(size))
		r, _, err := s.converge(t, Options{})
		switch {
		case refused && (err == nil || !strings.Contains(err.Error(), ca.RootPath+": longer than 65536 bytes")):
			t.Errorf("%d bytes: error %v", size, err)
		case !refused && (err != nil || r.Pin != first.Pin || len(r.Roots) != 1):
			t.Errorf("%d bytes: %+v, %v", size, r, err)
		}
		s.do(t, "sh", "-euc", "cd /home/step/certs; mv kept root_ca.crt")
	}
}

// What a container says is bounded, and hangs nobody for long.
func TestHostileContainer(t *testing.T) {
	dir := t.TempDir()
	host := &pve.Host{PCT: filepath.Join(dir, "pct"), PVERoot: filepath.Join(dir, "pve")}
	for name, says := range map[string]string{
		"flood":          "exec yes",
		"a long line":    "head -c 3000000 /dev/zero | tr '\\0' x",
		"nothing":        "exit 0",
		"escape":         "printf 'error \\033]0;owned\\007 hint: rm -rf /\\n'; cat >/dev/null",
		"another answer": "printf 'ok own\\n'; cat >/dev/null",
		"not base64":     "printf 'ok own /home/step /home/step/config/ca.json no no\\nok !!!\\n'; cat >/dev/null",
		"a path":         "printf 'ok own /home/step $(reboot) no no\\n'; cat >/dev/null",
		"a message": `printf 'ok several /home/step /x.\342\240\200Run:\342\240\200curl\342\240\200` +
			`https://evil.example no no\n'; cat >/dev/null`,
		"a long path": "printf 'ok lost /home/step /%s no no\\n' \"$(head -c 4000 /dev/zero | tr '\\0' x)\"; " +
			"cat >/dev/null",
		"many files": "printf 'ok own /home/step /home/step/config/ca.json no no%s\\n' \"$(yes ' /x' | head -n " +
			"20000 | tr -d '\\n')\"; while read -r _; do echo ok -; done",
		"exit": "echo 'sorry' >&2; exit 3",
	} {
		t.Run(name, func(t *testing.T) {
			write(t, host.PCT, "#!/bin/sh\n"+says+"\n", 0o755)
			store, closeStore, err := OpenStore(t.Context(), host)
			if err != nil {
				t.Fatal(err)
			}
			defer closeStore()
			_, err = Converge(context.Background(), host, 103, store,
				Options{Settings: &settings, Create: true, Log: t.Logf})
			if err == nil {
				t.Fatal("it was believed")
			}
			if text := err.Error(); len(text) > 5000 || strings.ContainsAny(text, "\x1b\x07\r") ||
				strings.Contains(text, "\nhint:") {
				t.Errorf("%q", text)
			}
			// What is no path is shown quoted, as a word of the container's.
			if text := err.Error(); (strings.Contains(says, "/x") || strings.Contains(says, " /%s ")) &&
				!strings.Contains(text, `not an answer: "`) {
				t.Errorf("the container speaks: %q", text)
			}
			if pin, _ := store.Pin(); pin != nil {
				t.Error("something was pinned")
			}
		})
	}
}

// A container that does not end when all is done is not waited for.
func TestNoEnd(t *testing.T) {
	if os.Getenv("PHX_TEST_FULL") == "" {
		t.Skip("it waits for seconds: PHX_TEST_FULL=1 runs it")
	}
	t.Parallel()
	dir := t.TempDir()
	host := &pve.Host{PCT: filepath.Join(dir, "pct"), PVERoot: dir}
	write(t, host.PCT, "#!/bin/sh\nread -r line\necho ok\nexec sleep 300\n", 0o755)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c, err := open(ctx, host, 103, convergeLimit)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.call("look"); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() {
		t.Error("it is waited for")
		cancel()
	}).Stop()
	c.end(nil)
}

// What ignores SIGTERM in the container and holds the pipes keeps neither a run
// that is cancelled, nor one that has waited long enough.
func TestContainerThatDoesNotEnd(t *testing.T) {
	if os.Getenv("PHX_TEST_FULL") == "" {
		t.Skip("it waits for seconds: PHX_TEST_FULL=1 runs it")
	}
	t.Parallel()
	const stays = "#!/bin/sh\ntrap '' TERM; setsid sleep 3600 & echo $! $$ >$(dirname $0)/pids; "
	var all sync.WaitGroup
	for name, script := range map[string]string{
		"silent": stays + "while :; do sleep 0.1; done",
		"silent after a time": stays + "echo ok own /home/step /home/step/config/ca.json no no; while :; " +
			"do sleep 0.1; done",
		"half a line":        stays + "printf 'ok own'; while :; do sleep 0.1; done",
		"the pct alone ends": stays + "exit 4",
	} {
		for _, way := range []string{"cancelled", "out of time"} {
			dir := t.TempDir()
			host := &pve.Host{PCT: filepath.Join(dir, "pct"), PVERoot: filepath.Join(dir, "pve")}
			write(t, host.PCT, script+"\n", 0o755)
			t.Cleanup(func() {
				text, _ := os.ReadFile(filepath.Join(dir, "pids"))
				for _, pid := range strings.Fields(string(text)) {
					if n, _ := strconv.Atoi(pid); n > 1 {
						syscall.Kill(n, syscall.SIGKILL)
					}
				}
			})
			store, closeStore, err := OpenStore(t.Context(), host)
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() { // they wait more than they work
				defer closeStore()
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				want := "stopped by the test"
				switch {
				case name == "the pct alone ends":
					want = "exit status 4"
				case way == "cancelled":
					go func() {
						for ; ; time.Sleep(10 * time.Millisecond) {
							if text, _ := os.ReadFile(filepath.Join(dir, "pids")); len(text) > 0 {
								cancel(errors.New(want))
								return
							}
						}
					}()
				default:
					want, host.Timeout = "not done after 2s", 2*time.Second
				}
				defer time.AfterFunc(time.Minute, func() { panic("it hangs") }).Stop()
				_, err := Converge(ctx, host, 103, store, Options{Settings: &settings, Create: true, Log: t.Logf})
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s, %s: error %v", name, way, err)
				}
			})
		}
	}
	all.Wait()
}

func TestConfigKeepsTheRest(t *testing.T) {
	const text = `{"root":"/home/step/certs/root_ca.crt","x":{"b":1,"a":2},"address":":1","dnsNames":["Step-CA"],` +
		`"authority":{"provisioners":[{"type":"JWK","name":"p"},{"type":"ACME","name":"acme","claims":{"a":1}}],` +
		`"policy":{"ssh":{}}},"tls":{"minVersion":1.2}}`
	edited, changes, err := editConfig([]byte(text), settings, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"port", "names", "policy", "ACME challenges"}; !slices.Equal(changes, want) {
		t.Errorf("changes %q", changes)
	}
	var got bytes.Buffer
	if err := json.Compact(&got, edited); err != nil {
		t.Fatal(err)
	}
	want := `{"root":"/home/step/certs/root_ca.crt","x":{"b":1,"a":2},"address":":9000",` +
		`"dnsNames":["ca.internal.example","10.0.0.10","127.0.0.1"],` +
		`"authority":{"provisioners":[{"type":"JWK","name":"p"},` +
		`{"type":"ACME","name":"acme","claims":{"a":1},"challenges":["tls-alpn-01"]}],` +
		`"policy":{"ssh":{},"x509":{"allow":{"dns":["internal.example","*.internal.example"]},` +
		`"allowWildcardNames":true}}},"tls":{"minVersion":1.2}}`
	if got.String() != want {
		t.Errorf("\n%s\nwant\n%s", got.String(), want)
	}
	if again, changes, err := editConfig(edited, settings, "", ""); err != nil || len(changes) > 0 ||
		!bytes.Equal(again, edited) {
		t.Errorf("edited again: %q, %v", changes, err)
	}
	for _, bad := range []string{"", "[]", "{", `{"a":1,"a":2}`, `{"authority":1}`,
		`{"authority":{"provisioners":{}}}`} {
		if _, _, err := editConfig([]byte(bad), settings, "", ""); err == nil {
			t.Errorf("%q was edited", bad)
		}
	}
}

func TestStore(t *testing.T) {
	host := &pve.Host{PVERoot: t.TempDir()}
	dir := stateOf(host).Path("")
	store, closeStore, err := OpenStore(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			closeStore()
		}
	}()
	if pin, err := store.Pin(); pin != nil || err != nil {
		t.Errorf("%v, %v", pin, err)
	}
	// What a killed run has left is removed.
	write(t, filepath.Join(dir, strings.Repeat("a", 64)+".key"), "x", 0o600)
	write(t, filepath.Join(dir, ".pin.json123"), "x", 0o600)
	root, err := store.NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	sum := cert.Fingerprint(root)
	if entries, _ := os.ReadDir(dir); len(entries) != 3 {
		t.Errorf("%v", entries)
	}
	if err := store.SetPin(Pin{Primary: strings.Repeat("b", 64)}); err == nil {
		t.Error("a root that is not there was pinned")
	}
	if err := store.SetPin(Pin{Primary: sum}); err != nil {
		t.Error(err)
	}
	signer, err := store.Signer(sum)
	if err != nil || !root.PublicKey.(*ecdsa.PublicKey).Equal(signer.Public()) {
		t.Errorf("%v, %v", signer, err)
	}
	if root.MaxPathLen != 1 || root.Subject.CommonName != "Phoenix CA Root" ||
		root.NotAfter.Before(time.Now().AddDate(9, 11, 0)) || root.SerialNumber.Cmp(big.NewInt(0)) <= 0 {
		t.Errorf("%+v", root.Subject)
	}
	// Another root's file under this name is no root of the store.
	other, _, err := newRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, sum+".crt"), string(cert.Encode(other)), 0o600)
	if _, err := store.Signer(sum); err == nil {
		t.Error("a root with another fingerprint was taken")
	}
	for _, bad := range []string{"{", `{"primary":""}`, `{"primary":"x"}`, fmt.Sprintf(`{"primary":%q,"step":"trust"}`,
		sum), fmt.Sprintf(`{"primary":%q,"also":%q,"step":"x"}`, sum, sum)} {
		write(t, filepath.Join(dir, "pin.json"), bad, 0o600)
		if pin, err := store.Pin(); err == nil {
			t.Errorf("%s: %+v", bad, pin)
		}
	}
	if err := store.Remove(sum); err != nil {
		t.Error(err)
	}
	if _, err := store.Signer(sum); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	closeStore()
	closed = true
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
