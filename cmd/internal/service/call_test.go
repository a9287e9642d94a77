package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// The test's own program is what Call sends; it becomes the container's half
// when it is started as the boot script does.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "apply" {
		containerHalf(remote.NewPeer(os.Stdin, os.Stdout))
		return
	}
	os.Exit(m.Run())
}

func containerHalf(peer *remote.Peer) {
	var request string
	if err := peer.Ask("request", &request); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	a := &remote.Answer{Names: []string{"forged.example"}, Changes: []string{request}}
	switch request {
	case "token please":
		var token string
		if err := peer.Ask("token", &token); err != nil {
			a.Stage, a.Error = "certificate", err.Error()
		}
		a.Changes = []string{token}
	case "die":
		fmt.Fprintln(os.Stderr, "out of memory")
		os.Exit(137)
	case "babble":
		fmt.Println("Reading package lists...")
		io.Copy(io.Discard, os.Stdin)
	}
	peer.Answer(a)
}

// fakePct stands in for "pct exec --keep-env 0 ID --": it runs the command
// with /usr/local/bin replaced by a directory of the test, and notes how
// often the program travelled.
func fakePct(t *testing.T) (host *pve.Host, dir string) {
	dir = t.TempDir()
	script := `#!/bin/sh
[ "$1 $2 $3 $5" = "exec --keep-env 0 --" ] || { echo "unexpected: $*" >&2; exit 99; }
echo call >>` + dir + `/calls
shift 5
[ "$1 $2" = "/bin/sh -c" ] || exit 98
text=$(printf '%s' "$3" | sed 's,/usr/local/bin,` + dir + `,')
shift 3
exec /bin/sh -c "$text" "$@"
`
	path := filepath.Join(dir, "pct")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return &pve.Host{PCT: path}, dir
}

func talk(host *pve.Host, request string, token error) (*remote.Answer, []string, error) {
	var needs []string
	answer, err := call(context.Background(), host, 101, []string{"a.example"}, func(need string) (any, error) {
		needs = append(needs, need)
		if need == "token" {
			return "secret", token
		}
		return request, nil
	}, func(remote.Note) {}, io.Discard)
	return answer, needs, err
}

func TestCall(t *testing.T) {
	host, dir := fakePct(t)
	answer, needs, err := talk(host, "token please", nil)
	if err != nil || answer.Error != "" || strings.Join(answer.Changes, " ") != "secret" ||
		strings.Join(needs, " ") != "request token" {
		t.Fatalf("answer %+v, needs %v, error %v", answer, needs, err)
	}
	program := filepath.Join(dir, filepath.Base(os.Args[0]))
	before, err := os.Stat(program)
	if err != nil || before.Mode().Perm() != 0o755 {
		t.Fatalf("program %v, %v", before, err)
	}
	// The program is there now: it does not travel again.
	if answer, _, err := talk(host, "hello", nil); err != nil || answer.Changes[0] != "hello" ||
		answer.Names[0] != "a.example" {
		t.Fatalf("answer %+v, error %v", answer, err)
	}
	if after, err := os.Stat(program); err != nil || !os.SameFile(before, after) {
		t.Errorf("the program was sent again")
	}
	// Another one in its place is replaced.
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if answer, _, err := talk(host, "hello", nil); err != nil || answer.Changes[0] != "hello" ||
		answer.Names[0] != "a.example" {
		t.Fatalf("answer %+v, error %v", answer, err)
	}
	if calls, _ := os.ReadFile(filepath.Join(dir, "calls")); strings.Count(string(calls), "call") != 3 {
		t.Errorf("%d calls of pct for 3 conversations", strings.Count(string(calls), "call"))
	}
	if left, _ := filepath.Glob(program + ".*"); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}

func TestHostCannotSupply(t *testing.T) {
	host, _ := fakePct(t)
	answer, _, err := talk(host, "token please", errors.New("the CA is down"))
	if err != nil || answer.Stage != "certificate" || answer.Error != "the CA is down" {
		t.Errorf("answer %+v, error %v", answer, err)
	}
}

func TestContainerHalfFails(t *testing.T) {
	host, _ := fakePct(t)
	for request, want := range map[string]string{"die": "out of memory",
		"babble": `not an answer: "Reading package lists...`} {
		answer, _, err := talk(host, request, nil)
		if answer != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: answer %+v, error %v", request, answer, err)
		}
	}
}

func TestTransferBreaksOff(t *testing.T) {
	host, dir := fakePct(t)
	// A container without room: what arrives is not what was sent.
	script, _ := os.ReadFile(host.PCT)
	cut := strings.Replace(string(script), "exec /bin/sh -c", `PATH=`+dir+`/bin:$PATH; exec /bin/sh -c`, 1)
	os.Mkdir(filepath.Join(dir, "bin"), 0o755)
	os.WriteFile(filepath.Join(dir, "bin", "head"), []byte("#!/bin/sh\nexec /usr/bin/head -c 1000\n"), 0o755)
	os.WriteFile(host.PCT, []byte(cut), 0o755)
	_, _, err := talk(host, "hello", nil)
	if err == nil || !strings.Contains(err.Error(), "the transfer of "+filepath.Base(os.Args[0])+" broke off") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, filepath.Base(os.Args[0]))); err == nil {
		t.Error("a part of the program was put in place")
	}
}

// A program that others than root could change, or could not run, is not the
// one that was sent, whatever is in it.
func TestProgramOfAnotherMode(t *testing.T) {
	host, dir := fakePct(t)
	program := filepath.Join(dir, filepath.Base(os.Args[0]))
	for name, spoil := range map[string]func() error{
		"as it was":            func() error { return nil },
		"umask 077":            func() error { return os.Chmod(program, 0o700) },
		"not to be run":        func() error { return os.Chmod(program, 0o644) },
		"for others to change": func() error { return os.Chmod(program, 0o777) },
		"setuid":               func() error { return os.Chmod(program, 0o755|os.ModeSetuid) },
		"of another user": func() error {
			if os.Getuid() != 0 {
				return nil
			}
			return os.Chown(program, 65534, 65534)
		},
		"a link": func() error {
			return errors.Join(os.Rename(program, program+"-elsewhere"), os.Symlink(program+"-elsewhere", program))
		},
	} {
		if _, _, err := talk(host, "hello", nil); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if answer, _, err := talk(host, "hello", nil); err != nil || answer.Changes[0] != "hello" {
			t.Errorf("%s: answer %+v, error %v", name, answer, err)
		}
		info, err := os.Lstat(program)
		if err != nil || info.Mode() != 0o755 || int(info.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
}

// What a transfer that was killed has left is removed by the next one, and
// nothing else, nor what another one is writing.
func TestTransferWasKilled(t *testing.T) {
	t.Parallel()
	host, dir := fakePct(t)
	program := filepath.Join(dir, filepath.Base(os.Args[0]))
	kept := map[string]os.FileMode{
		program + ".backup": 0o755, program + ".conf": 0o600, program + "2.aB3xY9": 0o600, program + ".aB3xY9z": 0o600,
		filepath.Join(dir, "phx-other.aB3xY9"): 0o600,
	}
	for path, mode := range kept {
		if err := os.WriteFile(path, []byte("mine"), mode); err != nil {
			t.Fatal(err)
		}
	}
	script, err := os.ReadFile(host.PCT)
	if err != nil {
		t.Fatal(err)
	}
	script = bytes.Replace(script, []byte("exec /bin/sh -c"), []byte("PATH="+dir+"/bin:$PATH; exec /bin/sh -c"), 1)
	killing := &pve.Host{PCT: filepath.Join(dir, "killing")}
	err = errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o755),
		os.WriteFile(filepath.Join(dir, "bin", "head"), []byte("#!/bin/sh\nkill -KILL $PPID\n"), 0o755),
		os.WriteFile(killing.PCT, script, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := talk(killing, "hello", nil); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the transfer was not killed: %v", err)
		}
		left, err := filepath.Glob(program + ".??????")
		if err != nil || len(left) != 2 { // with the backup
			t.Fatalf("left: %q, %v: want one file of one killed transfer", left, err)
		}
	}
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Second, func() {
		if left, _ := filepath.Glob(program + ".??????"); len(left) != 2 {
			t.Errorf("what another transfer is writing is gone: %q", left)
		}
		lock.Close()
	})
	if answer, _, err := talk(host, "hello", nil); err != nil || answer.Changes[0] != "hello" {
		t.Fatalf("answer %+v, error %v", answer, err)
	}
	all, err := filepath.Glob(filepath.Join(dir, "*.*"))
	if err != nil || len(all) != len(kept)+1 { // the program's name has a dot, too
		t.Errorf("%q, %v", all, err)
	}
	for path := range kept {
		if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
}

// hostileHost returns a host whose container says what a script prints.
func hostileHost(t *testing.T, script string) *pve.Host {
	path := filepath.Join(t.TempDir(), "pct")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &pve.Host{PCT: path}
}

// Whatever a container that was taken over says, the host neither hangs nor
// grows nor believes it, and asks the CA for one token at most.
func TestHostileContainer(t *testing.T) {
	t.Parallel()
	const answer = `echo '{"answer":{"changes":[]}}'`
	for name, tt := range map[string]struct {
		script string
		want   string // of the error; "" for an answer
		needs  string
	}{
		"a line without an end": {`exec tr '\0' x </dev/zero`, "sends a line longer than 1 MiB", ""},
		"100 MB of a line": {`printf '{"need":"'; head -c 100000000 /dev/zero | tr '\0' x; echo '"}'; ` +
			answer, "sends a line longer than 1 MiB", ""},
		"needs without end": {`i=0; while :; do i=$((i+1)); echo '{"need":"n'$i'"}'; done`,
			"asks for more than 16 things", "n1 n2 n3 n4 n5 n6 n7 n8 n9 n10 n11 n12 n13 n14 n15 n16"},
		"many tokens": {`for i in 1 2 3; do echo '{"need":"token"}'; done; read -r reply; ` + answer,
			"asks for the token a second time", "token"},
		"the program, and never reads": {`echo '{"need":"program"}'; sleep 0.5; echo '{"need":"token"}'; exit 3`,
			"exit status 3", ""},
		"stages without end": {`while :; do echo '{"stage":"check"}'; done`,
			"says more than 32 things of a kind", ""},
		"warnings without end": {`while :; do echo '{"warning":"x"}'; done`,
			"says more than 32 things of a kind", ""},
		"what begins is no stage": {`printf '{"stage":"check\\nphx-nginx: all well"}\n'; ` + answer,
			"not a stage: ", ""},
		"a warning of 100 KB":    {`echo '{"warning":"'$(head -c 100000 /dev/zero | tr '\0' x)'"}'; ` + answer, "", ""},
		"a need that is no word": {`printf '{"need":"token\\n\\u001b[2J"}\n'`, "not a need: ", ""},
		"an empty object":        {`echo '{}'`, "not a need: ", ""},
		"null":                   {`echo null`, "not a need: ", ""},
		"deep nesting":           {`head -c 500000 /dev/zero | tr '\0' '['; echo`, "not an answer: ", ""},
		"not JSON":               {`printf '\033]0;x\007\n'`, `not an answer: "\x1b]0;x\a\n"`, ""},
		"wrong types":            {`echo '{"answer":{"stage":7}}'`, "not an answer: ", ""},
		"a stage that is none": {`printf '{"answer":{"stage":"check\\nphx-nginx: all well"}}\n'`,
			"not a stage: ", ""},
		"a long stage": {`echo '{"answer":{"stage":"'$(head -c 5000 /dev/zero | tr '\0' x)'"}}'`,
			"not a stage: ", ""},
		"a certificate without end": {`echo '{"answer":{"not_after":"9999-12-31T23:59:59-23:59"}}'`,
			"not the end of a certificate: ", ""},
		"a certificate of long ago": {`echo '{"answer":{"not_after":"0001-01-01T00:00:01Z"}}'`,
			"not the end of a certificate: ", ""},
		"silence, and the end":       {`exit 0`, "ended without an answer", ""},
		"half a line":                {`printf '{"answer":{}}'`, "ended without an answer", ""},
		"an answer and then no end":  {answer + `; exec sleep 300`, "", ""},
		"an answer and then a flood": {answer + `; exec yes`, "", ""},
		"leaves a process behind":    {`sleep 60 & exit 4`, "exit status 4", ""},
		"messages without end":       {`exec yes >&2`, "printed more than 16 MiB on stdout and stderr", ""},
		"control characters everywhere": {`printf '{"answer":{"stage":"check","error":"\\u001b[2J",` +
			`"changes":["\\u001b"],"changed":true}}\n'`, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			var needs []string
			var told []remote.Note
			answer, err := call(ctx, hostileHost(t, tt.script), 101, []string{"a.example"},
				func(need string) (any, error) {
					needs = append(needs, need)
					return "x", nil
				}, func(n remote.Note) { told = append(told, n) }, io.Discard)
			switch {
			case ctx.Err() != nil:
				t.Error("it hangs")
			case tt.want == "" && (err != nil || answer == nil || strings.Join(answer.Names, " ") != "a.example"):
				t.Errorf("answer %+v, error %v", answer, err)
			case tt.want != "" && (answer != nil || err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("answer %+v, error %.300v", answer, err)
			}
			if len(told) > 64 {
				t.Errorf("told %d things", len(told))
			}
			if got := strings.Join(needs, " "); got != tt.needs && tt.want != "exit status 3" {
				t.Errorf("asked for %q", got)
			}
			if err != nil && len(err.Error()) > 64<<10 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

// A container that neither speaks nor listens holds a run only until that is
// cancelled, even if a process stays behind that keeps the pipes.
func TestSilentContainer(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"silent":                   `exec sleep 300`,
		"closes its side":          `exec >&-; exec sleep 300`,
		"asks and does not listen": `echo '{"need":"program"}'; setsid sleep 60 & wait`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cause := errors.New("stopped")
			ctx, cancel := context.WithCancelCause(context.Background())
			time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
			_, err := call(ctx, hostileHost(t, script), 101, nil, nil, nil, io.Discard)
			if !errors.Is(err, cause) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// What ignores SIGTERM in a container and holds the pipes keeps neither a run
// that is cancelled, nor one that has waited long enough.
func TestContainerThatDoesNotEnd(t *testing.T) {
	if os.Getenv("PHX_TEST_FULL") == "" {
		t.Skip("it waits for seconds: PHX_TEST_FULL=1 runs it")
	}
	t.Parallel()
	const stays = `trap '' TERM; setsid sleep 3600 & echo $! $$ >$(dirname $0)/pids; `
	var all sync.WaitGroup
	for name, script := range map[string]string{
		"silent":             stays + `while :; do sleep 0.1; done`,
		"asks":               stays + `echo '{"need":"program"}'; while :; do sleep 0.1; done`,
		"half a line":        stays + `printf '{"answer":'; while :; do sleep 0.1; done`,
		"the pct alone ends": stays + `exit 4`,
	} {
		for _, way := range []string{"cancelled", "out of time"} {
			host := hostileHost(t, script)
			pids := filepath.Join(filepath.Dir(host.PCT), "pids")
			t.Cleanup(func() {
				text, _ := os.ReadFile(pids)
				for _, pid := range strings.Fields(string(text)) {
					if n, _ := strconv.Atoi(pid); n > 1 {
						syscall.Kill(n, syscall.SIGKILL)
					}
				}
			})
			all.Go(func() { // they wait more than they work
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				want := "stopped by the test"
				switch {
				case name == "the pct alone ends":
					want = "exit status 4"
				case way == "cancelled":
					go func() {
						for ; ; time.Sleep(10 * time.Millisecond) {
							if text, _ := os.ReadFile(pids); len(text) > 0 {
								cancel(errors.New(want))
								return
							}
						}
					}()
				default:
					want, host.Timeout = "not done after 2s", 2*time.Second
				}
				defer time.AfterFunc(time.Minute, func() { panic("it hangs") }).Stop()
				answer, err := call(ctx, host, 101, nil, func(string) (any, error) { return "x", nil }, nil, io.Discard)
				if answer != nil || err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s, %s: answer %+v, error %v", name, way, answer, err)
				}
			})
		}
	}
	all.Wait()
}
