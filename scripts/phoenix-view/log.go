package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLine is the greatest length of a line of the stream in bytes, its newline
// included; see docs/events.md.
const maxLine = 1 << 20

// maxHeld is how many bytes are kept until it is known whether they belong into
// the log.
const maxHeld = 4 << 20

// A runLog is the file to which the events of runs are appended that may change
// something. What goes wrong is told once, and ends nothing.
type runLog struct {
	path string
	bad  func(error)

	file   *os.File
	closed bool   // nothing is written any more
	wanted bool   // the run that is read belongs into it
	held   []byte // lines that came before the first plan.started
	begun  bool   // a plan.started has come
}

// open opens the log for appending, and makes it and its directory where they are
// not there.
func (l *runLog) open() error {
	if err := os.MkdirAll(filepath.Dir(l.path), 0o750); err != nil {
		return err
	}
	// Nobody may read the other end of a pipe.
	const flags = os.O_RDWR | os.O_CREATE | os.O_APPEND | unix.O_NONBLOCK
	file, err := os.OpenFile(l.path, flags|unix.O_NOFOLLOW, 0o640)
	if errors.Is(err, unix.ELOOP) {
		if link, err := os.Lstat(l.path); err != nil || !isOurs(link) {
			return fmt.Errorf("%s: a symbolic link of somebody else: name a file in a directory of your own", l.path)
		}
		file, err = os.OpenFile(l.path, flags, 0o640)
	}
	if err != nil {
		return err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s: not a file", l.path)
	case !isOurs(info):
		err = fmt.Errorf("%s: belongs to somebody else: name a file in a directory of your own", l.path)
	}
	// A line that was cut short by a full disk or a loss of power stays alone.
	if err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err = file.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			_, err = file.Write([]byte{'\n'})
		}
	}
	if err != nil {
		file.Close()
		return err
	}
	l.file = file
	return nil
}

// isOurs reports whether a file belongs to who runs this, or to root.
func isOurs(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && (stat.Uid == 0 || int(stat.Uid) == os.Geteuid())
}

// checkReplaceable returns an error unless there is nothing at path but a file, which
// may be replaced: a device or a link would be no more.
func checkReplaceable(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && !info.Mode().IsRegular():
		return errors.New("it is not a file: name another one")
	}
	return err
}

// add appends a line of the stream, its newline included; e is what it says, nil
// where it is no event.
func (l *runLog) add(raw []byte, e *event) {
	if l == nil || l.closed {
		return
	}
	if e != nil && e.Event == "plan.started" {
		l.begun, l.wanted = true, !e.DryRun && e.Action != "status" && e.Action != "check"
		if l.wanted {
			l.write(l.held)
		}
		l.held = nil
	}
	switch {
	case l.wanted:
		l.write(raw)
	case !l.begun && len(l.held) < maxHeld:
		l.held = append(l.held, raw...)
	}
}

func (l *runLog) write(lines []byte) {
	if len(lines) == 0 || l.closed {
		return
	}
	err := error(nil)
	if l.file == nil {
		err = l.open()
	}
	if err == nil {
		_, err = l.file.Write(lines)
	}
	if err != nil {
		l.closed = true
		l.bad(fmt.Errorf("the log: %w: the events of this run are not all in it", err))
	}
}

func (l *runLog) close() {
	if l == nil || l.file == nil {
		return
	}
	if err := l.file.Close(); err != nil && !l.closed {
		l.bad(fmt.Errorf("the log: %w", err))
	}
	l.closed = true
}

// readLines calls each for every line that r has, its newline included. Of a line
// longer than maxLine it calls each with its parts, and whole is false; so it is for
// a last one that has no newline. It stops at the first error of each.
func readLines(r io.Reader, each func(raw []byte, whole bool) error) error {
	in := bufio.NewReaderSize(r, maxLine)
	broken := false
	for {
		raw, err := in.ReadSlice('\n')
		if len(raw) > 0 {
			whole := !broken && err == nil
			broken = err != nil
			if err := each(raw, whole); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// Programs of phx write the name of an event first.
var (
	start = []byte(`{"event":"plan.started"`)
	early = []byte(`{"event":"warning"`) // of phx-plan, before the plan
)

// withWarnings returns where the warnings begin that stand immediately before an
// offset of a log, as far as they are not very many.
func withWarnings(file io.ReaderAt, offset int64) (int64, error) {
	buf := make([]byte, min(offset, 256<<10))
	if _, err := file.ReadAt(buf, offset-int64(len(buf))); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	for len(buf) > 0 {
		i := bytes.LastIndexByte(buf[:len(buf)-1], '\n') + 1
		if !bytes.HasPrefix(buf[i:], early) {
			break
		}
		offset -= int64(len(buf) - i)
		buf = buf[:i]
	}
	return offset, nil
}

// lastRun returns where the last run of a log begins, 0 where none is found.
func lastRun(file io.ReaderAt, size int64) (int64, error) {
	const step = 1 << 20
	buf := make([]byte, step+len(start)+1)
	for end := size; end > 0; end -= step {
		from := max(0, end-step)
		n, err := file.ReadAt(buf[:min(int64(len(buf)), size-from)], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for part := buf[:n]; ; {
			i := bytes.LastIndex(part, start)
			if i < 0 {
				break
			}
			if i > 0 && part[i-1] == '\n' || from+int64(i) == 0 {
				return withWarnings(file, from+int64(i))
			}
			part = part[:i]
		}
	}
	return 0, nil
}

// readLast returns the last run of the log at path, nil where there is none.
func readLast(path string) (*run, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe may have no writer
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	offset, err := lastRun(file, info.Size())
	if err != nil {
		return nil, err
	}
	var last *run
	err = readRuns(io.NewSectionReader(file, offset, info.Size()-offset), func(r *run) error {
		if r.begin != nil {
			last = r
		}
		return nil
	})
	return last, err
}
