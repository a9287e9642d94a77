package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"thinkheads.ai/phx/cmd/internal/pve"
)

// checkHealth runs the configured health checks until they succeed. What an
// application script has started may have ended since: where the checks fail,
// the script gets another try. A dry run leaves them out: they are commands of
// the configuration's author, and may do anything.
func (j *job) checkHealth(ctx context.Context) error {
	if !j.ct.Running || j.options.dryRun || j.healthy && len(j.changes) == 0 {
		return nil
	}
	isApplication := func(s script) bool { return !s.feature }
	err := j.probe(ctx, math.MaxInt)
	i := slices.IndexFunc(j.scripts, isApplication)
	ran := slices.ContainsFunc(j.due, isApplication)
	if err == nil || i < 0 || ran || context.Cause(ctx) != nil {
		return err
	}
	s := j.scripts[i]
	if slices.Contains(j.adopted, s.name) {
		return fmt.Errorf("%w\n%s was not run, because the container was there before: to run it, use --rerun %d",
			err, s.name, j.c.CTID)
	}
	j.warnf("%v\nso %s runs again", err, s.name)
	start := time.Now()
	j.doing = s.name
	if err := j.runScript(ctx, s); err != nil {
		return err
	}
	j.doing = ""
	j.changed(start, "%s again", s.name)
	return j.probe(ctx, math.MaxInt)
}

// probe runs the health checks, each until it succeeds, as often as it is configured
// and at most so many times.
func (j *job) probe(ctx context.Context, atMost int) error {
	if check := j.c.HealthCheck; check != nil {
		words := strings.Fields(check.Command)
		commands := []pve.Command{j.host.Exec(j.c.CTID, words...)}
		var foreign error
		if j.isInstalled(words[0]) {
			if foreign = j.checkOwn(words[0]); foreign == nil {
				commands = append(commands, pve.Command{Argv: words, Guest: true})
			}
		}
		err := j.retry(ctx, min(check.Retries, atMost), check.Interval, commands...)
		if foreign != nil && isNoProgram(err) {
			err = fmt.Errorf("%w\nit is there on the host, and does not run there: %w", err, foreign)
		}
		if err != nil {
			return err
		}
	}
	for _, probe := range j.c.HealthChecks {
		s, err := j.options.scripts.Health(probe.Script)
		if err != nil {
			return fmt.Errorf("%s: %w", probe.Name, err)
		}
		argv := append([]string{s.Path}, probe.Args...)
		if err := j.retry(ctx, min(3, atMost), 5, pve.Command{Argv: argv, Guest: true}); err != nil {
			return fmt.Errorf("%s: %w", probe.Name, err)
		}
	}
	return nil
}

// isInstalled reports whether path is that of a program on the host in a
// directory of scripts, or below the directory that these and the configuration
// are in: the scripts before phx had health checks there.
func (j *job) isInstalled(path string) bool {
	if !filepath.IsAbs(path) {
		return false
	}
	path = filepath.Clean(path)
	base := filepath.Dir(filepath.Dir(j.configPath()))
	within := func(dir string) bool { return dir != "/" && strings.HasPrefix(path, dir+"/") }
	if !slices.ContainsFunc(j.options.scripts, func(dir string) bool {
		return within(filepath.Clean(dir)) || filepath.Dir(filepath.Clean(dir)) == base && within(base)
	}) {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// staff is Debian's group of those who may write to /usr/local: they count as root.
const staff = 50

// checkOwn returns an error for a program of the host that a container, or somebody
// else than root, may have written: for its place the container says whether it
// runs there or on the host.
func (j *job) checkOwn(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for _, path := range []string{filepath.Clean(path), real} {
		for dir := path; ; dir = filepath.Dir(dir) {
			info, err := os.Lstat(dir)
			if err != nil {
				return err
			}
			stat := info.Sys().(*syscall.Stat_t)
			writers := info.Mode().Perm() & 0o022
			if stat.Gid == 0 || stat.Gid == staff {
				writers &^= 0o020
			}
			if info.Mode()&fs.ModeSymlink != 0 || info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
				writers = 0
			}
			if writers != 0 || stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
				return fmt.Errorf("others than root may write %s", dir)
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	file, err := j.config()
	if err != nil {
		return err
	}
	shared, err := file.WritablePaths()
	if err != nil {
		return err
	}
	for _, m := range j.c.MountPoints {
		if !m.ReadOnly {
			shared = append(shared, m.HostPath)
		}
	}
	for _, dir := range shared {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			dir = resolved
		}
		if dir = filepath.Clean(dir); real == dir || strings.HasPrefix(real, strings.TrimSuffix(dir, "/")+"/") {
			return fmt.Errorf("containers have %s as a mount point", dir)
		}
	}
	return nil
}

// healthTimeout is how long one try of a health check may take.
const healthTimeout = time.Minute

// retry runs the first of the commands until it succeeds. Where there is no such
// program, the next one takes its place.
func (j *job) retry(ctx context.Context, tries, seconds int, commands ...pve.Command) error {
	for try := 1; ; try++ {
		commands[0].Timeout = healthTimeout
		_, err := j.host.Run(ctx, commands[0])
		if len(commands) > 1 && isNoProgram(err) {
			commands = commands[1:]
			try--
			continue
		}
		if err == nil {
			return nil
		}
		if try == 1 && try >= tries {
			return fmt.Errorf("not healthy: %w", err)
		}
		if try >= tries {
			return fmt.Errorf("not healthy after %d tries: %w", try, err)
		}
		if err := pve.Sleep(ctx, time.Duration(seconds)*time.Second); err != nil {
			return err
		}
	}
}

// isNoProgram reports whether a command in a container has failed because there is
// no such program in it: what lxc-attach exits with then.
func isNoProgram(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && (exit.ExitCode() == 126 || exit.ExitCode() == 127)
}
