package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// realCA starts step-ca where the CA's container has it, and returns its root.
func realCA(t *testing.T) (root *x509.Certificate, stop func()) {
	t.Helper()
	out, err := exec.Command("/bin/sh", "-euc", `
		mkdir -p /usr/local/bin /home/step/secrets
		cp "$1" /usr/local/bin/step
		export STEPPATH=/home/step
		echo secret >/home/step/secrets/provisioner_password
		step ca init --deployment-type standalone --name Test \
			--dns 127.0.0.1 --address 127.0.0.1:9000 --provisioner phoenix \
			--password-file /home/step/secrets/provisioner_password \
			--provisioner-password-file /home/step/secrets/provisioner_password`,
		"sh", os.Getenv("PHX_TEST_STEP")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(os.Getenv("PHX_TEST_STEP_CA"), "--password-file", "/home/step/secrets/provisioner_password",
		"/home/step/config/ca.json")
	cmd.Env = []string{"STEPPATH=/home/step", "HOME=/home/step"}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
	t.Cleanup(stop)
	err = guest.Until(t.Context(), 20*time.Second, func() error {
		conn, err := net.Dial("tcp", "127.0.0.1:9000")
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	block, _ := pem.Decode([]byte(read(t, "/home/step/certs/root_ca.crt")))
	if root, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return root, stop
}

// TestCertify: every certificate that is not good is replaced, with a new
// key, by a real CA.
func TestCertify(t *testing.T) {
	for variable, name := range map[string]string{"PHX_TEST_STEP": "step", "PHX_TEST_STEP_CA": "step-ca"} {
		if os.Getenv(variable) != "" {
			continue
		}
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("%v: scripts/test builds it", err)
		}
		t.Setenv(variable, path)
	}
	if !inNamespace(t) {
		return
	}
	root, stop := realCA(t)
	a := newAuthority(t)
	g := testGateway
	g.Fingerprint, g.CAURL = cert.Fingerprint(root), "https://127.0.0.1:9000"
	write(t, g.Root, read(t, "/home/step/certs/root_ca.crt"))
	roots := []*x509.Certificate{root}

	// The host's half: pct executes here.
	write(t, "/usr/local/sbin/pct", "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n")
	if err := os.Chmod("/usr/local/sbin/pct", 0o755); err != nil {
		t.Fatal(err)
	}
	host := &pve.Host{PCT: "/usr/local/sbin/pct"}
	tokens := 0
	ask := func(need string, value any) (err error) {
		tokens++
		*value.(*string), err = fetchToken(t.Context(), host, 103, g)
		return err
	}
	public := func() any {
		pair, err := tls.LoadX509KeyPair(certificateFile, keyFile)
		if err != nil {
			return nil
		}
		return pair.Leaf.PublicKey
	}
	put := func(dir string) error {
		return errors.Join(os.Remove(pairLink), os.Symlink(dir, pairLink))
	}
	// A certificate of the CA with three quarters of its life behind it.
	due := func() error {
		var token string
		if err := ask("token", &token); err != nil {
			return err
		}
		now := time.Now()
		cmd := exec.Command(guest.StepProgram, "ca", "certificate", "--force", "--ca-url", g.CAURL, "--root", g.Root,
			"--not-before", now.Add(-30*time.Minute).Format(time.RFC3339),
			"--not-after", now.Add(10*time.Minute).Format(time.RFC3339), g.Domain, certificateFile, keyFile)
		cmd.Env = append(os.Environ(), "STEP_TOKEN="+token)
		if out, err := cmd.CombinedOutput(); err != nil {
			return errors.New(string(out))
		}
		return nil
	}
	later := time.Now().Add(time.Hour)
	for _, tt := range []struct {
		name   string
		damage func() error
		tokens int
	}{
		{"none", func() error { return nil }, 1},
		{"lost key", func() error { return os.Remove(keyFile) }, 1},
		{"lost certificate", func() error { return os.Remove(certificateFile) }, 1},
		{"damaged", func() error { return os.Truncate(certificateFile, 100) }, 1},
		{"empty certificate", func() error { return os.Truncate(certificateFile, 0) }, 1},
		{"empty key", func() error { return os.Truncate(keyFile, 0) }, 1},
		{"damaged key", func() error { return os.Truncate(keyFile, 40) }, 1},
		{"lost link", func() error { return os.Remove(pairLink) }, 1},
		{"a link to nowhere", func() error { return put("pair.gone") }, 1},
		{"a link to itself", func() error { return put("tls") }, 1},
		{"a directory in the place of the link", func() error {
			return errors.Join(os.Remove(pairLink), os.CopyFS(pairLink, os.DirFS(a.pair(t, g.names(), later))))
		}, 1},
		{"lost directory", func() error { return os.RemoveAll(pairLink + "/") }, 1},
		{"mismatched", func() error {
			return os.WriteFile(keyFile, []byte(read(t, filepath.Join(a.pair(t, g.names(), later), "gateway.key"))),
				0o600)
		}, 1},
		{"another root", func() error { return put(a.pair(t, g.names(), later)) }, 1},
		{"other names", func() error { return put(a.pair(t, []string{"bank.example"}, later)) }, 1},
		{"expired", func() error { return put(a.pair(t, g.names(), time.Now().Add(-time.Minute))) }, 1},
		{"readable key", func() error { return os.Chmod(keyFile, 0o644) }, 0},
		{"a key of somebody else", func() error { return os.Chown(keyFile, 65534, 65534) }, 0},
		{"due", due, 0},
		{"a service with a name of two labels", func() error {
			g.Names = []string{"a.b.internal.example"}
			return nil
		}, 1},
		{"due, with that name", due, 0},
		{"without that service", func() error { g.Names = nil; return nil }, 1},
	} {
		before := public()
		if err := tt.damage(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		tokens = 0
		s := &guest.Setup{}
		leaf, err := ensureCertificate(t.Context(), s, g, roots, ask)
		if err != nil || tokens != tt.tokens {
			t.Errorf("%s: %d tokens, %v", tt.name, tokens, err)
			continue
		}
		if _, err := inspect(pairLink, g.names(), roots, time.Now()); err != nil {
			t.Errorf("%s: not healed: %v", tt.name, err)
		}
		if key, ok := before.(interface{ Equal(any) bool }); ok && key.Equal(leaf.PublicKey) {
			t.Errorf("%s: the key is the old one", tt.name)
		}
		if pairs, _ := filepath.Glob(stateDir + "/pair.*"); len(pairs) != 1 {
			t.Errorf("%s: pairs %q", tt.name, pairs)
		}
		again := &guest.Setup{}
		if _, err := ensureCertificate(t.Context(), again, g, roots, nil); err != nil || len(again.Changes) > 0 {
			t.Errorf("%s: the second run: %v, %q", tt.name, err, again.Changes)
		}
	}

	// The timer has no host to ask: it gets a certificate by the present one.
	if err := due(); err != nil {
		t.Fatal(err)
	}
	before := leafOf(t)
	if leaf, err := ensureCertificate(t.Context(), &guest.Setup{}, g, roots, nil); err != nil || leaf.Equal(before) {
		t.Errorf("the timer: %v", err)
	}
	// While roots are exchanged, what the CA issues may be of either.
	if err := due(); err != nil {
		t.Fatal(err)
	}
	before = leafOf(t)
	if leaf, err := ensureCertificate(t.Context(), &guest.Setup{}, g, []*x509.Certificate{a.root, root},
		nil); err != nil || leaf.Equal(before) {
		t.Errorf("the timer, while roots are exchanged: %v", err)
	}

	if err := due(); err != nil {
		t.Fatal(err)
	}
	stop()
	leaf, err := ensureCertificate(t.Context(), &guest.Setup{}, g, roots, ask)
	if !errors.Is(err, errDue) || errors.Is(err, errReissue) || leaf == nil {
		t.Errorf("a CA that is down: %v", err)
	}
	if err != nil && strings.Contains(err.Error(), "eyJ") {
		t.Errorf("the error shows a token: %v", err)
	}
	if pairs, _ := filepath.Glob(stateDir + "/pair.*"); len(pairs) != 1 {
		t.Errorf("pairs %q", pairs)
	}
}
