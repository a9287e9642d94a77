package pve

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// sleeping starts a process that calls itself argv, with this name of its
// program, and returns its id.
func sleeping(t *testing.T, argv0 string, args ...string) int {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "echo; read -r x")
	cmd.Args = append([]string{argv0, "-c", "echo; read -r x", "sh"}, args...)
	return begin(t, cmd)
}

func begin(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestCommands(t *testing.T) {
	h := &Host{PCT: "/usr/sbin/pct", PVERoot: t.TempDir()}
	t.Setenv("PHX_PVE_ROOT", h.PVERoot)
	dir := t.TempDir()
	if out, err := exec.Command("/bin/sh", "-c", `printf '#!/bin/sh\necho\nread -r x\n' >"$0/pct"; chmod +x "$0/pct"`,
		dir).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	pct := func(args ...string) int { return begin(t, exec.Command(dir+"/pct", args...)) }
	// Numbers that no container of this machine has.
	want := map[int][]string{
		pct("start", "999000500"): {"999000500", "pct start 999000500"},
		pct("clone", "999000900", "999000501", "--x"): {"999000900 999000501",
			"pct clone 999000900 999000501 --x"},
		pct("exec", "999000502", "--", "sh"): {},
		pct("status", "999000502"):           {},
		pct("set", "999000500", "--hostname", "a b"): {"999000500",
			"pct set 999000500 --hostname 'a b'"},
		sleeping(t, "pctx", "start", "999000500"): {},
		sleeping(t, "task UPID:pve:0001:0002:AB:vzstart:999000503:root@pam:"): {"999000503",
			"task UPID:pve:0001:0002:AB:vzstart:999000503:root@pam:"},
		sleeping(t, "task UPID:pve:0001:0002:AB:resize:999000503:root@pam:"): {"999000503",
			"task UPID:pve:0001:0002:AB:resize:999000503:root@pam:"},
		sleeping(t, "task UPID:pve:0001:0002:AB:qmstart:999000503:root@pam:"): {},
	}
	for _, ctid := range []int{999000500, 999000501, 999000502, 999000503, 999000900} {
		found, err := h.commands(ctid)
		if err != nil {
			t.Fatal(err)
		}
		var wanted, have []string
		for pid, w := range want {
			if len(w) > 0 && slices.Contains(strings.Fields(w[0]), fmt.Sprint(ctid)) {
				wanted = append(wanted, fmt.Sprintf("%d %s", pid, w[1]))
			}
		}
		for _, c := range found {
			have = append(have, fmt.Sprintf("%d %s", c.pid, c.text))
			if !c.runs() {
				t.Errorf("%s does not run", c.text)
			}
		}
		slices.Sort(wanted)
		slices.Sort(have)
		if !slices.Equal(wanted, have) {
			t.Errorf("%d: %q, want %q", ctid, have, wanted)
		}
	}
}

// What phx has not started, or for another host, is left to Proxmox's locks.
func TestCommandsOfOthers(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PHX_PVE_ROOT", dir+"/other")
	sleeping(t, "task UPID:pve:0001:0002:AB:vzstart:999000505:root@pam:")
	if found, err := (&Host{PCT: "pct", PVERoot: dir}).commands(999000505); err != nil || len(found) > 0 {
		t.Errorf("%+v, %v", found, err)
	}
	if found, err := (&Host{PCT: "pct", PVERoot: dir + "/other"}).commands(999000505); err != nil || len(found) != 1 {
		t.Errorf("%+v, %v", found, err)
	}
}

// A task of Proxmox is Perl, which writes the new name over the environment.
func TestCommandsOfPerl(t *testing.T) {
	h := &Host{PCT: "pct", PVERoot: t.TempDir()}
	ctid := 999000000 + os.Getpid() // a task like this is that of any host, and this test may run twice at once
	cmd := exec.Command("perl", "-e", `$0 = shift; $| = 1; print "\n"; <STDIN>`,
		fmt.Sprintf("task UPID:pve:0001:0002:AB:vzstart:%d:root@pam:", ctid))
	cmd.Env = []string{h.mark()}
	pid := begin(t, cmd)
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err != nil ||
		strings.Contains(string(text), h.mark()) {
		t.Fatalf("its environment is %q, %v", text, err)
	}
	if found, err := h.commands(ctid); err != nil || len(found) != 1 || found[0].pid != pid {
		t.Errorf("%+v, %v", found, err)
	}
}

// phx knows its own commands again.
func TestOwnCommandIsKnown(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\ntouch " + dir + "/started\nwhile [ ! -e " + dir + "/end ]; do sleep 0.05; done\n"
	if err := os.WriteFile(dir+"/pct", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	h := &Host{PCT: dir + "/pct", PVERoot: dir}
	done := make(chan error)
	go func() {
		_, err := h.pct(context.Background(), "start", "999000506")
		done <- err
	}()
	for {
		if _, err := os.Stat(dir + "/started"); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	found, err := h.commands(999000506)
	if err != nil || len(found) != 1 || found[0].text != "pct start 999000506" || !found[0].runs() {
		t.Errorf("%+v, %v", found, err)
	}
	os.WriteFile(dir+"/end", nil, 0o644)
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, c := range found {
		if c.runs() {
			t.Errorf("%s still runs", c.text)
		}
	}
}

// A process that has ended, or another one of its number, does not run.
func TestCommandThatHasEnded(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []runningCommand{{pid: cmd.Process.Pid, start: "1"}, {pid: 1, start: "-1"}, {pid: 1}} {
		if c.runs() {
			t.Errorf("%+v runs", c)
		}
	}
}

// A container's processes call themselves what they like.
func TestCommandsOfAContainer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a PID namespace")
	}
	h := &Host{PCT: "pct", PVERoot: t.TempDir()}
	t.Setenv("PHX_PVE_ROOT", h.PVERoot)
	begin(t, exec.Command("unshare", "--pid", "--fork", "--kill-child", "bash", "-c",
		"echo; exec -a 'task UPID:pve:0001:0002:AB:vzstart:999000504:root@pam:' cat"))
	if found, err := h.commands(999000504); err != nil || len(found) > 0 {
		t.Errorf("%+v, %v", found, err)
	}
}
