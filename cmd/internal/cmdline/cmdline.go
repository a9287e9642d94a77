// Package cmdline holds what the programs of phx share as commands: how they
// start, how they speak to people, and how they end.
//
// Results go to stdout, everything else to stderr as "program: message". What
// would act on a terminal is shown, not sent; the words of others, a
// container's above all, stand behind "| ".
// The exit status is 0 when all is well, 1 when something failed, 2 for wrong
// usage or configuration, and 128+n after signal n.
//
// Flags have environment variables PHX_…; one that is empty counts as unset.
package cmdline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// Default places on a Proxmox VE host. Of the configuration and of the AppArmor
// profiles, that of the Debian package counts where there is no local one.
const (
	LocalConfig      = "/usr/local/phoenix_hypervisor/etc/phoenix_lxc_configs.json"
	PackagedConfig   = "/etc/phx/phoenix_lxc_configs.json"
	LocalAppArmor    = "/usr/local/phoenix_hypervisor/etc/apparmor"
	PackagedAppArmor = "/etc/phx/apparmor"

	DefaultCAFile = "/usr/local/phoenix_hypervisor/persistent-storage/ssl/phoenix_ca.crt"
	DefaultDomain = "internal.thinkheads.ai"
)

// DefaultConfig is the configuration where none is named.
func DefaultConfig() string { return either(LocalConfig, PackagedConfig) }

// DefaultAppArmor is the directory of AppArmor profiles where none is named.
func DefaultAppArmor() string { return either(LocalAppArmor, PackagedAppArmor) }

// either returns the path local unless nothing is there. What is there and cannot
// be read is an error for who reads it.
func either(local, packaged string) string {
	if _, err := os.Lstat(local); errors.Is(err, fs.ErrNotExist) {
		return packaged
	}
	return local
}

// Status is an error that has been reported already: the program ends with
// this exit status and prints nothing more.
//
// Packages that know nothing of exit statuses have errors with a method
// Reported() bool instead: where it returns true, the status is 1.
type Status int

func (s Status) Error() string { return "exit status " + strconv.Itoa(int(s)) }

type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

// Usagef makes an error for wrong usage: it is printed and the program ends
// with status 2.
func Usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// signalError is the cause of a context that a signal has cancelled.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string {
	if e.sig == driver {
		return "stopped by the driver"
	}
	return "stopped by signal: " + e.sig.String()
}

// Elapsed formats the time since start for a message, as in "1.2 s".
func Elapsed(start time.Time) string {
	return fmt.Sprintf("%.1f s", time.Since(start).Seconds())
}

// Name is the name by which the program was called.
func Name() string { return filepath.Base(os.Args[0]) }

// Main runs app with the arguments of the process and ends the process. The
// context that app's actions see is cancelled by SIGINT, SIGTERM and SIGHUP,
// where they are not ignored; a second signal ends the process at once.
func Main(app *cli.App) {
	os.Exit(run(app))
}

func run(app *cli.App) int {
	// Whoever reads our stdout may die before us: that has to be an error from
	// write, not the end of a program with work in flight.
	// The same holds for a file that may not grow any more.
	// Not ignored: programs that we start would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE, syscall.SIGXFSZ)
	closeOnExec()
	unsetEmpty()
	unix.Umask(0o022) // what is secret is made so where it is made

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 8)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, driver} {
		if !signal.Ignored(sig) { // as below nohup
			signal.Notify(signals, sig)
		}
	}
	go func() { os.Exit(stopOn(signals, cancel)) }()

	app.HideHelpCommand = true
	app.Version = version()
	cli.VersionFlag = &cli.BoolFlag{Name: "version"}
	cli.VersionPrinter = func(c *cli.Context) { fmt.Fprintln(c.App.Writer, c.App.Name, c.App.Version) }
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = usage
	for _, c := range app.Commands {
		c.HideHelpCommand = true
		c.OnUsageError = usage
	}
	help := &result{}
	app.Writer = help
	err := app.RunContext(ctx, os.Args)
	if err == nil {
		err = help.err
	}

	var stopped signalError
	if errors.As(context.Cause(ctx), &stopped) {
		Logf("%v", stopped)
		return 128 + int(stopped.sig)
	}
	var status Status
	var wrong *usageError
	var reported interface{ Reported() bool }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &reported) && reported.Reported():
		return 1
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &wrong):
		Logf("%v (see %s --help)", err, Name())
		return 2
	}
	Logf("%v", err)
	return 1
}

// version returns the version that the program was built from: a tag, or the time
// and the revision of a commit, and the version of Go.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	return info.Main.Version + " " + info.GoVersion
}

// driver is the signal by which the driver passes on one that it has got. The
// same signal may have come to the programs as well, from systemd or a
// terminal, and is then not a second one.
const driver = syscall.SIGUSR1

// stopOn cancels on the first signal, and returns the exit status for ending
// at once when a second one comes.
func stopOn(signals <-chan os.Signal, cancel context.CancelCauseFunc) int {
	var first, direct, forwarded os.Signal
	for sig := range signals {
		same := &direct
		if sig == driver {
			same = &forwarded
		}
		if *same != nil {
			break
		}
		*same = sig
		if first == nil {
			first = sig
			cancel(signalError{sig.(syscall.Signal)})
		}
	}
	n := int(first.(syscall.Signal))
	Logf("stopped at once by a second signal: what was in flight may be half done; the next run completes it")
	return 128 + n
}

// badVariable is what the library says of a flag's variable.
var badVariable = regexp.MustCompile(`^could not parse .* from environment variable "(\w+)" for flag ([a-z-]+): `)

// usage says in the words of the help texts what the library says of flags.
func usage(_ *cli.Context, err error, _ bool) error {
	said := strings.Replace(err.Error(), "flag provided but not defined: -", "unknown option --", 1)
	return Usagef("%s", badVariable.ReplaceAllString(said, "--$2, or $1: "))
}

// closeOnExec keeps what the process has inherited beyond stderr (the
// driver's lock above all) from the programs that it starts: the lock must be
// free when phx ends, whatever daemon pct has started.
func closeOnExec() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// unsetEmpty unsets every variable PHX_… that is empty: a flag then has its
// default, as if the variable were not there.
func unsetEmpty() {
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); value == "" && strings.HasPrefix(name, "PHX_") {
			os.Unsetenv(name)
		}
	}
}

// ReadOnly runs f, which changes nothing and may block in a read or a write. It
// is abandoned when ctx is done, whose cause is then the error.
func ReadOnly(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-done:
		return err
	}
}

// Filter reports whether the program runs as a filter: without arguments and
// with a stdin that is no terminal. Without arguments at a terminal it
// returns a usage error.
func Filter(c *cli.Context) (bool, error) {
	if c.Args().Present() {
		return false, nil
	}
	if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err == nil {
		return false, Usagef("stdin is a terminal: expected events from phx-plan, or arguments")
	}
	return true, nil
}
