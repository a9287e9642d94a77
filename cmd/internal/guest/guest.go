// Package guest sets up services from inside a container: packages, files,
// units, and trust in the CA. Every step does nothing when there is nothing
// to do, and says what it has changed.
package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/flock"
	"thinkheads.ai/phx/cmd/internal/process"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Places inside a container.
const (
	StepProgram = "/usr/local/bin/step"
	stepPath    = "/etc/phx/step" // STEPPATH of the bootstrap
	loginPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Setup is one run of changes to a container.
type Setup struct {
	Stage    string // what is being done, for the answer to a failure
	Changes  []string
	NotAfter time.Time // when the first of the service's certificates expires
}

// Apply does the work of a program's half in the container, and makes the
// answer of it. names are those of the service's certificates.
func Apply(names []string, work func(*Setup) error) *remote.Answer {
	s := &Setup{}
	err := work(s)
	a := &remote.Answer{Names: names, NotAfter: s.NotAfter, Changed: len(s.Changes) > 0, Changes: append([]string{}, s.Changes...)}
	if err != nil {
		a.Stage, a.Error = s.Stage, err.Error()
	}
	return a
}

// Print prints the answer to whoever has run a program's half in the container
// by hand. The error is that of the answer.
func Print(a *remote.Answer) error {
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		return err
	}
	if a.Error != "" {
		return fmt.Errorf("%s: %s", a.Stage, a.Error)
	}
	return nil
}

// Trust is which CA a service trusts, by root certificates that the host has
// pinned.
type Trust struct {
	Root        string `json:"root"`           // their file's place in the container
	Fingerprint string `json:"fingerprint"`    // SHA-256 of the CA's root, lower-case hex
	Also        string `json:"also,omitempty"` // of another root that counts while one takes the place of the other
	CAURL       string `json:"ca_url"`         // https://HOST:PORT
}

// Pins returns the fingerprints of the roots, that of the CA first.
func (t Trust) Pins() []string {
	if t.Also == "" {
		return []string{t.Fingerprint}
	}
	return []string{t.Fingerprint, t.Also}
}

var (
	rootForm  = regexp.MustCompile(`^/[A-Za-z0-9._/-]+$`)
	caURLForm = regexp.MustCompile(`^https://[A-Za-z0-9.:\[\]-]+$`)
)

// Check returns an error for what would mean something else in a service's
// configuration or on step's command line. What is empty is not checked.
func (t Trust) Check() error {
	switch {
	case t.Root != "" && !rootForm.MatchString(t.Root):
		return fmt.Errorf("root certificate %q: not an absolute path of letters, digits, '.', '_' and '-'", t.Root)
	case t.CAURL != "" && !caURLForm.MatchString(t.CAURL):
		return fmt.Errorf("CA URL %q: not https://HOST:PORT", t.CAURL)
	}
	for _, pin := range t.Pins() {
		if pin != "" && !cert.IsFingerprint(pin) {
			return fmt.Errorf("fingerprint %q: not 64 hexadecimal digits", pin)
		}
	}
	return nil
}

// Begin reads the root certificates, which must be those that are pinned, and
// waits until no other run of the program is at work in the container. The
// first root is that of the CA.
func (s *Setup) Begin(ctx context.Context, program string, trust Trust) ([]*x509.Certificate, error) {
	s.Stage = "trust"
	roots, err := cert.ReadPinned(trust.Root, trust.Pins()...)
	if err != nil {
		return nil, err
	}
	return roots, lock(ctx, filepath.Join("/run", program+".lock"))
}

// RequireFeature has a program installed that only the host can bring: ask is told the
// name of the feature.
func (s *Setup) RequireFeature(program, feature string, ask func(need string, value any) error) error {
	if exists(program) {
		return nil
	}
	if err := ask(feature, new(bool)); err != nil {
		return err
	}
	s.Changed("installed %s", program)
	return nil
}

// Changed notes something that has been changed.
func (s *Setup) Changed(format string, args ...any) {
	s.Changes = append(s.Changes, fmt.Sprintf(format, args...))
}

// lock waits for other runs of the same program in this container to end: one
// whose host was cut off goes on, and may have to install packages. The lock is
// held until the process ends.
func lock(ctx context.Context, path string) error {
	_, err := flock.Acquire(ctx, path, packageLimit+2*time.Minute)
	if errors.Is(err, flock.ErrHeld) {
		return fmt.Errorf("another run is at work in this container: %w", err)
	}
	if err == nil {
		err = os.Chmod(path, 0o600) // whoever may open it may hold it
	}
	return err
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// How long a program may take. systemd starts and stops a unit within its own
// limits. Packages may come over a slow line, behind an update of the system.
const (
	programLimit = 3 * time.Minute
	packageLimit = 10 * time.Minute
)

// Run runs a program with a clean environment and returns its stdout, with an
// error too. A variable of the environment such as STEP_CA_URL would change
// what step does.
func Run(ctx context.Context, argv ...string) (string, error) {
	return RunEnv(ctx, nil, argv...)
}

// RunEnv is [Run] with additions to the environment, where secrets belong: a
// command line can be read by everybody.
func RunEnv(ctx context.Context, env []string, argv ...string) (string, error) {
	program, err := find(argv[0])
	if err != nil {
		return "", err
	}
	limit := programLimit
	if argv[0] == "apt-get" || argv[0] == "dpkg" {
		limit = packageLimit
	}
	stdout, stderr, err := process.Run(ctx, process.Command{
		Argv:      append([]string{program}, argv[1:]...),
		Env:       append([]string{"PATH=" + loginPath, "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "STEPPATH=" + stepPath}, env...),
		MaxStdout: process.MaxList, // apt-get has much to say
		Survive:   true,
		Timeout:   limit,
		Patience:  10 * time.Second,
	})
	if err == nil {
		return string(stdout), nil
	}
	said := strings.TrimSpace(string(stderr))
	if said == "" {
		said = strings.TrimSpace(string(stdout))
	}
	if exit := (*exec.ExitError)(nil); said == "" || !errors.As(err, &exit) {
		said = err.Error()
	}
	return string(stdout), fmt.Errorf("%s: %s", strings.Join(argv, " "), said)
}

// find looks a program up in the PATH of a login as root, not in that of this
// process, which may have none.
func find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(loginPath) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// WaitForBoot waits until systemd has started the container's services. It is
// not for a service that systemd itself starts: that one belongs to the boot.
func (s *Setup) WaitForBoot(ctx context.Context) error {
	s.Stage = "boot"
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		// "degraded" is exit status 1, and all right: some unit has failed.
		state, err := Run(ctx, "systemctl", "is-system-running")
		state = strings.TrimSpace(state)
		switch state {
		case "running", "degraded":
			return nil
		}
		if wait(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("the container has not finished its boot after a minute: systemctl is-system-running says %q (%v)", state, err)
		}
	}
}

// Whoever else installs packages holds one of these: dpkg and apt fail at once
// then, and apt's own option waits for one of its locks alone.
var packagesLocked = regexp.MustCompile(`Could not get lock|Unable to lock|(frontend|database) lock`)

// Install installs a Debian package unless it is installed completely: an
// interrupted dpkg leaves programs without their configuration. It waits for
// others to end: a fresh system updates itself for a while.
func (s *Setup) Install(ctx context.Context, pkg string) error {
	if status, err := Run(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", pkg); err == nil && status == "installed" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, packageLimit, fmt.Errorf("not done after %s", packageLimit))
	defer cancel()
	for {
		err := install(ctx, pkg)
		if err == nil {
			s.Changed("installed %s", pkg)
			return nil
		}
		if !packagesLocked.MatchString(err.Error()) || wait(ctx, time.Second) != nil {
			return fmt.Errorf("install %s: %w", pkg, err)
		}
	}
}

func install(ctx context.Context, pkg string) error {
	for _, argv := range [][]string{
		// Without these, dpkg asks about a file that was edited.
		{"dpkg", "--force-confdef", "--force-confold", "--configure", "-a"},
		{"apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"},
		{"apt-get", "install", "-q", "-y", "--no-install-recommends", pkg},
	} {
		if _, err := Run(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

// WriteFile gives a file this content and mode, atomically, and reports
// whether it had another. Missing directories are made with mode 0755, which
// phx's own have afterwards if the file is for others.
func (s *Setup) WriteFile(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	if mode&0o004 != 0 {
		if err := s.openDirs(path); err != nil {
			return false, err
		}
	}
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, content) {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm() == mode {
			return false, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	if err := atomicfile.Write(path, content, mode); err != nil {
		return false, err
	}
	s.Changed("wrote %s", path)
	return true, nil
}

// ownDirs are directories that phx has made, or whose files it writes.
var ownDirs = []string{"/etc/phx", "/etc/traefik"}

// openDirs lets others enter those of phx's own directories above path that are
// there: they may have been made under another umask.
func (s *Setup) openDirs(path string) error {
	for _, top := range ownDirs {
		if !strings.HasPrefix(path, top+"/") {
			continue
		}
		for dir := filepath.Dir(path); len(dir) >= len(top); dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm()&0o055 == 0o055 {
				continue
			}
			if err == nil {
				err = os.Chmod(dir, info.Mode().Perm()|0o755)
			}
			if err != nil {
				return err
			}
			s.Changed("let others enter %s", dir)
		}
	}
	return nil
}

// WriteState keeps v in a file, for the next run: [ReadState] reads it.
func (s *Setup) WriteState(file string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = s.WriteFile(file, append(text, '\n'), 0o644)
	return err
}

// ReadState returns what [Setup.WriteState] has left in a file.
func ReadState[T any](file string) (v T, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return v, fmt.Errorf("%s: %w", file, err)
	}
	return v, nil
}

// Bootstrap makes step trust the CA at url, pinned by the fingerprint of its
// root certificate.
func (s *Setup) Bootstrap(ctx context.Context, url, fingerprint string) error {
	if bootstrapped(url, fingerprint) {
		return nil
	}
	if err := os.MkdirAll(stepPath, 0o700); err != nil {
		return err
	}
	if _, err := Run(ctx, StepProgram, "ca", "bootstrap", "--ca-url", url, "--fingerprint", fingerprint, "--force"); err != nil {
		return err
	}
	s.Changed("bootstrapped from %s", url)
	return nil
}

func bootstrapped(url, fingerprint string) bool {
	data, err := os.ReadFile(filepath.Join(stepPath, "config/defaults.json"))
	if err != nil {
		return false
	}
	var defaults struct {
		URL         string `json:"ca-url"`
		Fingerprint string `json:"fingerprint"`
		Root        string `json:"root"`
	}
	if json.Unmarshal(data, &defaults) != nil || defaults.URL != url || defaults.Fingerprint != fingerprint {
		return false
	}
	_, err = cert.ReadPinned(defaults.Root, fingerprint)
	return err == nil
}

// Serve has a unit run with its present configuration, at every boot and now.
// configuration is all that the service reads when it starts; verb, "reload"
// or "restart", is how it takes a change. What it has taken last is kept as a
// hash in stateFile, which taken writes: call it when the service has been
// seen to serve. A run that ends before that leaves the reload to the next
// one. A service that has taken its configuration, and runs the program that
// is installed, is left alone.
func (s *Setup) Serve(ctx context.Context, unit, verb, stateFile string, configuration ...[]byte) (taken func() error, err error) {
	hash := sha256.New()
	for _, part := range configuration {
		sum := sha256.Sum256(part)
		hash.Write(sum[:])
	}
	present := hex.EncodeToString(hash.Sum(nil))
	last, err := os.ReadFile(stateFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	isTaken := string(last) == present
	if !isTaken && last != nil {
		// What it has from here on is neither the former nor, until taken, this.
		if err := os.Remove(stateFile); err != nil {
			return nil, err
		}
	}
	if !isTaken && starting(ctx, unit) {
		// It may be coming up with what it had before.
		if err := s.Restart(ctx, unit); err != nil {
			return nil, err
		}
	} else if Active(ctx, unit) {
		switch {
		case replaced(ctx, unit):
			err = s.Restart(ctx, unit)
		case !isTaken:
			err = s.again(ctx, unit, verb)
		default:
			err = nil
		}
		if err != nil {
			return nil, err
		}
	}
	if err := s.Start(ctx, unit); err != nil {
		return nil, err
	}
	return func() error {
		if isTaken {
			return nil
		}
		return atomicfile.Write(stateFile, []byte(present), 0o644)
	}, nil
}

// replaced reports whether the program of a unit has been replaced since it
// was started.
func replaced(ctx context.Context, unit string) bool {
	pid, err := Run(ctx, "systemctl", "show", "--property=MainPID", "--value", unit)
	if err != nil {
		return false
	}
	program, err := os.Readlink(filepath.Join("/proc", strings.TrimSpace(pid), "exe"))
	return err == nil && strings.HasSuffix(program, " (deleted)")
}

// Restart restarts a unit.
func (s *Setup) Restart(ctx context.Context, unit string) error { return s.again(ctx, unit, "restart") }

func (s *Setup) again(ctx context.Context, unit, verb string) error {
	if err := s.KnowUnit(ctx, unit); err != nil {
		return err
	}
	if _, err := Run(ctx, "systemctl", verb, unit); err != nil {
		return errors.Join(err, Journal(ctx, unit))
	}
	s.Changed("%s of %s", verb, unit)
	return nil
}

// Start starts a unit at every boot and now. When it runs already, it is left
// alone.
func (s *Setup) Start(ctx context.Context, unit string) error {
	if err := s.KnowUnit(ctx, unit); err != nil {
		return err
	}
	if _, err := Run(ctx, "systemctl", "is-enabled", "--quiet", unit); err != nil {
		if _, err := Run(ctx, "systemctl", "enable", "--quiet", unit); err != nil {
			return err
		}
		s.Changed("enabled %s", unit)
	}
	if Active(ctx, unit) {
		return nil
	}
	if _, err := Run(ctx, "systemctl", "start", unit); err != nil {
		return errors.Join(err, Journal(ctx, unit))
	}
	// start succeeds when a condition of the unit is not met.
	if !Active(ctx, unit) {
		return errors.Join(fmt.Errorf("systemctl start %s exited 0, but the unit is not active", unit), Journal(ctx, unit))
	}
	s.Changed("started %s", unit)
	return nil
}

// KnowUnit makes systemd read a unit's file again if that has changed, and
// unmasks the unit: systemd refuses all but to stop one that is masked.
func (s *Setup) KnowUnit(ctx context.Context, unit string) error {
	need, err := Run(ctx, "systemctl", "show", "--property=NeedDaemonReload", "--value", unit)
	if err != nil {
		return err
	}
	if strings.TrimSpace(need) == "yes" {
		if _, err := Run(ctx, "systemctl", "daemon-reload"); err != nil {
			return err
		}
	}
	for state := unitFileState(ctx, unit); state == "masked" || state == "masked-runtime"; {
		argv := []string{"systemctl", "unmask", "--quiet", unit}
		if state == "masked-runtime" {
			argv = []string{"systemctl", "unmask", "--quiet", "--runtime", unit}
		}
		if _, err := Run(ctx, argv...); err != nil {
			return err
		}
		former := state
		if state = unitFileState(ctx, unit); state == former {
			return fmt.Errorf("%s: %s is still %s: systemctl cat %s shows the file, which is empty: remove it", strings.Join(argv, " "), unit, state, unit)
		}
		s.Changed("unmasked %s", unit)
	}
	return nil
}

// unitFileState returns the state of a unit's file, such as "enabled".
func unitFileState(ctx context.Context, unit string) string {
	state, _ := Run(ctx, "systemctl", "is-enabled", unit) // its status is no success for most states
	return strings.TrimSpace(state)
}

// Active reports whether a unit runs.
func Active(ctx context.Context, unit string) bool {
	_, err := Run(ctx, "systemctl", "is-active", "--quiet", unit)
	return err == nil
}

// starting reports whether a unit is on its way up, or between two attempts.
func starting(ctx context.Context, unit string) bool {
	state, err := Run(ctx, "systemctl", "show", "--property=ActiveState", "--value", unit)
	return err == nil && strings.TrimSpace(state) == "activating"
}

// CanIsolate reports whether systemd can start a service with these options
// in this container: a container that may not mount anything, as those
// without nesting on Proxmox VE, ends with 226/NAMESPACE. options are lines of
// a unit file, KEY=VALUE.
func CanIsolate(ctx context.Context, options ...string) bool {
	argv := []string{"systemd-run", "--quiet", "--wait", "--collect"}
	for _, option := range options {
		argv = append(argv, "--property="+option)
	}
	_, err := Run(ctx, append(argv, "/bin/true")...)
	return err == nil
}

// Journal returns the last lines of a unit's log as an error, nil when there
// are none.
func Journal(ctx context.Context, unit string) error {
	lines, err := Run(ctx, "journalctl", "--no-pager", "-q", "-o", "cat", "-n", "15", "-u", unit)
	if lines = strings.TrimSpace(lines); err != nil || lines == "" {
		return nil
	}
	return errors.New(lines)
}

// Served makes a TLS connection to address for name and returns the
// certificate, which must verify against one of the roots.
func Served(ctx context.Context, address, name string, roots ...*x509.Certificate) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: cert.Pool(roots...), MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("TLS with %s for %s: %w", address, name, err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// Answers checks that url, of this container, answers with status 200.
func Answers(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// Not http.Get: no proxy, and no redirection.
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// Until tries until it succeeds or a time has passed; it returns the last
// error.
func Until(ctx context.Context, d time.Duration, try func() error) error {
	deadline := time.Now().Add(d)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if err := wait(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
}
