// Package event is the stream that connects the programs of phx: one JSON
// object a line, UTF-8, at most [MaxLine] bytes, always ended by a newline.
// Every line has the fields "event" and "time"; a line about a container has
// "ctid".
//
// A filter forwards every line unchanged and at once, adds lines of its own,
// and holds back only "plan.done" until its own work is finished.
//
// The stream may come from a file that somebody has edited: the container ids
// of an event are checked before a program sees it.
package event

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tidwall/gjson"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
)

// MaxLine is the greatest length of a line in bytes, its newline included.
const MaxLine = 1 << 20

// The events that frame a plan.
const (
	PlanStarted = "plan.started"
	PlanDone    = "plan.done"
)

// ErrTruncated says that the stream ended without plan.done or in the middle
// of a line: a program before this one has died. Work in flight may be
// finished; nothing new may be started.
var ErrTruncated = errors.New("the event stream ended too early: a program before this one has failed")

// Event is a line of the stream.
type Event struct {
	Name string // the field "event"
	Line int    // the line's number in the stream, from 1
	Raw  []byte // the JSON object, without the newline
}

// Get returns the value at a gjson path of the event.
func (e Event) Get(path string) gjson.Result { return gjson.GetBytes(e.Raw, path) }

// CTID returns the field "ctid", a valid id, or 0 when the event has none, as
// one about a container always has.
func (e Event) CTID() int { return int(e.Get("ctid").Int()) }

// Stream is a filter's view of the events: what it reads, and what it writes.
type Stream struct {
	in   *bufio.Reader
	line int
	open bool // no plan.done since the start or since the last plan.started
	bad  func(error)

	piped bool // another program writes what is read

	mu  sync.Mutex
	out *bufio.Writer

	watch sync.Once // of the ctx that limits all writing
	limit *stoppable
}

// patience is how long a reader of the events may take to read the last ones
// after the program was told to end.
const patience = 5 * time.Second

// stoppable writes to w until it is stopped: a write that blocks fails then.
type stoppable struct {
	w        io.Writer
	patience time.Duration
	stopped  chan struct{}
}

var errNotRead = errors.New("they are not read, and the program was told to end")

func (s *stoppable) Write(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := s.w.Write(p)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case <-s.stopped: // p is not used again: the error stays in the buffer before this
		return 0, errNotRead
	}
}

// stopAfter stops s some time after ctx is done.
func (s *stoppable) stopAfter(ctx context.Context) {
	context.AfterFunc(ctx, func() {
		time.AfterFunc(s.patience, func() { close(s.stopped) })
	})
}

// NewStream returns a stream that reads events from in and writes them to
// out. Lines that are no events are neither returned nor forwarded; bad is
// told of each, with its number.
func NewStream(in io.Reader, out io.Writer, bad func(error)) *Stream {
	piped := true
	if f, ok := in.(*os.File); ok {
		info, err := f.Stat()
		piped = err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0
	}
	limit := &stoppable{out, patience, make(chan struct{})}
	return &Stream{
		in:    bufio.NewReaderSize(in, MaxLine),
		open:  true,
		piped: piped,
		bad:   bad,
		out:   bufio.NewWriterSize(limit, 64<<10),
		limit: limit,
	}
}

// Next forwards the lines of the stream, each byte for byte, until one comes
// whose event is plan.done or among names, and returns that one. Only
// plan.done is not forwarded: see [Stream.Forward]. An event whose container
// ids are none is forwarded, reported and not returned.
//
// The error is io.EOF when the stream ended as it should, [ErrTruncated] when
// it did not, a [cmdline.Status] when a pipe had no line at all, the cause of ctx
// when that is done, what is wrong with a plan.started, without which nothing
// of a plan may be done, or what reading or writing said; nothing can be read
// afterwards. The ctx of the first call limits all writing: what nobody reads
// fails some seconds after it is done.
func (s *Stream) Next(ctx context.Context, names ...string) (Event, error) {
	s.watch.Do(func() { s.limit.stopAfter(ctx) })
	type result struct {
		ev  Event
		err error
	}
	read := make(chan result, 1)
	go func() {
		ev, err := s.next(names)
		read <- result{ev, err}
	}()
	select {
	case <-ctx.Done():
		return Event{}, context.Cause(ctx)
	case r := <-read:
		return r.ev, r.err
	}
}

func (s *Stream) next(names []string) (Event, error) {
	for {
		line, err := s.readLine()
		if err != nil {
			if flushErr := s.flush(); flushErr != nil {
				err = flushErr
			}
			return Event{}, err
		}
		if line == nil {
			continue
		}
		name := gjson.GetBytes(line, "event").Str
		switch name {
		case PlanDone:
			s.open = false
			return Event{name, s.line, bytes.Clone(line[:len(line)-1])}, s.flush()
		case PlanStarted:
			s.open = true
		}
		if err := s.write(line); err != nil {
			return Event{}, err
		}
		if !slices.Contains(names, name) {
			continue
		}
		ev := Event{name, s.line, bytes.Clone(line[:len(line)-1])}
		if err := ev.check(); err != nil {
			err = fmt.Errorf("event stream: line %d: %s: %w", s.line, name, err)
			if name == PlanStarted {
				return Event{}, errors.Join(err, s.flush())
			}
			s.bad(err)
			continue
		}
		return ev, s.flush()
	}
}

// readLine returns the next line with its newline, or nil for one that is no
// event and was reported. The bytes are valid until the next call.
func (s *Stream) readLine() ([]byte, error) {
	// What was forwarded must not wait for a line that has not come yet.
	if buffered, _ := s.in.Peek(s.in.Buffered()); bytes.IndexByte(buffered, '\n') < 0 {
		if err := s.flush(); err != nil {
			return nil, err
		}
	}
	line, err := s.in.ReadSlice('\n')
	if len(line) > 0 || err == nil {
		s.line++
	}
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = s.in.ReadSlice('\n')
		}
		s.bad(fmt.Errorf("event stream: line %d: longer than %d bytes", s.line, MaxLine))
		if err == nil {
			return nil, nil
		}
		return nil, s.end(err)
	case err != nil:
		if len(line) > 0 {
			s.open = true
		}
		return nil, s.end(err)
	}
	if err := check(line); err != nil {
		s.bad(fmt.Errorf("event stream: line %d: %w", s.line, err))
		return nil, nil
	}
	return line, nil
}

// end returns what the end of the stream means. A pipe without any line is
// that of a phx-plan which has refused its configuration, and has said why.
func (s *Stream) end(err error) error {
	switch {
	case !errors.Is(err, io.EOF) || !s.open:
		return err
	case s.line == 0 && s.piped:
		return cmdline.Status(1)
	case s.line == 0:
		return errors.New("stdin is empty: expected the events of a plan, as in phx-plan | " + cmdline.Name())
	}
	return ErrTruncated
}

// check returns an error for a container id that is none.
func (e Event) check() error {
	const one, list = false, true
	var wrong error
	look := func(path string, isList bool) {
		v := e.Get(path)
		values := []gjson.Result{v}
		switch {
		case !v.Exists() || wrong != nil:
			return
		case isList && !v.IsArray():
			wrong = fmt.Errorf("%s: not a list of container ids", path)
			return
		case isList:
			values = v.Array()
		}
		for _, v := range values {
			if _, err := config.ParseCTID(v.Raw); v.Type != gjson.Number || err != nil {
				wrong = fmt.Errorf("%s: %.100s is not a container id: a number from 100 to 999999999", path, v.Raw)
				return
			}
		}
	}
	look("ctid", one)
	switch {
	case e.Name == PlanStarted:
		look("order", list)
		look("services.#.ctid", list)
		for _, place := range []string{"ca", "gateway", "proxy"} {
			look(place+".ctid", one)
		}
	case strings.HasPrefix(e.Name, "ct."):
		look("needs", list)
		look("external", list)
		if wrong == nil && e.CTID() == 0 {
			wrong = errors.New("ctid is missing")
		}
	}
	return wrong
}

func check(line []byte) error {
	switch {
	case !utf8.Valid(line):
		return errors.New("not UTF-8")
	case !gjson.ValidBytes(line):
		return errors.New("not JSON")
	case bytes.TrimLeft(line, " \t\r")[0] != '{':
		return errors.New("not a JSON object")
	}
	return nil
}

// Forward writes an event that [Stream.Next] has held back.
func (s *Stream) Forward(ev Event) error {
	if err := s.write(append(ev.Raw, '\n')); err != nil {
		return err
	}
	return s.flush()
}

// Emit writes an event of the program's own, whole and at once. A ctid of 0
// is left out. fields is a struct or map with the event's further fields, or
// nil. Emit may be called by several goroutines.
func (s *Stream) Emit(name string, ctid int, fields any) error {
	line, err := Marshal(name, ctid, fields)
	if err != nil {
		return err
	}
	if err := s.write(line); err != nil {
		return err
	}
	return s.flush()
}

// Marshal returns the line of an event, its newline included. It fails for
// one longer than [MaxLine]. What could act on a terminal is escaped, so that
// a line may be shown there as it is.
func Marshal(name string, ctid int, fields any) ([]byte, error) {
	line := append([]byte(`{"event":`), strconv.Quote(name)...)
	line = append(line, `,"time":"`...)
	line = time.Now().UTC().AppendFormat(line, "2006-01-02T15:04:05.000Z")
	line = append(line, '"')
	if ctid != 0 {
		line = append(line, `,"ctid":`...)
		line = strconv.AppendInt(line, int64(ctid), 10)
	}
	if fields != nil {
		var object bytes.Buffer
		enc := json.NewEncoder(&object)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(fields); err != nil {
			return nil, fmt.Errorf("event %s: %w", name, err)
		}
		inner := Escape(bytes.TrimSpace(object.Bytes()))
		inner = inner[1 : len(inner)-1]
		if len(inner) > 0 {
			line = append(append(line, ','), inner...)
		}
	}
	line = append(line, "}\n"...)
	if len(line) > MaxLine {
		return nil, fmt.Errorf("event %s of container %d: longer than %d bytes", name, ctid, MaxLine)
	}
	return line, nil
}

// Escape returns JSON with what is valid in it and could act on a terminal
// escaped: DEL, the control characters from U+0080 to U+009F, and those that
// turn the direction of text. They are only in strings.
func Escape(text []byte) []byte {
	if bytes.IndexByte(text, 0x7f) < 0 && bytes.IndexByte(text, 0xc2) < 0 && bytes.IndexByte(text, 0xd8) < 0 && bytes.IndexByte(text, 0xe2) < 0 {
		return text // the lead bytes of all that is looked for
	}
	var b []byte
	for rest := text; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r >= 0x7f && r <= 0x9f, r == 0x61c, r == 0x200e, r == 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = append(b, rest[:size]...)
		}
		rest = rest[size:]
	}
	return b
}

func (s *Stream) write(line []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.out.Write(line); err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	return nil
}

func (s *Stream) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	return nil
}
