package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/process"
)

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
		Argv: append([]string{program}, argv[1:]...),
		Env: append([]string{
			"PATH=" + loginPath, "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
			"STEPPATH=" + stepPath,
		}, env...),
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

// HasIPv6 reports whether the kernel has IPv6: where it has not, no program can
// listen at an address of it.
func HasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
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
