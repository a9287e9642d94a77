// Command phoenix-view shows the events of phx to people. It is a plain reader of
// the stream: it knows of phx what docs/events.md says, and changes nothing.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

const usage = `Usage:
    phoenix | phoenix-view [OPTIONS]
    phoenix-view [OPTIONS] FILE

Show the events of phx to people: what happens while it happens, and at the end
what has become of it. FILE is a log of events; its last run is shown.

Options:
    --html FILE        write a page of the run, for a browser, to this file
    --list             list the runs of FILE
    --log FILE         append the events of runs to this file
    --messages FILE    show the programs' messages as well, which come out of
                       this file, such as /dev/fd/3
    --metrics FILE     write metrics for Prometheus to this file
    --pass             write the events to stdout as they are, and show nothing
    --quiet            show nothing unless something was changed or failed
    --run ROUND        show the run that --list names so; default the last
    --help             print this text
    --version          print the version

phoenix-view(1) has more: man phoenix-view.
`

// outputs are what is made of each run when it has ended, beside what people see.
// Each looks at its own option, and does nothing without.
var outputs = []func(c *cli.Context, r *run) error{
	func(c *cli.Context, r *run) error {
		if path := c.String("html"); path != "" {
			return writePage(path, r)
		}
		return nil
	},
	func(c *cli.Context, r *run) error {
		if path := c.String("metrics"); path != "" {
			return writeMetrics(path, r, time.Now())
		}
		return nil
	},
}

func main() { os.Exit(execute(os.Args)) }

// usageError is an error for wrong usage.
type usageError struct{ error }

func wrong(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// complain writes a message of phoenix-view's own to stderr.
func complain(err error) {
	fmt.Fprintln(os.Stderr, "phoenix-view: "+escape(err.Error()))
}

func execute(args []string) int {
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1} {
		signal.Ignore(sig)
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE, syscall.SIGXFSZ) // they are errors of a write
	app := &cli.App{
		Name:                  "phoenix-view",
		CustomAppHelpTemplate: usage,
		HideHelpCommand:       true,
		Version:               version(),
		ExitErrHandler:        func(*cli.Context, error) {},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return wrong("%s", strings.Replace(err.Error(), "flag provided but not defined: -", "unknown option --", 1))
		},
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "list"},
			&cli.StringFlag{Name: "run"},
			&cli.StringFlag{Name: "log"},
			&cli.StringFlag{Name: "messages"},
			&cli.BoolFlag{Name: "pass"},
			&cli.BoolFlag{Name: "quiet"},
			&cli.StringFlag{Name: "html"},
			&cli.StringFlag{Name: "metrics"},
		},
		Action: action,
	}
	cli.VersionFlag = &cli.BoolFlag{Name: "version"}
	cli.VersionPrinter = func(c *cli.Context) { fmt.Fprintln(c.App.Writer, c.App.Name, c.App.Version) }
	err := app.Run(args)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		complain(fmt.Errorf("%w (see phoenix-view --help)", err))
		return 2
	}
	complain(err)
	return 1
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	return info.Main.Version + " " + info.GoVersion
}

func action(c *cli.Context) error {
	file := c.Args().First()
	switch {
	case c.NArg() > 1:
		return wrong("one FILE, not %d: %s", c.NArg(), strings.Join(c.Args().Slice(), " "))
	case file == "" && (c.Bool("list") || c.String("run") != ""):
		return wrong("--list and --run: of which FILE?")
	case c.Bool("pass") && (c.Bool("quiet") || c.String("messages") != "" || file != ""):
		return wrong("--pass shows nothing: leave out --quiet, --messages and FILE")
	case file == "" && isTerminal(os.Stdin):
		return wrong("stdin is a terminal: expected events, as in phoenix | phoenix-view, or a FILE")
	}
	log := &runLog{path: c.String("log"), bad: complain}
	if log.path == "" {
		log = nil
	}
	finished := func(r *run) error {
		var errs []error
		for _, output := range outputs {
			errs = append(errs, output(c, r))
		}
		return errors.Join(errs...)
	}
	if c.Bool("pass") {
		return pass(os.Stdin, os.Stdout, log, finished)
	}
	out := newScreen(os.Stdout, os.Getenv)
	if file != "" {
		r, err := showFile(c, file, out)
		if r == nil || err != nil {
			return err
		}
		return finished(r)
	}
	v := newView(c.Bool("quiet"), c.String("messages") != "", out, time.Now)
	v.finished = finished
	if log != nil {
		v.last, _ = readLast(log.path) // the first run has none
	}
	if path := c.String("messages"); path != "" {
		done, err := v.readMessages(path)
		if err != nil {
			return err
		}
		defer func() {
			// All that the programs have written is in the pipe when the events have ended.
			// Whoever else still holds its other end is not waited for.
			select {
			case <-done:
			case <-time.After(2 * time.Second):
			}
			v.close()
		}()
	} else {
		defer v.close()
	}
	defer log.close()
	return readEvents(os.Stdin, log, v.event)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func newView(quiet, messages bool, out *screen, now func() time.Time) *view {
	v := &view{quiet: quiet, now: now, out: out, run: newRun(), sorter: newSorter()}
	switch {
	case quiet:
	case out.rows > 0:
		v.display = newLive(out, &v.mu, messages, v.now)
	default:
		v.display = &plain{out: out, messages: messages}
	}
	return v
}

// readEvents calls each for every event of the stream that in has, and for every
// line that is none, and appends the lines to the log.
func readEvents(in io.Reader, log *runLog, each func(raw []byte, e *event, err error)) error {
	return readLines(in, func(raw []byte, whole bool) error {
		var e *event
		err := errors.New("cut short, or longer than 1 MiB")
		if whole {
			if e, err = parse(raw); err != nil {
				e = nil
			}
			log.add(raw, e)
		}
		each(raw, e, err)
		return nil
	})
}

// pass writes what in has to out, byte for byte and at once, but for the driver's own
// last line, and the events to the log.
func pass(in io.Reader, out io.Writer, log *runLog, finished func(*run) error) error {
	defer log.close()
	all := &runs{now: newRun(), ended: func(r *run) error {
		if err := finished(r); err != nil {
			complain(err)
		}
		return nil
	}}
	err := readLines(in, func(raw []byte, whole bool) error {
		if !bytes.HasPrefix(raw, []byte(`{"event":"run.ended"`)) {
			if _, err := out.Write(raw); err != nil {
				return err
			}
		}
		if !whole {
			return nil
		}
		e, err := parse(raw)
		if err != nil {
			e = nil
		}
		log.add(raw, e)
		if e == nil {
			return nil
		}
		return all.add(e)
	})
	all.end()
	return err
}

// readMessages reads the programs' messages out of path until it ends.
func (v *view) readMessages(path string) (done <-chan struct{}, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the messages: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer file.Close()
		readMessages(file, v.message)
	}()
	return ended, nil
}

// readMessages calls each for every line that r has, of a long one with its
// beginning.
func readMessages(r io.Reader, each func(string)) {
	begun := false // the line that is read has been shown
	readLines(r, func(raw []byte, whole bool) error {
		ends := bytes.HasSuffix(raw, []byte("\n"))
		if !begun {
			text := strings.TrimRight(string(raw[:min(len(raw), maxMessage)]), "\r\n")
			if len(raw) > maxMessage+1 {
				text += "…"
			}
			each(text)
		}
		begun = !ends
		return nil
	})
}

// showFile shows the last run of the file at path, the last whose round begins as
// one that is asked for, or all in a list. It returns the run that it has shown, nil with a list.
func showFile(c *cli.Context, path string, out *screen) (*run, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	round, list := c.String("run"), c.Bool("list")
	if info, err := file.Stat(); err == nil && info.Mode().IsRegular() && round == "" && !list {
		offset, err := lastRun(file, info.Size())
		if err != nil {
			return nil, err
		}
		if _, err := file.Seek(offset, io.SeekStart); err != nil {
			return nil, err
		}
	}
	var chosen *run
	s := summary{now: time.Now(), out: out}
	err = readRuns(file, func(r *run) error {
		s.run = r
		switch {
		case list:
			return out.print(s.listing())
		case round == "" || r.begin != nil && strings.HasPrefix(r.begin.Round, round):
			chosen = r
		}
		return nil
	})
	switch {
	case err != nil || list:
		return nil, err
	case chosen == nil && round != "":
		return nil, fmt.Errorf("%s: no run %s: see phoenix-view --list %s", path, round, path)
	case chosen == nil:
		return nil, fmt.Errorf("%s: no run", path)
	}
	s.run = chosen
	return chosen, out.print(s.whole()...)
}

// readRuns calls each with every run that r has.
func readRuns(r io.Reader, each func(*run) error) error {
	all := &runs{now: newRun(), ended: each}
	err := readLines(r, func(raw []byte, whole bool) error {
		e, err := parse(raw)
		if !whole || err != nil {
			return nil
		}
		return all.add(e)
	})
	if err != nil {
		return err
	}
	return all.end()
}
