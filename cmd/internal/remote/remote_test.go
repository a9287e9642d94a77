package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/pct"
)

// The test's own program is what Call sends; it becomes the container's half
// when it is started as the boot script does.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "apply" {
		containerHalf(NewPeer(os.Stdin, os.Stdout))
		return
	}
	os.Exit(m.Run())
}

func containerHalf(peer *Peer) {
	var request string
	if err := peer.Ask("request", &request); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	a := &Answer{Names: []string{request}}
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
func fakePct(t *testing.T) (host *pct.Host, dir string) {
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
	return &pct.Host{PCT: path}, dir
}

func call(host *pct.Host, request string, token error) (*Answer, []string, error) {
	var needs []string
	answer, err := Call(context.Background(), host, 101, func(need string) (any, error) {
		needs = append(needs, need)
		if need == "token" {
			return "secret", token
		}
		return request, nil
	}, io.Discard)
	return answer, needs, err
}

func TestCall(t *testing.T) {
	host, dir := fakePct(t)
	answer, needs, err := call(host, "token please", nil)
	if err != nil || answer.Error != "" || strings.Join(answer.Changes, " ") != "secret" || strings.Join(needs, " ") != "request token" {
		t.Fatalf("answer %+v, needs %v, error %v", answer, needs, err)
	}
	program := filepath.Join(dir, filepath.Base(os.Args[0]))
	before, err := os.Stat(program)
	if err != nil || before.Mode().Perm() != 0o755 {
		t.Fatalf("program %v, %v", before, err)
	}
	// The program is there now: it does not travel again.
	if answer, _, err := call(host, "hello", nil); err != nil || answer.Names[0] != "hello" {
		t.Fatalf("answer %+v, error %v", answer, err)
	}
	if after, err := os.Stat(program); err != nil || !os.SameFile(before, after) {
		t.Errorf("the program was sent again")
	}
	// Another one in its place is replaced.
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if answer, _, err := call(host, "hello", nil); err != nil || answer.Names[0] != "hello" {
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
	answer, _, err := call(host, "token please", errors.New("the CA is down"))
	if err != nil || answer.Stage != "certificate" || answer.Error != "the CA is down" {
		t.Errorf("answer %+v, error %v", answer, err)
	}
}

func TestContainerHalfFails(t *testing.T) {
	host, _ := fakePct(t)
	for request, want := range map[string]string{"die": "out of memory", "babble": `not an answer: "Reading package lists...`} {
		answer, _, err := call(host, request, nil)
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
	_, _, err := call(host, "hello", nil)
	if err == nil || !strings.Contains(err.Error(), "the transfer of "+filepath.Base(os.Args[0])+" broke off") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, filepath.Base(os.Args[0]))); err == nil {
		t.Error("a part of the program was put in place")
	}
}
