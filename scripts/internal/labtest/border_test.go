package labtest

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// replace puts a script in the place of a program of a container until restore is called, or the test ends.
func (l lab) replace(t *testing.T, ctid, path, script string) (restore func()) {
	t.Helper()
	file := l.path("replacement")
	write(t, file, script, 0o755)
	// In one command: there may be no shell, and no mv, between the two.
	l.inside(t, "pct", "push", ctid, file, path+".new", "--perms", "0755")
	l.in(t, ctid, "perl", "-e", `rename("$ARGV[0]", "$ARGV[0].real") && rename("$ARGV[0].new", $ARGV[0]) or die $!`,
		path)
	restore = sync.OnceFunc(func() { l.in(t, ctid, "mv", path+".real", path) })
	t.Cleanup(restore)
	return restore
}

// onTerminal runs a command of bash on a terminal of its own, and returns what the terminal shows.
func (l lab) onTerminal(t *testing.T, line string) string {
	t.Helper()
	cmd := l.command("script", "-qec", line, "/dev/null")
	cmd.Env = append(cmd.Env, "SHELL=/bin/bash")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String()
}

// testTerminal has the programs of the containers that phx starts reach for the terminal of whoever runs phx.
func (l lab) testTerminal(t *testing.T) {
	const (
		shown = "shown-by-a-container"
		typed = "typed-by-a-container"
		// It prints to the terminal, and pushes a line into its input.
		attack = `#!/bin/sh
echo ran >>/run/attacked
{ echo ` + shown + ` >/dev/tty; } 2>/dev/null
perl -e 'open(T, "+<", "/dev/tty") or exit; ioctl(T, 0x5412, my $c = $_) for split(//, "` + typed + `\n")' 2>/dev/null
`
	)
	// What the terminal's owner is told after the command: what somebody has typed meanwhile.
	const typedThen = `; stty -echo; while read -r -t 1 line; do echo "input: $line"; done`
	for _, ctid := range []string{ca, gateway, proxy} {
		for _, path := range []string{"/usr/bin/cat", "/usr/bin/sh", "/usr/bin/env"} {
			l.replace(t, ctid, path, strings.Replace(attack, "#!/bin/sh", "#!/usr/bin/dash",
				1)+`exec "$0.real" "$@"`+"\n")
		}
	}
	attacked := func(ctid string) bool {
		return strings.Contains(l.in(t, ctid, "/usr/bin/cat.real", "/run/attacked"), "ran")
	}

	// The control: with the terminal's session, and all three streams redirected, the attack works.
	text := l.onTerminal(t, "scripts/lab run pct exec 103 -- cat /etc/hostname </dev/null >/dev/null 2>&1"+typedThen)
	if !strings.Contains(text, shown) {
		t.Errorf("the attack does not reach the terminal of who calls pct, so this test proves nothing: %q", text)
	}
	const quietly = " </dev/null >/dev/null 2>&1"
	for _, run := range []string{
		"phoenix", "phoenix --dry-run", "phoenix --action status", "env PHX_ATTACH=pct phoenix",
		// People run these by hand.
		"phoenix_hypervisor_feature_install_base_setup.sh 101" + quietly,
		"phoenix_hypervisor_feature_install_step_cli.sh 101" + quietly,
		"phoenix_hypervisor_feature_install_traefik.sh 102" + quietly,
		"phoenix_hypervisor_feature_install_step_ca.sh 103" + quietly,
	} {
		text := l.onTerminal(t, "scripts/lab run "+run+typedThen)
		if strings.Contains(text, shown) {
			t.Errorf("%s: containers have printed to the terminal %d times", run, strings.Count(text, shown))
		}
		if strings.Contains(text, typed) {
			t.Errorf("%s: containers have typed into the terminal %d times", run, strings.Count(text, typed))
		}
	}
	for _, ctid := range []string{ca, gateway, proxy} {
		if !attacked(ctid) {
			t.Errorf("phx has started none of the replaced programs in container %s", ctid)
		}
	}
}

// testFlood has the CA's container answer without an end.
func (l lab) testFlood(t *testing.T) {
	const flood, limit = 600 << 20, 200 << 20
	root := l.read(t, "persistent-storage", "ssl", "phoenix_ca.crt")
	for _, stream := range []string{"stdout", "stderr"} {
		script := "#!/usr/bin/dash\necho " + stream + " >>/run/flooded\nexec head -c " +
			strconv.Itoa(flood) + " /dev/zero"
		if stream == "stderr" {
			script += " >&2"
		}
		var restore []func()
		for _, path := range []string{"/usr/bin/cat", "/usr/bin/sh"} {
			restore = append(restore, l.replace(t, ca, path, script+"\n"))
		}
		cmd := l.command("scripts/lab", "run", "phoenix", "103")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		start := time.Now()
		cmd.Run()
		for _, f := range restore {
			f()
		}
		if text := l.in(t, ca, "cat", "/run/flooded"); !strings.Contains(text, stream) {
			t.Errorf("%s: phx has started none of the replaced programs", stream)
		}
		used := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
		t.Logf("%s: status %d after %.1f s, at most %d MiB of memory, %d bytes of messages", stream,
			cmd.ProcessState.ExitCode(), time.Since(start).Seconds(), used>>20, errs.Len())
		if used > limit {
			t.Errorf("%s: a program of phx has used %d MiB of memory", stream, used>>20)
		}
		if errs.Len() > 1<<20 || out.Len() > 1<<20 {
			t.Errorf("%s: %d bytes of events and %d of messages", stream, out.Len(), errs.Len())
		}
		// The CA could not be asked: that is said, and the host's root stays.
		var said bool
		for _, ev := range parseEvents(t, out.String()) {
			said = said || ev.Event == "ca.failed" || ev.Event == "ct.failed" ||
				strings.Contains(ev.line, `"from_host":true`)
		}
		if !said {
			t.Errorf("%s: no event says that the CA could not be asked:\n%.2000s", stream, out.String())
		}
		if now := l.read(t, "persistent-storage", "ssl", "phoenix_ca.crt"); now != root {
			t.Errorf("%s: the root has changed:\n%s", stream, now)
		}
	}
}

// testExposure rates the units of the containers as systemd does.
func (l lab) testExposure(t *testing.T) {
	const limit = 4.0
	for _, u := range []struct{ ctid, unit string }{{gateway, "nginx"}, {gateway, "phx-nginx-renew"},
		{proxy, "traefik"}, {ca, "step-ca"}} {
		overall := l.in(t, u.ctid, "sh", "-c", "systemd-analyze security --no-pager "+u.unit+".service | tail -n 1")
		_, rest, _ := strings.Cut(overall, ": ")
		words := strings.Fields(rest)
		if len(words) == 0 {
			t.Fatalf("%s: no exposure in %q", u.unit, overall)
		}
		exposure, err := strconv.ParseFloat(words[0], 64)
		if err != nil {
			t.Fatalf("%s: %v in %q", u.unit, err, overall)
		}
		t.Logf("exposure of %s: %.1f", u.unit, exposure)
		if exposure > limit {
			t.Errorf("exposure of %s: %.1f, want at most %.1f", u.unit, exposure, limit)
		}
	}
}

// long reports whether the tests that take long are wanted.
func long() bool { return os.Getenv("PHX_TEST_LONG") == "1" }
