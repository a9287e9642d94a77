package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
)

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
		s.Begins("")
		if wait(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("the container has not finished its boot after a minute: "+
				"systemctl is-system-running says %q (%v)", state, err)
		}
	}
}

// Serve has a unit run with its present configuration, at every boot and now.
// configuration is all that the service reads when it starts; verb, "reload"
// or "restart", is how it takes a change. What it has taken last is kept as a
// hash in stateFile, which taken writes: call it when the service has been
// seen to serve. A run that ends before that leaves the reload to the next
// one. A service that has taken its configuration, and runs the program that
// is installed, is left alone.
func (s *Setup) Serve(ctx context.Context, unit, verb, stateFile string,
	configuration ...[]byte,
) (taken func() error, err error) {
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
	if isTaken && isSettled(ctx, unit) {
		return func() error { return nil }, nil
	}
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
	return err == nil && runsReplaced(strings.TrimSpace(pid))
}

func runsReplaced(pid string) bool {
	program, err := os.Readlink(filepath.Join("/proc", pid, "exe"))
	return err == nil && strings.HasSuffix(program, " (deleted)")
}

// isSettled reports whether nothing is to be done about a unit: it is started at every
// boot, and runs, as its file says and by the program that is installed. A call of
// systemctl takes milliseconds, and each property would be one.
func isSettled(ctx context.Context, unit string) bool {
	out, err := Run(ctx, "systemctl", "show", "--property=ActiveState,NeedDaemonReload,MainPID", unit)
	if err != nil {
		return false
	}
	is := map[string]string{}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		is[name] = value
	}
	return is["ActiveState"] == "active" && is["NeedDaemonReload"] == "no" && !runsReplaced(is["MainPID"]) &&
		unitFileState(ctx, unit) == "enabled"
}

// Restart restarts a unit.
func (s *Setup) Restart(ctx context.Context, unit string) error { return s.again(ctx, unit, "restart") }

func (s *Setup) again(ctx context.Context, unit, verb string) error {
	if err := s.KnowUnit(ctx, unit); err != nil {
		return err
	}
	if _, err := s.Run(ctx, "systemctl", verb, unit); err != nil {
		return errors.Join(err, Journal(ctx, unit))
	}
	s.Changed("%s of %s", verb, unit)
	return nil
}

// Start starts a unit at every boot and now. When it runs already, it is left
// alone.
func (s *Setup) Start(ctx context.Context, unit string) error {
	if isSettled(ctx, unit) {
		return nil
	}
	if err := s.KnowUnit(ctx, unit); err != nil {
		return err
	}
	if _, err := Run(ctx, "systemctl", "is-enabled", "--quiet", unit); err != nil {
		if _, err := s.Run(ctx, "systemctl", "enable", "--quiet", unit); err != nil {
			return err
		}
		s.Changed("enabled %s", unit)
	}
	if Active(ctx, unit) {
		return nil
	}
	if _, err := s.Run(ctx, "systemctl", "start", unit); err != nil {
		return errors.Join(err, Journal(ctx, unit))
	}
	// start succeeds when a condition of the unit is not met.
	if !Active(ctx, unit) {
		return errors.Join(fmt.Errorf("systemctl start %s exited 0, but the unit is not active", unit),
			Journal(ctx, unit))
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
		if _, err := s.Run(ctx, "systemctl", "daemon-reload"); err != nil {
			return err
		}
	}
	for state := unitFileState(ctx, unit); state == "masked" || state == "masked-runtime"; {
		argv := []string{"systemctl", "unmask", "--quiet", unit}
		if state == "masked-runtime" {
			argv = []string{"systemctl", "unmask", "--quiet", "--runtime", unit}
		}
		if _, err := s.Run(ctx, argv...); err != nil {
			return err
		}
		former := state
		if state = unitFileState(ctx, unit); state == former {
			return fmt.Errorf("%s: %s is still %s: systemctl cat %s shows the file, which is empty: remove it",
				strings.Join(argv, " "), unit, state, unit)
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
