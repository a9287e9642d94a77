package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pct": main, "lxc-attach": main, "pve-daemons": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			lab := filepath.Join(env.WorkDir, "lab")
			env.Setenv("PHX_LAB_DIR", lab)
			env.Setenv("PHX_LAB_BACKEND", "fake")
			env.Setenv("LAB", lab)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // with -race, every program would end a second late
			host, _ := os.Hostname()
			node, _, _ := strings.Cut(host, ".")
			env.Setenv("NODE", node)
			env.Setenv("CONF", filepath.Join(lab, "pve", "lxc"))
			cache := filepath.Join(lab, "storage", "local", "template", "cache")
			if err := os.MkdirAll(cache, 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(cache, "debian.tar.zst"), nil, 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":   status,
			"flock":    flock,
			"mode":     mode,
			"awaitfor": await,
		},
	})
}

// status WANT COMMAND…: the command's exit status must be WANT.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status WANT COMMAND [ARG…]")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

// flock FILE: hold a lock on it until the script ends.
func flock(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR|os.O_CREATE, 0o644)
	ts.Check(err)
	ts.Check(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	ts.Defer(func() { f.Close() })
}

// mode WANT FILE
func mode(ts *testscript.TestScript, _ bool, args []string) {
	fi, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fi.Mode().String(); got != args[0] {
		ts.Fatalf("mode %s, want %s", got, args[0])
	}
}

// [!] awaitfor TEXT FILE: wait until the file holds the text, or does not.
func await(ts *testscript.TestScript, neg bool, args []string) {
	for range 500 {
		data, _ := os.ReadFile(ts.MkAbs(args[1]))
		if strings.Contains(string(data), args[0]) != neg {
			return
		}
		ts.Check(ts.Exec("sleep", "0.02"))
	}
	ts.Fatalf("%s: waited in vain for %q", args[1], args[0])
}
