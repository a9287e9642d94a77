package cmdline

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestAnEmptyVariableIsUnset(t *testing.T) {
	t.Setenv("PHX_NAME", "")
	t.Setenv("PHX_JOBS", "")
	t.Setenv("PHX_DRY_RUN", "")
	t.Setenv("PHX_SET", "set")
	t.Setenv("OTHER", "")
	defer func(args []string) { os.Args = args }(os.Args)
	os.Args = []string{"test"}
	status := run(&cli.App{
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Value: "default", EnvVars: []string{"PHX_NAME"}},
			&cli.IntFlag{Name: "jobs", Value: 4, EnvVars: []string{"PHX_JOBS"}},
			&cli.BoolFlag{Name: "dry-run", Value: true, EnvVars: []string{"PHX_DRY_RUN"}},
			&cli.StringFlag{Name: "set", EnvVars: []string{"PHX_SET"}},
		},
		Action: func(c *cli.Context) error {
			if c.String("name") != "default" || c.Int("jobs") != 4 || !c.Bool("dry-run") || c.String("set") != "set" {
				t.Errorf("name %q, jobs %d, dry-run %t, set %q",
					c.String("name"), c.Int("jobs"), c.Bool("dry-run"), c.String("set"))
			}
			if _, ok := os.LookupEnv("OTHER"); !ok {
				t.Error("OTHER is unset")
			}
			return nil
		},
	})
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// What the driver passes on may have reached the program directly as well, as
// from systemd: only the same way twice is a second signal.
// What is at the local place counts, whatever it is.
func TestLocalPlaceComesFirst(t *testing.T) {
	dir := t.TempDir()
	local, packaged := filepath.Join(dir, "local"), filepath.Join(dir, "packaged")
	if got := either(local, packaged); got != packaged {
		t.Errorf("without a local file: %s", got)
	}
	if err := os.Symlink("nowhere", local); err != nil {
		t.Fatal(err)
	}
	if got := either(local, packaged); got != local {
		t.Errorf("with a local link that leads nowhere: %s", got)
	}
}

func TestSecondSignal(t *testing.T) {
	hup, term := os.Signal(syscall.SIGHUP), os.Signal(syscall.SIGTERM)
	for _, test := range []struct {
		signals []os.Signal
		ends    bool
		status  int
	}{
		{[]os.Signal{term}, false, 0},
		{[]os.Signal{term, driver}, false, 0},
		{[]os.Signal{driver, hup}, false, 0},
		{[]os.Signal{hup, term}, true, 129},
		{[]os.Signal{term, driver, driver}, true, 143},
		{[]os.Signal{driver, term, term}, true, 138},
	} {
		signals := make(chan os.Signal)
		ctx, cancel := context.WithCancelCause(context.Background())
		ended := make(chan int, 1)
		go func() { ended <- stopOn(signals, cancel) }()
		for _, sig := range test.signals {
			signals <- sig
		}
		if !test.ends {
			signals <- test.signals[0] // it had not ended, and now does
			test.status = 128 + int(test.signals[0].(syscall.Signal))
		}
		if status := <-ended; status != test.status {
			t.Errorf("%v: status %d, want %d", test.signals, status, test.status)
		}
		if cause := (signalError{test.signals[0].(syscall.Signal)}); context.Cause(ctx) != cause {
			t.Errorf("%v: cancelled by %v", test.signals, context.Cause(ctx))
		}
	}
}
