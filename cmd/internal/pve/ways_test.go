package pve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"
)

// There are two ways into a container, pct exec and lxc-attach, and two to know which
// containers run. A difference between them is a mistake: what follows is one table
// for both. It needs containers, and so is run by others: by labtest in the lab, where
// they are real, and by pipetest, whose pct starts none and has a process of the host
// in their place. Both set waysVariable: to "lab", or to "fake".

const waysVariable = "PHX_TEST_WAYS"

// waysHost skips a test where there are no containers, and returns a host for each
// way, and the CTID of a container that runs.
func waysHost(t *testing.T) (hosts map[string]*Host, ctid int) {
	t.Helper()
	if os.Getenv(waysVariable) == "" {
		t.Skip("it needs containers: labtest and pipetest run it")
	}
	hosts = map[string]*Host{}
	for _, way := range []string{"pct", "direct"} {
		hosts[way] = &Host{
			PCT: os.Getenv("PHX_PCT"), PVERoot: os.Getenv("PHX_PVE_ROOT"), Proc: os.Getenv("PHX_PROC"),
			LXCPath: os.Getenv("PHX_LXC_PATH"), Direct: way == "direct",
		}
	}
	return hosts, 101
}

// execProgram is a program of phx that runs a command in a container: CTID COMMAND….
// Its stdin is the command's where EXEC_STDIN is set.
func execProgram(c *cli.Context) error {
	h, err := FromFlags(c)
	if err != nil {
		return err
	}
	ctid, err := strconv.Atoi(c.Args().First())
	if err != nil {
		return err
	}
	command := h.Exec(ctid, c.Args().Tail()...)
	command.Stdout, command.Stderr = struct{ io.Writer }{os.Stdout}, struct{ io.Writer }{os.Stderr}
	switch os.Getenv("EXEC_STDIN") {
	case "file": // as the program has it
		command.Stdin = os.Stdin
	case "copy":
		command.Stdin = struct{ io.Reader }{os.Stdin}
	}
	_, err = h.Run(c.Context, command)
	return err
}

// program returns the command line of execProgram by a way.
func program(way string, ctid int, argv ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append([]string{strconv.Itoa(ctid)}, argv...)...)
	cmd.Env = append(os.Environ(), "EXEC=1", "PHX_ATTACH="+way)
	return cmd
}

// seen is what can be seen of a command: its status, stdout and stderr.
func seen(cmd *exec.Cmd) string {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err.Error()
	}
	return fmt.Sprintf("%d\n%s\n--\n%s", cmd.ProcessState.ExitCode(), stdout.String(), stderr.String())
}

// failedWith is what is seen of a command in container 101 that prints nothing and has failed.
func failedWith(command, why string) string {
	return "1\n\n--\n" + filepath.Base(os.Args[0]) + ": pct exec --keep-env 0 101 -- " + command + ": " + why + "\n"
}

func printed(stdout, stderr string) string { return "0\n" + stdout + "\n--\n" + stderr }

func TestWaysIntoAContainer(t *testing.T) {
	_, ctid := waysHost(t)
	sh := func(script string, args ...string) []string {
		return append([]string{"/bin/sh", "-c", script, "sh"}, args...)
	}
	large := strings.Repeat("\x00\xff\r\n\x1b[2J", 100_000)
	arguments := []string{"", " ", "a b", "'", `"`, "\n", "a\nb\n", "-x", "--", "--help", "--name=x", "*", "$HOME",
		`\n\`, "ü", "\xff", "{}", "#", "a=b"}
	for name, tt := range map[string]struct {
		argv  []string
		prior func(t *testing.T, cmd *exec.Cmd)
		real  bool   // only where the container is one
		want  string // "" for whatever it is, as long as it is the same
		match string // the same as an expression
	}{
		"success":    {argv: sh("exit 0"), want: printed("", "")},
		"status 1":   {argv: []string{"/bin/false"}, want: failedWith("/bin/false", "exit status 1")},
		"status 7":   {argv: sh("exit 7"), want: failedWith("/bin/sh -c 'exit 7' sh", "exit status 7")},
		"status 255": {argv: sh("exit 255"), want: failedWith("/bin/sh -c 'exit 255' sh", "exit status 255")},
		"killed by 9": {argv: sh("kill -9 $$"),
			want: failedWith("/bin/sh -c 'kill -9 $$' sh", "exit status 137")},
		"killed by 15": {argv: sh("kill -15 $$"),
			want: failedWith("/bin/sh -c 'kill -15 $$' sh", "exit status 143")},
		"no program":         {argv: []string{"/nonexistent"}, real: true, match: `: exit status 127\n`},
		"no program in PATH": {argv: []string{"nonexistent"}, real: true, match: `: exit status 127\n`},
		"no words":           {argv: []string{"--version"}, real: true, match: `: exit status 127\n`},
		"not executable":     {argv: []string{"/etc/passwd"}, real: true, match: `: exit status 126\n`},
		"a directory":        {argv: []string{"/etc"}, real: true, match: `: exit status 126\n`},

		"both streams":            {argv: sh(`printf 'a\nb'; printf 'c\nd' >&2`), want: printed("a\nb", "c\nd")},
		"bytes":                   {argv: sh(`printf '\000\r\n\377\033[2J'`), want: printed("\x00\r\n\xff\x1b[2J", "")},
		"a stream that is closed": {argv: sh("exec >&-; echo x"), match: `exit status [12]`},

		"stdin, nothing": {argv: sh("readlink /proc/self/fd/0; wc -c"), match: `^0\n/dev/null\n0\n`},
		"stdin, the caller's is not it": {argv: sh("wc -c"), prior: stdin("", "the stream of events\n"),
			want: printed("0\n", "")},
		"stdin, data":         {argv: []string{"cat"}, prior: stdin("copy", large), want: printed(large, "")},
		"stdin, a file":       {argv: []string{"cat"}, prior: stdin("file", large), want: printed(large, "")},
		"stdin, ends at once": {argv: sh("wc -c"), prior: stdin("copy", ""), want: printed("0\n", "")},
		"stdin, nobody reads": {argv: []string{"true"}, prior: stdin("copy", large), want: printed("", "")},
		"stdin, closed": {argv: sh("wc -c"), want: printed("0\n", ""), prior: func(_ *testing.T, cmd *exec.Cmd) {
			cmd.Args = append([]string{"sh", "-c", `exec "$@" <&-`, "sh", cmd.Path}, cmd.Args[1:]...)
			cmd.Path = "/bin/sh"
			cmd.Env = append(cmd.Env, "EXEC_STDIN=file")
		}},

		"arguments": {argv: sh(`for a; do printf '<%s>' "$a"; done`, arguments...),
			want: printed("<"+strings.Join(arguments, "><")+">", "")},
		"environment": {argv: []string{"/usr/bin/env"}, real: true, prior: environ("SSL_CERT_FILE=/x",
			"SSL_CERT_DIR=/x", "HOME=/x", "TERM=xterm", "FOO=bar", "LANG=de_DE.UTF-8", "LC_ALL=C",
			"http_proxy=http://10.0.0.1:1", "PHX_X=1", "PERL5LIB=/x", "container=none", "LD_LIBRARY_PATH=/x",
			"USER=x", "SHELL=/x"),
			want: printed("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"+
				"container=lxc\nTERM=linux\n", "")},
		"directory": {argv: sh("pwd"), real: true, prior: in("/usr/share"),
			want: printed("/usr/share\n", "")},
		"directory, not there": {argv: sh("pwd"), real: true, prior: in(t.TempDir()), want: printed("/\n", "")},

		// Process group and session are of somebody outside, the terminal is none.
		"session":  {argv: sh("cut -d ' ' -f 5-8 /proc/self/stat"), real: true, want: printed("0 0 0 -1\n", "")},
		"terminal": {argv: sh("exec 3</dev/tty"), prior: terminal, match: `/dev/tty: No such device or address`},
		"umask":    {argv: sh("umask"), want: printed("0022\n", ""), prior: before("umask 077")},
		"limits":   {argv: sh("cat /proc/self/limits"), prior: before("ulimit -n 1000; ulimit -c 0; ulimit -s 4096")},
		"descriptors": {argv: sh("ls /proc/self/fd"), want: printed("0\n1\n2\n3\n", ""), // 3 is that of ls
			prior: before("exec 5</dev/null 9>>lock 200</dev/null")},
		"signals": {argv: []string{"grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"}, // but for SIGPIPE
			match: `SigBlk:\s0+\nSigIgn:\s0+1000\n`},
		"signals, below nohup": {argv: []string{"grep", "^SigIgn", "/proc/self/status"}, prior: before("trap '' HUP"),
			want: printed("SigIgn:\t0000000000001001\n", "")},
		"niceness": {argv: []string{"nice"}, prior: before("renice -n 19 $$ >/dev/null"), want: printed("19\n", "")},
		"oom_score_adj": {argv: sh("cat /proc/self/oom_score_adj"), prior: before("echo 321 >/proc/self/oom_score_adj"),
			want: printed("321\n", "")},

		"ids": {argv: sh("id; cat /proc/self/uid_map /proc/self/gid_map"), real: true,
			match: `uid=0\(root\) .*\n +0 +100000 +65536`},
		"namespaces": {argv: sh("cd /proc/self/ns && readlink cgroup ipc mnt net pid user uts"), real: true,
			match: `^0\n(\w+:\[\d+\]\n){7}\n`},
		"capabilities": {argv: sh("grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status"), real: true,
			match: `CapEff`},
		"cgroup": {argv: sh("cat /proc/self/cgroup; cat /proc/1/cgroup"), real: true},
		"labels": {argv: sh("cat /proc/self/attr/current; cat /proc/self/personality"), real: true},
		"root":   {argv: sh("cat /etc/hostname; stat -c %d:%i /"), real: true, match: `^0\nNginx-Phoenix\n`},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.real && os.Getenv(waysVariable) != "lab" {
				t.Skip("no container")
			}
			said := map[string]string{}
			for _, way := range []string{"pct", "direct"} {
				cmd := program(way, ctid, tt.argv...)
				cmd.Dir = t.TempDir()
				if tt.prior != nil {
					tt.prior(t, cmd)
				}
				said[way] = seen(cmd)
				switch {
				case tt.match != "" && !regexp.MustCompile(tt.match).MatchString(said[way]):
					t.Errorf("by %s: %q, want %s", way, cut(said[way]), tt.match)
				case tt.want != "" && said[way] != tt.want:
					t.Errorf("by %s: %q, want %q", way, cut(said[way]), cut(tt.want))
				}
			}
			if said["pct"] != said["direct"] {
				t.Errorf("by pct exec:\n%s\nby lxc-attach:\n%s", cut(said["pct"]), cut(said["direct"]))
			}
		})
	}
}

func cut(text string) string { return text[:min(len(text), 2000)] }

func stdin(kind, text string) func(*testing.T, *exec.Cmd) {
	return func(t *testing.T, cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "EXEC_STDIN="+kind)
		if kind != "file" {
			cmd.Stdin = strings.NewReader(text)
			return
		}
		f, err := os.CreateTemp(t.TempDir(), "")
		if err == nil {
			_, err = f.WriteString(text)
		}
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		cmd.Stdin = f
	}
}

func environ(more ...string) func(*testing.T, *exec.Cmd) {
	return func(_ *testing.T, cmd *exec.Cmd) { cmd.Env = append(cmd.Env, more...) }
}

func in(dir string) func(*testing.T, *exec.Cmd) {
	return func(_ *testing.T, cmd *exec.Cmd) { cmd.Dir = dir }
}

// before has a shell run a script before it becomes the program.
func before(script string) func(*testing.T, *exec.Cmd) {
	return func(_ *testing.T, cmd *exec.Cmd) {
		cmd.Args = append([]string{"bash", "-c", script + `; exec "$@"`, "bash", cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/bash"
	}
}

// terminal gives the program a terminal to type into.
func terminal(t *testing.T, cmd *exec.Cmd) {
	script, err := exec.LookPath("script")
	if err != nil {
		t.Skip(err)
	}
	line := "exec"
	for _, arg := range append([]string{cmd.Path}, cmd.Args[1:]...) {
		line += " '" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	cmd.Path, cmd.Args = script, []string{"script", "-qefc", line, "/dev/null"}
}

// What is inside of a container outlives the command that brought it there, unless it
// gets the signal itself.
func TestWaysOfSignals(t *testing.T) {
	_, ctid := waysHost(t)
	const script = `for s in HUP INT TERM; do trap "echo $s >>$1" $s; done
		: >"$1"; echo $$; exec 2>/dev/null; n=0; while [ $n -lt 15 ]; do sleep 0.1; n=$((n + 1)); done
		echo ended >>"$1"`
	// How often a signal is seen is by chance: what comes before the first is taken, is one.
	const after = `while kill -0 "$1" 2>/dev/null; do sleep 0.05; done; uniq "$2"; rm "$2"`
	for _, tt := range []struct {
		to  string // "phx", or "command": pct or lxc-attach
		sig syscall.Signal
	}{
		{"phx", syscall.SIGTERM}, {"phx", syscall.SIGINT}, {"phx", syscall.SIGKILL},
		// No SIGINT: lxc-attach ignores it, but only from some moment on after the command has begun.
		{"command", syscall.SIGTERM}, {"command", syscall.SIGKILL},
	} {
		t.Run(fmt.Sprintf("%s %s", tt.to, tt.sig), func(t *testing.T) {
			t.Parallel()
			said := map[string]string{}
			for _, way := range []string{"pct", "direct"} {
				file := "/run/phx-ways-" + strings.ReplaceAll(t.Name(), "/", "-") + way
				if os.Getenv(waysVariable) != "lab" {
					file = t.TempDir() + "/file"
				}
				cmd := program(way, ctid, "/bin/sh", "-c", script, "sh", file)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.StdoutPipe()
				if err == nil {
					err = cmd.Start()
				}
				if err != nil {
					t.Fatal(err)
				}
				var inside int
				if _, err := fmt.Fscan(out, &inside); err != nil {
					t.Fatalf("%v: %s", err, &stderr)
				}
				pid := cmd.Process.Pid
				if tt.to == "command" {
					pid = childOf(t, pid)
				}
				if err := syscall.Kill(pid, tt.sig); err != nil {
					t.Fatal(err)
				}
				cmd.Wait()
				fate := seen(program("pct", ctid, "/bin/sh", "-c", after, "sh", strconv.Itoa(inside), file))
				said[way] = fmt.Sprintf("%v\n%s\n%s", cmd.ProcessState,
					strings.ReplaceAll(stderr.String(), file, "FILE"), fate)
			}
			if said["pct"] != said["direct"] {
				t.Errorf("by pct exec:\n%s\nby lxc-attach:\n%s", said["pct"], said["direct"])
			}
			t.Log(said["direct"])
		})
	}
}

// childOf returns the pid of the one child of a process.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		if child, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return child
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

// The states that both ways know, of a container that lives and dies, and what they
// say where there is no way in.
func TestWaysToKnowStates(t *testing.T) {
	hosts, _ := waysHost(t)
	ctx := context.Background()
	const ctid = 960
	pct := func(args ...string) {
		t.Helper()
		cmd := exec.Command(os.Getenv("PHX_PCT"), args...)
		cmd.Env = append(os.Environ(), "PHX_ATTACH=pct")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pct %q: %v\n%s", args, err, out)
		}
	}
	// look returns what is to be known of a container, which has to be the same by both ways.
	look := func(ctid int) (state string) {
		t.Helper()
		said := map[string]string{}
		for way, h := range hosts {
			all, err := h.List(ctx)
			if err != nil {
				t.Fatalf("by %s: %v", way, err)
			}
			state = all[ctid]
			c := h.Container(ctid, nil, 0, t.Logf)
			err = c.askState(ctx)
			said[way] = fmt.Sprintf("%q, %t, %v\n%v", state, c.Running, err, all)
			if state != "running" {
				_, err := h.Run(ctx, h.Exec(ctid, "true"))
				said[way] += fmt.Sprintf("\n%v", err)
			}
		}
		if said["pct"] != said["direct"] {
			t.Errorf("by pct:\n%s\nwithout:\n%s", said["pct"], said["direct"])
		}
		return state
	}
	want := func(when string, ctid int, state string) {
		t.Helper()
		if got := look(ctid); got != state {
			t.Errorf("%s: %q, want %q", when, got, state)
		}
	}
	// during has both ways look all the time while something is at work.
	during := func(args ...string) {
		t.Helper()
		done := make(chan struct{})
		go func() {
			defer close(done)
			cmd := exec.Command(os.Getenv("PHX_PCT"), args...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("pct %q: %v\n%s", args, err, out)
			}
		}()
		looks := 0
		for running := true; running; looks++ {
			before, err := hosts["direct"].List(ctx)
			by, errPct := hosts["pct"].List(ctx)
			after, errAfter := hosts["direct"].List(ctx)
			if err := errors.Join(err, errPct, errAfter); err != nil {
				t.Fatal(err)
			}
			if before[ctid] == after[ctid] && by[ctid] != before[ctid] {
				t.Errorf("while pct %q is at work: by pct %q, without %q", args, by[ctid], before[ctid])
			}
			select {
			case <-done:
				running = false
			default:
			}
		}
		t.Logf("pct %q: %d looks", args, looks)
	}

	conf := hosts["direct"].confPath(ctid)
	pct("clone", "900", strconv.Itoa(ctid), "--snapname", "final-form", "--hostname", "ways")
	destroyed := false
	defer func() {
		if !destroyed {
			pct("destroy", strconv.Itoa(ctid), "--force", "1")
		}
	}()
	want("made", ctid, "stopped")
	during("start", strconv.Itoa(ctid))
	want("just started", ctid, "running")
	for way := range hosts {
		if said := seen(program(way, ctid, "echo", "up")); said != printed("up\n", "") {
			t.Errorf("just started, by %s: %q", way, said)
		}
	}
	if os.Getenv(waysVariable) == "lab" {
		lxc := func(program string) {
			if out, err := exec.Command(program, "-P", os.Getenv("PHX_LXC_PATH"), "-n",
				strconv.Itoa(ctid)).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", program, err, out)
			}
		}
		lxc("lxc-freeze")
		want("frozen", ctid, "running")
		lxc("lxc-unfreeze")
	}

	// A conf file that is broken, that is empty, and that is gone, while the container runs.
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	for name, broken := range map[string]string{"broken": "\x00\xff: [[\nmemory\n" + string(text), "empty": ""} {
		if err := os.WriteFile(conf, []byte(broken), 0o640); err != nil {
			t.Fatal(err)
		}
		want(name, ctid, "running")
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	want("without a conf file", ctid, "")
	if err := os.WriteFile(conf, text, 0o640); err != nil {
		t.Fatal(err)
	}
	want("as before", ctid, "running")
	during("stop", strconv.Itoa(ctid))
	want("just stopped", ctid, "stopped")
	during("start", strconv.Itoa(ctid))
	during("shutdown", strconv.Itoa(ctid), "--timeout", "20", "--forceStop", "1")
	want("shut down", ctid, "stopped")

	// Another node's, a virtual machine's, nobody's.
	root := hosts["direct"].PVERoot
	for _, file := range []string{"nodes/elsewhere/lxc/961.conf",
		"nodes/" + hosts["direct"].Node() + "/qemu-server/962.conf"} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("memory: 512\n"), 0o640); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
	}
	want("another node's", 961, "")
	want("a virtual machine", 962, "")
	want("nobody's", 963, "")
	want("a template", 900, "stopped")

	pct("destroy", strconv.Itoa(ctid))
	destroyed = true
	want("destroyed", ctid, "")
}
