package guest

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etc/x/y.conf")
	s := &Setup{}
	for i, tt := range []struct {
		text    string
		mode    os.FileMode
		changed bool
	}{{"a", 0o644, true}, {"a", 0o644, false}, {"b", 0o644, true}, {"b", 0o600, true}, {"b", 0o600, false}} {
		changed, err := s.WriteFile(path, []byte(tt.text), tt.mode)
		if err != nil || changed != tt.changed {
			t.Errorf("%d: changed %v, %v", i, changed, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != tt.mode {
			t.Errorf("%d: mode %v, %v", i, info.Mode(), err)
		}
	}
	if len(s.Changes) != 3 {
		t.Errorf("changes %q", s.Changes)
	}
}

// Whatever mode an earlier run has left, a service reads what is for it: another
// user of the container does, too.
func TestWriteFileOpensItsDirectories(t *testing.T) {
	privateMounts(t, "/etc")
	defer syscall.Umask(syscall.Umask(0o077))
	for _, path := range []string{"/etc/traefik/dynamic/x.yml", "/etc/phx/x/y.json", "/etc/systemd/system/x.service"} {
		os.MkdirAll(filepath.Dir(path), 0o700)
		write(t, path, "a")
	}
	s := &Setup{}
	for path, open := range map[string]bool{"/etc/traefik/dynamic/x.yml": true, "/etc/phx/x/y.json": true,
		"/etc/systemd/system/x.service": false} {
		changed, err := s.WriteFile(path, []byte("a"), 0o644)
		if err != nil || !changed {
			t.Fatalf("%s: changed %v, %v", path, changed, err)
		}
		for dir := filepath.Dir(path); dir != "/etc"; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err != nil || (info.Mode().Perm() == 0o755) != open {
				t.Errorf("%s: mode %v, %v", dir, info.Mode(), err)
			}
		}
		done := len(s.Changes)
		if changed, err := s.WriteFile(path, []byte("a"), 0o644); err != nil || changed || len(s.Changes) != done {
			t.Errorf("%s, again: %q, %v", path, s.Changes[done:], err)
		}
	}
	write(t, "/etc/traefik/secret", "a")
	os.Chmod("/etc/traefik", 0o700)
	if _, err := s.WriteFile("/etc/traefik/secret", []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat("/etc/traefik"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("opened for a file that is not for others: %v, %v", info.Mode(), err)
	}
}

// A stray STEP_ variable would change what step does.
func TestRunHasACleanEnvironment(t *testing.T) {
	t.Setenv("STEP_CA_URL", "https://elsewhere")
	out, err := RunEnv(context.Background(), []string{"STEP_TOKEN=x"}, "/usr/bin/env")
	if err != nil || strings.Contains(out, "STEP_CA_URL") || !strings.Contains(out, "STEP_TOKEN=x\n") ||
		!strings.Contains(out, "STEPPATH=/etc/phx/step\n") {
		t.Errorf("environment\n%s%v", out, err)
	}
	_, err = Run(context.Background(), "sh", "-c", "echo why >&2; exit 3")
	if err == nil || !strings.HasSuffix(err.Error(), ": why") {
		t.Errorf("error %v", err)
	}
	if _, err := Run(context.Background(), "no-such-program"); err == nil ||
		!strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("error %v", err)
	}
}

func TestRunIsBounded(t *testing.T) {
	out, err := Run(context.Background(), "sh", "-c", "exec head -c 300000000 /dev/zero")
	if err == nil || !strings.Contains(err.Error(), "printed more than 1 MiB on stdout") || len(out) > 1<<20 {
		t.Errorf("%d bytes, error %v", len(out), err)
	}
	// "degraded" comes with a status that is no success.
	if out, err := Run(context.Background(), "sh", "-c", "echo degraded; exit 1"); err == nil || out != "degraded\n" {
		t.Errorf("stdout %q, error %v", out, err)
	}
}

// The collector must not take the lock's file, and with it the lock.
func TestLockLasts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := new(Setup).lock(context.Background(), path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	runtime.GC()
	runtime.GC()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EWOULDBLOCK {
		t.Errorf("a second lock: %v", err)
	}
}

// fakeSystemctl lets this test's systemctl be one by which every unit is
// active, and returns the file in which it notes what it is told to change.
func fakeSystemctl(t *testing.T) (told string) {
	t.Helper()
	told = filepath.Join(t.TempDir(), "told")
	privateMounts(t, "/usr/local/sbin")
	err := os.WriteFile("/usr/local/sbin/systemctl", []byte(`#!/bin/sh
case $1 in
is-active | is-enabled) ;;
show) [ "$2" != --property=ActiveState ] || echo active ;;
*) echo "$1" >>`+told+` ;;
esac
`), 0o755)
	if err != nil {
		t.Fatal(err)
	}
	return told
}

// privateMounts gives this test directories of its own, empty ones, in the
// place of these.
func privateMounts(t *testing.T, dirs ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a mount namespace")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE,
		"")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			t.Fatalf("mount %s: %v", dir, err)
		}
	}
}

// TestInstall: apt and dpkg themselves, on a database of their own in which
// somebody else holds a lock, and in which dpkg was interrupted.
func TestInstall(t *testing.T) {
	for _, lock := range []string{"/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock",
		"/var/cache/apt/archives/lock"} {
		t.Run(filepath.Base(filepath.Dir(lock))+" "+filepath.Base(lock), func(t *testing.T) {
			repo := packageDatabase(t)
			write(t, "/var/lib/dpkg/updates/0001", "Package: phx-interrupted\nStatus: "+
				"install ok unpacked\nMaintainer: x <x@x>\nArchitecture: all\nVersion: 1\nDescription: x\n")
			write(t, "/var/lib/dpkg/info/phx-interrupted.list", "/.\n")
			buildPackage(t, repo)
			held, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o640)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.FcntlFlock(held.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
				t.Fatal(err)
			}
			var released atomic.Bool
			time.AfterFunc(3*time.Second, func() { released.Store(true); held.Close() })
			s := &Setup{}
			if err := s.Install(t.Context(), "phx-test"); err != nil {
				t.Fatal(err)
			}
			if !released.Load() {
				t.Error("the lock is still held")
			}
			for _, pkg := range []string{"phx-test", "phx-interrupted"} {
				if out, err := Run(t.Context(), "dpkg-query", "-W", "-f", "${db:Status-Status}", pkg); err != nil ||
					out != "installed" {
					t.Errorf("%s: %q, %v", pkg, out, err)
				}
			}
			if err := s.Install(t.Context(), "phx-test"); err != nil || len(s.Changes) != 1 {
				t.Errorf("a second time: %q, %v", s.Changes, err)
			}
		})
	}
	t.Run("a failure of another kind", func(t *testing.T) {
		packageDatabase(t)
		err := new(Setup).Install(t.Context(), "phx-test")
		if err == nil || !strings.Contains(err.Error(), "install phx-test: apt-get ") {
			t.Errorf("error %v", err)
		}
	})
}

// buildPackage makes the package phx-test in a directory from which apt installs.
func buildPackage(t *testing.T, repo string) {
	t.Helper()
	build := exec.Command("sh", "-euc", `mkdir -p x/DEBIAN
		printf '%s\n' 'Package: phx-test' 'Version: 1' 'Architecture: all' 'Maintainer: x <x@x>' \
			'Description: x' >x/DEBIAN/control
		dpkg-deb -b x phx-test_1_all.deb >&2
		{ cat x/DEBIAN/control; echo Filename: ./phx-test_1_all.deb; echo Size: $(stat -c %s phx-test_1_all.deb)
			set -- $(sha256sum phx-test_1_all.deb); echo SHA256: $1; } >Packages`)
	build.Dir = repo
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestInstallByProxy: apt itself gets a package from a server that only the proxy reaches, and is set as before.
func TestInstallByProxy(t *testing.T) {
	repo := packageDatabase(t)
	buildPackage(t, repo)
	var mu sync.Mutex
	var asked []string
	files := http.FileServer(http.Dir(repo))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.String())
		mu.Unlock()
		files.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	write(t, "/etc/apt/sources.list", "deb [trusted=yes] http://packages.invalid/ ./\n")
	before, err := os.ReadDir("/etc/apt")
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Setup{AptProxy: proxy.URL}).Install(t.Context(), "phx-test"); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Contains(asked, "http://packages.invalid/./phx-test_1_all.deb") {
		t.Errorf("the proxy was asked for %q", asked)
	}
	after, err := os.ReadDir("/etc/apt")
	if err != nil || len(after) != len(before) {
		t.Errorf("/etc/apt has %v, had %v, %v", after, before, err)
	}
	if out, err := Run(t.Context(), "apt-config", "dump"); err != nil || strings.Contains(out, proxy.URL) {
		t.Errorf("apt is set to %s, %v", out, err)
	}
}

// packageDatabase lets this test's apt and dpkg have an empty database, and
// returns the directory from which they install.
func packageDatabase(t *testing.T) (repo string) {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("apt-get is not installed")
	}
	privateMounts(t, "/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/var/log", "/etc/apt")
	for _, dir := range []string{"/var/lib/dpkg/info", "/var/lib/dpkg/updates", "/var/lib/dpkg/triggers",
		"/var/lib/apt/lists/partial", "/var/cache/apt/archives/partial", "/var/log/apt"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, "/var/lib/dpkg/status", "")
	repo = t.TempDir()
	write(t, "/etc/apt/sources.list", "deb [trusted=yes] copy:"+repo+" ./\n")
	write(t, "/etc/apt/apt.conf", `APT::Sandbox::User "root";`+"\n")
	return repo
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A service that has been given another configuration, and was not seen to
// serve with it, takes the former one again when that is back.
func TestServeTakesTheFormerAgain(t *testing.T) {
	told := fakeSystemctl(t)
	state := filepath.Join(t.TempDir(), "taken")
	serve := func(configuration string, good bool) {
		t.Helper()
		taken, err := new(Setup).Serve(context.Background(), "x.service", "reload", state, []byte(configuration))
		if err == nil && good {
			err = taken()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	serve("good", true)
	serve("good", true)
	serve("bad", false)
	serve("good", true)
	serve("good", true)
	verbs, err := os.ReadFile(told)
	if err != nil || string(verbs) != "reload\nreload\nreload\n" {
		t.Errorf("%q, %v: want a reload for good, for bad, and for good again", verbs, err)
	}
}

// A unit that somebody has masked is unmasked before systemd is told anything
// else about it, which it would refuse.
func TestMaskedUnits(t *testing.T) {
	for name, tt := range map[string]struct {
		masks []string // that are there, the first of which systemd reports
		running,
		stays bool // whatever is told to unmask
		told, changes string
		err           string
	}{
		"none": {told: "start", changes: "started x.service"},
		"etc":  {masks: []string{"masked"}, told: "unmask start", changes: "unmasked x.service, started x.service"},
		"run": {masks: []string{"masked-runtime"}, told: "unmask--runtime start",
			changes: "unmasked x.service, started x.service"},
		"both": {masks: []string{"masked", "masked-runtime"}, told: "unmask unmask--runtime start",
			changes: "unmasked x.service, unmasked x.service, started x.service"},
		"running": {masks: []string{"masked"}, running: true, told: "unmask reload",
			changes: "unmasked x.service, reload of x.service"},
		"an empty file": {masks: []string{"masked"}, stays: true, told: "unmask",
			err: "x.service is still masked"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			privateMounts(t, "/usr/local/sbin")
			write(t, "/usr/local/sbin/systemctl", `#!/bin/sh
cd `+dir+`
told() { printf '%s ' "$1" >>told; }
for unit; do :; done
[ "$unit" = x.service ] || exit 99
case $1 in
show) [ "$2" != --property=ActiveState ] || echo inactive ;;
is-active) [ -e active ] ;;
is-enabled)
	for state in masked masked-runtime; do
		[ ! -e $state ] || { [ "$2" = --quiet ] || echo $state; exit 1; }
	done
	[ "$2" = --quiet ] || echo enabled ;;
unmask)
	case $* in
	*--runtime*) told unmask--runtime; [ -e stays ] || rm masked-runtime ;;
	*) told unmask; [ -e stays ] || rm masked ;;
	esac ;;
*)
	told "$1"
	! [ -e masked ] && ! [ -e masked-runtime ] || { echo "Unit x.service is masked." >&2; exit 1; }
	touch active ;;
esac
`)
			if err := os.Chmod("/usr/local/sbin/systemctl", 0o755); err != nil {
				t.Fatal(err)
			}
			for _, mask := range tt.masks {
				write(t, filepath.Join(dir, mask), "")
			}
			if tt.running {
				write(t, filepath.Join(dir, "active"), "")
			}
			if tt.stays {
				write(t, filepath.Join(dir, "stays"), "")
			}
			s := &Setup{}
			_, err := s.Serve(t.Context(), "x.service", "reload", filepath.Join(dir, "taken"), []byte("a"))
			told, _ := os.ReadFile(filepath.Join(dir, "told"))
			if got := strings.TrimSpace(string(told)); got != tt.told {
				t.Errorf("systemctl was told %q, want %q", got, tt.told)
			}
			if got := strings.Join(s.Changes, ", "); got != tt.changes {
				t.Errorf("changes %q, want %q", got, tt.changes)
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	for status, good := range map[int]bool{200: true, 404: false, 302: false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/ok")
			w.WriteHeader(status)
		}))
		if err := Answers(context.Background(), server.URL); (err == nil) != good {
			t.Errorf("%d: %v", status, err)
		}
		server.Close()
		if Answers(context.Background(), server.URL) == nil {
			t.Error("nobody answers, and that is all right")
		}
	}
}

func TestUntil(t *testing.T) {
	tries := 0
	failing := errors.New("not yet")
	err := Until(context.Background(), time.Minute, func() error {
		if tries++; tries < 3 {
			return failing
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if err := Until(context.Background(), 0, func() error { return failing }); err != failing {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	stopped := errors.New("stopped")
	cancel(stopped)
	if err := Until(ctx, time.Minute, func() error { return failing }); err != stopped {
		t.Errorf("error %v", err)
	}
}

// systemd gives a oneshot service no limit by itself.
func TestOneshotUnitsHaveLimits(t *testing.T) {
	found := 0
	err := filepath.WalkDir("../../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") || !strings.HasSuffix(path, ".go") &&
			!strings.HasSuffix(path, ".sh") {
			return err
		}
		text, err := os.ReadFile(path)
		units := strings.Count(string(text), "Type=oneshot\n")
		found += units
		if limits := strings.Count(string(text), "TimeoutStartSec="); limits < units {
			t.Errorf("%s: %d oneshot units, and %d limits", path, units, limits)
		}
		return err
	})
	if err != nil || found < 2 {
		t.Errorf("%d units found, %v", found, err)
	}
}

// A program that does not end, and takes no notice of SIGTERM, is not waited
// for.
func TestRunEnds(t *testing.T) {
	if os.Getenv("PHX_TEST_FULL") == "" {
		t.Skip("it waits for seconds: PHX_TEST_FULL=1 runs it")
	}
	pid := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for ; ; time.Sleep(10 * time.Millisecond) {
			if text, _ := os.ReadFile(pid); len(text) > 0 {
				cancel(errors.New("stopped by the test"))
				return
			}
		}
	}()
	_, err := Run(ctx, "/bin/sh", "-c", "trap '' TERM; echo $$ >"+pid+"; while :; do sleep 0.1; done")
	if err == nil || !strings.HasSuffix(err.Error(), ": stopped by the test") {
		t.Errorf("error %v", err)
	}
}

// This package runs in the container: nothing of Proxmox VE and of the events is
// there.
func TestNothingOfTheHost(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const internal = "thinkheads.ai/phx/cmd/internal/"
	for _, pkg := range strings.Fields(string(out)) {
		switch name, _ := strings.CutPrefix(pkg, internal); name {
		case "config", "event", "pve", "service":
			t.Errorf("it links %s", pkg)
		}
	}
}

// A unit about which nothing is to be done is looked at, and that in two calls; one of
// which anything differs is put right.
func TestSettledUnit(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	const good = "ActiveState=active\nNeedDaemonReload=no\nMainPID="
	for name, tt := range map[string]struct{ show, enabled, told, changes string }{
		"settled":    {show: good + self, enabled: "enabled"},
		"no process": {show: good + "0", enabled: "enabled"},
		"stopped": {show: "ActiveState=inactive\nNeedDaemonReload=no\nMainPID=0", enabled: "enabled",
			told: "start", changes: "started x.service"},
		"another file": {show: "ActiveState=active\nNeedDaemonReload=yes\nMainPID=0", enabled: "enabled",
			told: "daemon-reload"},
		"not at boot": {show: good + "0", enabled: "disabled", told: "enable", changes: "enabled x.service"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			privateMounts(t, "/usr/local/sbin")
			write(t, dir+"/show", tt.show+"\n")
			write(t, "/usr/local/sbin/systemctl", `#!/bin/sh
cd `+dir+`
case "$1 $2" in
"show --property=ActiveState,"*) echo look >>calls; cat show ;;
"show --property=NeedDaemonReload") sed -n 's/NeedDaemonReload=//p' show ;;
"is-active "*) grep -q ActiveState=active show ;;
"is-enabled --quiet") [ `+tt.enabled+` = enabled ] ;;
"is-enabled "*) echo look >>calls; echo `+tt.enabled+` ;;
*) printf '%s ' "$1" >>told; sed -i s/inactive/active/ show ;;
esac
`)
			if err := os.Chmod("/usr/local/sbin/systemctl", 0o755); err != nil {
				t.Fatal(err)
			}
			s := &Setup{}
			if err := s.Start(t.Context(), "x.service"); err != nil {
				t.Error(err)
			}
			told, _ := os.ReadFile(dir + "/told")
			calls, _ := os.ReadFile(dir + "/calls")
			if got := strings.TrimSpace(string(told)); got != tt.told || strings.Join(s.Changes, ", ") != tt.changes {
				t.Errorf("systemctl was told %q, changes %q; want %q, %q", got, s.Changes, tt.told, tt.changes)
			}
			if tt.told == "" && string(calls) != "look\nlook\n" {
				t.Errorf("calls %q", calls)
			}
		})
	}
}
