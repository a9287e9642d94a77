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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tidwall/gjson"
	"thinkheads.ai/phx/cmd/internal/config"
)

// MaxLine is the greatest length of a line in bytes, its newline included.
const MaxLine = 1 << 20

// ErrTruncated is the error for a stream that ended without plan.done or in the
// middle of a line: an upstream program has failed. Work in flight may be
// finished; nothing new may be started.
var ErrTruncated = errors.New("the event stream ended too early: an upstream program has failed")

// ErrEmpty is the error for a pipe that ended without any line: phx-plan has
// refused its configuration, and has said why.
var ErrEmpty error = emptyError{}

type emptyError struct{}

func (emptyError) Error() string { return "the event stream is empty" }

// Reported reports that the user has been told of the reason already.
func (emptyError) Reported() bool { return true }

// Event is a line of the stream.
type Event struct {
	Name string // the field "event"
	Line int    // the line's number in the stream, from 1
	Raw  []byte // the JSON object, without the newline
	Body Body   // what the line says: a struct, not a pointer; nil where this package has none for the name
}

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
	wait  time.Duration // lastWords
}

// patience is how long a reader of the events may take to read each of the last
// ones after the program was told to end.
const patience = 5 * time.Second

// lastWords is how long the programs before this one may take to say their last
// words when it was told to end: phx-lxc waits 30 s for a task of Proxmox.
const lastWords = 45 * time.Second

// stoppable writes to w. Once told is closed, a write that blocks fails after
// some time.
type stoppable struct {
	w        io.Writer
	patience time.Duration
	told     chan struct{}
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
	case <-s.told:
	}
	select {
	case r := <-done:
		return r.n, r.err
	case <-time.After(s.patience): // p is not used again: the error stays in the buffer before this
		return 0, errNotRead
	}
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
		wait:  lastWords,
	}
}

// Next forwards the lines of the stream, each byte for byte, until one comes
// whose event is plan.done or among names, and returns that one. Only
// plan.done is not forwarded: see [Stream.Forward]. An event whose container
// ids are none, or whose fields have wrong types, is forwarded, reported and
// not returned.
//
// The error is io.EOF when the stream ended as it should, [ErrTruncated] when
// it did not, [ErrEmpty] when a pipe had no line at all, the cause of ctx
// when that is done, what is wrong with a plan.started, without which nothing
// of a plan may be done, or what reading or writing said; nothing can be read
// afterwards. When ctx is done, the programs before this one end, too: what
// they still say is forwarded first, but for a plan.done. The ctx of the first
// call limits all writing: what nobody reads fails then after some seconds.
func (s *Stream) Next(ctx context.Context, names ...string) (Event, error) {
	s.watch.Do(func() { context.AfterFunc(ctx, func() { close(s.limit.told) }) })
	type result struct {
		ev  Event
		err error
	}
	read := make(chan result, 1)
	next := func(names []string) {
		ev, err := s.next(names)
		read <- result{ev, err}
	}
	go next(names)
	select {
	case r := <-read:
		return r.ev, r.err
	case <-ctx.Done():
	}
	for enough := time.After(s.wait); ; {
		select {
		case r := <-read:
			if r.err != nil {
				return Event{}, context.Cause(ctx)
			}
			go next(nil)
		case <-enough:
			return Event{}, context.Cause(ctx)
		}
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
		case NamePlanDone:
			s.open = false
			return Event{Name: name, Line: s.line, Raw: bytes.Clone(line[:len(line)-1])}, s.flush()
		case NamePlanStarted:
			s.open = true
		}
		if err := s.write(line); err != nil {
			return Event{}, err
		}
		if !slices.Contains(names, name) {
			continue
		}
		ev, err := Parse(line[:len(line)-1])
		if err != nil {
			err = fmt.Errorf("event stream: line %d: %w", s.line, err)
			if name == NamePlanStarted {
				return Event{}, errors.Join(err, s.flush())
			}
			s.bad(err)
			continue
		}
		ev.Line = s.line
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
	if err := checkLine(line); err != nil {
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
		return ErrEmpty
	case s.line == 0:
		program := filepath.Base(os.Args[0])
		return errors.New("stdin is empty: expected the events of a plan, as in phx-plan | " + program)
	}
	return ErrTruncated
}

// checkLine returns an error for what is no JSON object.
func checkLine(line []byte) error {
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

// Emit writes an event of the program's own, whole and at once. It may be called
// by several goroutines.
func (s *Stream) Emit(body Body) error {
	line, err := Append(nil, body)
	if err != nil {
		return err
	}
	if err := s.write(line); err != nil {
		return err
	}
	return s.flush()
}

// Parse returns the event of a line, which must be a JSON object. Its Raw is a
// copy, and its Line 0.
func Parse(line []byte) (Event, error) {
	ev := Event{Name: gjson.GetBytes(line, "event").Str, Raw: bytes.Clone(line)}
	if ctid := gjson.GetBytes(line, "ctid"); ctid.Exists() {
		if _, err := config.ParseCTID(ctid.Raw); err != nil {
			return ev, fmt.Errorf("%s: %w", ev.Name, notCTID("ctid", ctid.Raw))
		}
	}
	decode := decoders[ev.Name]
	if decode == nil {
		return ev, nil
	}
	var err error
	if ev.Body, err = decode(ev.Raw); err != nil {
		err = fmt.Errorf("%s: %w", ev.Name, err)
	}
	return ev, err
}

// CTID returns the container that the event is about, 0 when it is about none.
func (e Event) CTID() int {
	if e.Body == nil {
		return 0
	}
	_, ctid := e.Body.about()
	return ctid
}

// Append appends the line of an event, its newline included, to buf. It fails
// for one longer than [MaxLine]. What could act on a terminal is escaped, so
// that a line may be shown there as it is. Of the long text of a warning or a stage
// the rest is left out, and that is said.
func Append(buf []byte, body Body) ([]byte, error) {
	name, ctid := body.about()
	// A plan may have a hundred thousand containers, and json.Marshal would read
	// all of their configurations three times.
	var object json.RawMessage
	switch b := body.(type) {
	case ContainerPlanned:
		object, b.Config = b.Config, nil
		body = b
	case Warning:
		b.Text = shorten(b.Text, maxText)
		body = b
	case ContainerStage:
		b.Stage = shorten(b.Stage, maxStage)
		body = b
	}
	var fields bytes.Buffer
	enc := json.NewEncoder(&fields)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		return nil, fmt.Errorf("event %s: %w", name, err)
	}
	fields.Truncate(fields.Len() - len("}\n"))

	line := slices.Grow(buf, 100+fields.Len()+len(object))
	line = strconv.AppendQuote(append(line, `{"event":`...), name)
	line = append(line, `,"time":"`...)
	line = time.Now().UTC().AppendFormat(line, "2006-01-02T15:04:05.000Z")
	line = append(line, '"')
	line = append(append(line, ','), Escape(fields.Bytes()[1:])...) // every body has a field
	if object != nil {
		line = append(line, `,"config":`...)
		start := len(line)
		line = appendCompact(line, object)
		line = append(line[:start], Escape(line[start:])...)
	}
	line = append(line, "}\n"...)
	if len(line)-len(buf) > MaxLine {
		return nil, fmt.Errorf("event %s of container %d: longer than %d bytes", name, ctid, MaxLine)
	}
	return line, nil
}

// How long the text of a warning, and a stage, may be in bytes.
const (
	maxText  = 8 << 10
	maxStage = 200
)

// shorten returns the beginning of text, and how much is left out.
func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const room = 32 // for what is said about it
	kept := strings.ToValidUTF8(text[:limit-room], "")
	return fmt.Sprintf("%s… (cut, %d bytes more)", kept, len(text)-len(kept))
}

// appendCompact appends valid JSON to line, without the blanks between its
// tokens.
func appendCompact(line, text []byte) []byte {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case ' ', '\t', '\n', '\r':
		case '"':
			start := i
			for i++; text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
			line = append(line, text[start:i+1]...)
		default:
			line = append(line, text[i])
		}
	}
	return line
}

// Escape returns JSON with what is valid in it and could act on a terminal
// escaped: DEL, the control characters from U+0080 to U+009F, and those that
// turn the direction of text. They are only in strings.
func Escape(text []byte) []byte {
	lead := func(b byte) bool { return bytes.IndexByte(text, b) >= 0 }
	if !lead(0x7f) && !lead(0xc2) && !lead(0xd8) && !lead(0xe2) { // of all that is looked for
		return text
	}
	var b []byte
	for rest := text; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r >= 0x7f && r <= 0x9f, unicode.Is(unicode.Bidi_Control, r):
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
