package event

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// drain runs a filter that knows "mine", and returns what it wrote, what it
// saw, what it complained about, and how the stream ended.
func drain(t *testing.T, in string) (out string, seen, bad []string, err error) {
	t.Helper()
	var b bytes.Buffer
	s := NewStream(strings.NewReader(in), &b, func(err error) { bad = append(bad, err.Error()) })
	for {
		ev, err := s.Next(context.Background(), "mine")
		if err != nil {
			return b.String(), seen, bad, err
		}
		seen = append(seen, fmt.Sprintf("%d:%s", ev.Line, ev.Name))
		if ev.Name == NamePlanDone {
			if err := s.Forward(ev); err != nil {
				t.Fatal(err)
			}
		}
	}
}

const done = `{"event":"plan.done","round":"1","count":0}` + "\n"

func TestForwardsForeignLinesByteForByte(t *testing.T) {
	in := `{"event":"plan.started"}` + "\n" +
		` { "event" : "foreign",  "n": 1.50, "s":"\u00e9é" }` + "\r\n" +
		`{"no":"event"}` + "\n" +
		`{"event":"mine","ctid":103}` + "\n" + done
	out, seen, bad, err := drain(t, in)
	if out != in {
		t.Errorf("wrote\n%s\nfor\n%s", out, in)
	}
	if got := strings.Join(seen, " "); got != "4:mine 5:plan.done" {
		t.Errorf("saw %s", got)
	}
	if len(bad) > 0 || err != io.EOF {
		t.Errorf("complained %q, ended with %v", bad, err)
	}
}

func TestBadLinesAreNamedAndNotForwarded(t *testing.T) {
	long := `{"event":"mine","s":"` + strings.Repeat("x", MaxLine) + `"}`
	for name, line := range map[string]string{
		"not JSON":               `{"event":"mine"`,
		"not JSON at all":        `pct: no such command`,
		"empty":                  ``,
		"not a JSON object":      `["mine"]`,
		"not UTF-8":              "{\"event\":\"mine\",\"s\":\"\xff\"}",
		"longer than 1048576":    long,
		"two objects in one not": `{"event":"mine"}{"event":"mine"}`,
	} {
		t.Run(name, func(t *testing.T) {
			out, seen, bad, err := drain(t, `{"event":"a"}`+"\n"+line+"\n"+done)
			if want := `{"event":"a"}` + "\n" + done; out != want {
				t.Errorf("wrote %.200q, want %q", out, want)
			}
			if got := strings.Join(seen, " "); got != "3:plan.done" {
				t.Errorf("saw %s", got)
			}
			if len(bad) != 1 || !strings.HasPrefix(bad[0], "event stream: line 2: ") {
				t.Errorf("complained %q", bad)
			}
			if err != io.EOF {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// A stream may come from a file that somebody has edited. What names a
// container that cannot be is forwarded as it is, and not acted upon.
func TestLyingContainerIDs(t *testing.T) {
	for _, line := range []string{
		`{"event":"ct.ready","ctid":"103"}`,
		`{"event":"ct.ready","ctid":"103; reboot"}`,
		`{"event":"ct.ready","ctid":103.5}`,
		`{"event":"ct.ready","ctid":1e2}`,
		`{"event":"ct.ready","ctid":-103}`,
		`{"event":"ct.ready","ctid":99}`,
		`{"event":"ct.ready","ctid":1000000000}`,
		`{"event":"ct.ready","ctid":18446744073709551719}`,
		`{"event":"ct.ready","ctid":[103]}`,
		`{"event":"ct.ready","ctid":null}`,
		`{"event":"ct.ready","ctid":true}`,
		`{"event":"ct.ready"}`,
		`{"event":"ct.planned","ctid":103,"needs":["900"]}`,
		`{"event":"ct.planned","ctid":103,"needs":900}`,
		`{"event":"ct.planned","ctid":103,"needs":[900,0]}`,
		`{"event":"ct.planned","ctid":103,"external":["x"]}`,
		`{"event":"ca.exported","ctid":0}`,
	} {
		t.Run(line, func(t *testing.T) {
			in := line + "\n" + `{"event":"ct.planned","ctid":104,"needs":[103,900],"external":[]}` + "\n" + done
			var b bytes.Buffer
			var bad []string
			s := NewStream(strings.NewReader(in), &b, func(err error) { bad = append(bad, err.Error()) })
			ev, err := s.Next(context.Background(), "ct.planned", "ct.ready", "ca.exported")
			if err != nil || ev.CTID() != 104 {
				t.Errorf("returned %s, %v", ev.Raw, err)
			}
			if len(bad) != 1 || !strings.HasPrefix(bad[0], "event stream: line 1: c") {
				t.Errorf("complained %q", bad)
			}
			if !strings.HasPrefix(in, b.String()) || !strings.HasPrefix(b.String(), line+"\n") {
				t.Errorf("forwarded %q", b.String())
			}
			// Whoever does not act on it has nothing to say.
			if out, seen, bad, err := drain(t, in); out != in || len(bad) > 0 || err != io.EOF || len(seen) != 1 {
				t.Errorf("a program that does not know it: saw %q, complained %q, ended with %v", seen, bad, err)
			}
		})
	}
}

// Without its frame nothing of a plan may be done: it says whether this is a
// dry run.
func TestLyingPlan(t *testing.T) {
	for _, plan := range []string{
		`"order":["900"]`, `"order":{"0":900}`, `"services":[{"ctid":103},{"ctid":"102"}]`, `"services":[{"ctid":7}]`,
		`"ca":{"ctid":"103","ip":"10.0.0.10"}`, `"proxy":{"ctid":1.5}`, `"gateway":{"ctid":-1}`, `"ctid":1`,
	} {
		line := `{"event":"plan.started","dry_run":true,` + plan + `}` + "\n"
		in := line + `{"event":"ct.planned","ctid":103}` + "\n" + done
		s := NewStream(strings.NewReader(in), io.Discard, func(err error) { t.Error(err) })
		ev, err := s.Next(context.Background(), NamePlanStarted, "ct.planned")
		if err == nil || !strings.HasPrefix(err.Error(), "event stream: line 1: plan.started: ") {
			t.Errorf("%s: returned %s, %v", plan, ev.Raw, err)
		}
	}
	good := `{"event":"plan.started","order":[900,103],"services":[{"ctid":103}],` +
		`"ca":{"ctid":103},"proxy":{"ctid":102}}` + "\n" + done
	s := NewStream(strings.NewReader(good), io.Discard, func(err error) { t.Error(err) })
	if ev, err := s.Next(context.Background(), NamePlanStarted); err != nil || ev.Name != NamePlanStarted {
		t.Errorf("returned %s, %v", ev.Raw, err)
	}
}

// An event may carry what a container has said, and be shown on a terminal.
func TestEventsCannotActOnATerminal(t *testing.T) {
	said := "\x1b[2J \x7f \u009b31m \u0080 \u061c \u200e \u202e \u2066 \u2069 é © – 漢 🙂 \\u009b"
	line, err := Append(nil, ContainerStatus{CTID: 101, Applied: map[string]string{"said\u202e": said}})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range string(bytes.TrimSpace(line)) {
		if r < ' ' || r >= 0x7f && r <= 0x9f || unicode.Is(unicode.Bidi_Control, r) {
			t.Errorf("%q stands in %s", r, line)
		}
	}
	var back ContainerStatus
	if err := json.Unmarshal(line, &back); err != nil || back.Applied["said\u202e"] != said {
		t.Errorf("%q, %v, for %q", back.Applied["said\u202e"], err, said)
	}
	if !strings.Contains(string(line), "é © – 漢 🙂") {
		t.Errorf("what is printable is not: %s", line)
	}
}

func TestStreamThatBreaksOff(t *testing.T) {
	for name, in := range map[string]string{
		"no plan.done":          `{"event":"plan.started"}` + "\n",
		"in a line":             done + `{"event":"mine"`,
		"in a line of a plan":   `{"event":"plan.started"}` + "\n" + `{"event":"mi`,
		"in a second round":     done + `{"event":"plan.started"}` + "\n",
		"plan.done without \\n": `{"event":"plan.done"}`,
	} {
		t.Run(name, func(t *testing.T) {
			out, _, _, err := drain(t, in)
			if !errors.Is(err, ErrTruncated) {
				t.Errorf("ended with %v", err)
			}
			if strings.Contains(out, `"mi`) || strings.HasSuffix(out, "}") {
				t.Errorf("forwarded a part of a line: %q", out)
			}
		})
	}
}

// phx-plan has said what is wrong: its successors end with 1, and quietly.
func TestEmptyStream(t *testing.T) {
	_, _, bad, err := drain(t, "")
	if err != ErrEmpty || len(bad) > 0 {
		t.Errorf("ended with %v, complained %q", err, bad)
	}
}

// A filter's work must not hold up the lines of others, and a line must not
// wait in a buffer for the next one.
func TestForwardsAtOnce(t *testing.T) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	s := NewStream(inR, outW, func(error) {})
	go func() {
		for {
			if _, err := s.Next(context.Background()); err != nil {
				outW.Close()
				return
			}
		}
	}()
	for i := range 3 {
		line := fmt.Sprintf(`{"event":"foreign","n":%d}`+"\n", i)
		if _, err := io.WriteString(inW, line+`{"event":"half`); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(line))
		if _, err := io.ReadFull(outR, got); err != nil || string(got) != line {
			t.Fatalf("read %q, %v", got, err)
		}
		io.WriteString(inW, `"}`+"\n")
		io.ReadFull(outR, make([]byte, len(`{"event":"half"}`+"\n")))
	}
	inW.Close()
}

func TestNextEndsWithItsContext(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	cause := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	s := NewStream(r, io.Discard, nil)
	s.wait = time.Millisecond
	if _, err := s.Next(ctx); err != cause {
		t.Errorf("ended with %v", err)
	}
}

// What the programs before this one say last is passed on, but that the plan is
// done, which this one has not brought to its end.
func TestNextPassesOnTheLastWords(t *testing.T) {
	r, w := io.Pipe()
	cause := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	var out bytes.Buffer
	last := `{"event":"ct.failed","ctid":101}` + "\n"
	go func() {
		io.WriteString(w, last+last)
		io.WriteString(w, done+last)
		w.Close()
	}()
	_, err := NewStream(r, &out, nil).Next(ctx, NameContainerFailed)
	if err != cause || out.String() != last+last+last {
		t.Errorf("%v, passed on %q", err, out.String())
	}
}

// Nobody reads the events, and the program is told to end: no write may keep
// it, neither one that blocks already nor one that comes later.
func TestWritesEndAfterTheContext(t *testing.T) {
	r, w := io.Pipe()
	defer r.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s := NewStream(strings.NewReader(done), w, nil)
	s.limit.patience = time.Millisecond
	ev, err := s.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	go func() { errs <- s.Emit(PlanDone{}) }()
	r.Read(make([]byte, 1)) // the write has begun
	cancel(errors.New("stopped"))
	if err := <-errs; !errors.Is(err, errNotRead) {
		t.Errorf("a blocked write: %v", err)
	}
	if err := s.Forward(ev); !errors.Is(err, errNotRead) {
		t.Errorf("a later write: %v", err)
	}
}

// After the context is done, the last events still reach whoever reads.
func TestLastEventsAfterTheContext(t *testing.T) {
	var b bytes.Buffer
	s := NewStream(strings.NewReader(done), &b, nil)
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := s.Next(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := s.Emit(ContainerFailed{CTID: 101}); err != nil || !strings.Contains(b.String(), "ct.failed") {
		t.Errorf("wrote %q, %v", b.String(), err)
	}
}

// Whatever comes, each line that can be an event is forwarded as it is, in
// order, and no other; only a plan.done is held back.
func FuzzStream(f *testing.F) {
	f.Add([]byte(done))
	f.Add([]byte(`{"event":"mine"}` + "\r\n\x00\n" + `{"event":"plan.done"}` + "\n" + `{"event`))
	f.Add([]byte(`{"event":"plan.started","order":[1]}` + "\n" + done))
	f.Add([]byte("\n\n[]\n{}\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var b bytes.Buffer
		bad := 0
		s := NewStream(bytes.NewReader(in), &b, func(error) { bad++ })
		emitted := 0
		var err error
		for err == nil {
			var ev Event
			if ev, err = s.Next(context.Background(), "mine", NamePlanStarted); err != nil {
				break
			}
			if ev.Name == NamePlanDone {
				err = s.Forward(ev)
			} else if err = s.Emit(CAFingerprint{Path: "own"}); err == nil {
				emitted++
			}
		}
		var want []string
		for line := range strings.Lines(string(in)) {
			if strings.HasSuffix(line, "\n") && len(line) <= MaxLine && checkLine([]byte(line)) == nil {
				want = append(want, line)
			}
		}
		var got []string
		for line := range strings.Lines(b.String()) {
			switch {
			case !strings.HasSuffix(line, "\n") || !gjson.Valid(line):
				t.Fatalf("wrote %q", line)
			case strings.Contains(line, `"path":"own"`) && emitted > 0:
				emitted--
			default:
				got = append(got, line)
			}
		}
		// Only a plan that names no containers ends the stream early.
		if !(err == io.EOF || errors.Is(err, ErrTruncated) || len(in) == 0) {
			if !strings.Contains(err.Error(), NamePlanStarted) || len(got) > len(want) {
				t.Fatalf("ended with %v", err)
			}
			want = want[:len(got)]
		}
		if strings.Join(got, "") != strings.Join(want, "") {
			t.Errorf("%q:\nwrote %q,\nwant  %q", in, got, want)
		}
	})
}

func TestReaderOfOutputGone(t *testing.T) {
	r, w := io.Pipe()
	r.CloseWithError(errors.New("broken pipe"))
	s := NewStream(strings.NewReader(done), w, func(error) {})
	ev, err := s.Next(context.Background())
	if err == nil {
		err = s.Forward(ev)
	}
	if err == nil || !strings.Contains(err.Error(), "write events: broken pipe") {
		t.Errorf("got %v", err)
	}
}

func TestEmit(t *testing.T) {
	var b bytes.Buffer
	s := NewStream(strings.NewReader(""), &b, nil)
	if err := s.Emit(ContainerReady{CTID: 103, Name: "<a & b>\n", Changes: []string{}}); err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSuffix(b.String(), "\n")
	if !strings.HasPrefix(line, `{"event":"ct.ready","time":"`) ||
		!strings.Contains(line, `,"ctid":103,"name":"<a & b>\n","ip":"","changed":false,"changes":[],`) {
		t.Errorf("wrote %s", line)
	}
	stamp := gjson.Get(line, "time").Str
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", stamp); err != nil {
		t.Errorf("time %q", stamp)
	}
	b.Reset()
	if err := s.Emit(PlanDone{}); err != nil {
		t.Fatal(err)
	}
	if !gjson.Valid(b.String()) || strings.Contains(b.String(), "ctid") {
		t.Errorf("wrote %s", b.String())
	}
	if err := s.Emit(ContainerReady{CTID: 101, Name: strings.Repeat("x", MaxLine)}); err == nil {
		t.Error("a line longer than MaxLine was written")
	}
}

func TestEmitWritesWholeLines(t *testing.T) {
	var b bytes.Buffer
	s := NewStream(strings.NewReader(""), &b, nil)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				s.Emit(ContainerReady{CTID: 100 + i, Name: strings.Repeat("y", i*1000)})
			}
		})
	}
	wg.Wait()
	n := 0
	for line := range strings.Lines(b.String()) {
		n++
		if !gjson.Valid(line) {
			t.Fatalf("not JSON: %.80q", line)
		}
	}
	if n != 800 {
		t.Errorf("%d lines", n)
	}
}

func BenchmarkForeignLines(b *testing.B) {
	line := []byte(`{"event":"somebody.elses","time":"2026-01-02T03:04:05.678Z","ctid":4711,` +
		`"name":"Some-Container","text":"of the usual length"}` + "\n")
	in := io.MultiReader(&repeated{line, b.N}, strings.NewReader(done))
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	s := NewStream(in, io.Discard, func(err error) { b.Fatal(err) })
	if _, err := s.Next(context.Background(), "ct.ready"); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}

// repeated reads as a line n times.
type repeated struct {
	line []byte
	n    int
}

func (r *repeated) Read(p []byte) (int, error) {
	read := 0
	for r.n > 0 && len(p)-read >= len(r.line) {
		read += copy(p[read:], r.line)
		r.n--
	}
	if read == 0 {
		return 0, io.EOF
	}
	return read, nil
}

func TestCompact(t *testing.T) {
	const text = "{ \"a b\" :\t[ 1, \"\\\" {\", \"\\\\\" ] ,\r\n \"\": { } }"
	if got, want := string(appendCompact(nil, []byte(text))), `{"a b":[1,"\" {","\\"],"":{}}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A warning and a stage never stop a run, however long what they tell of is.
func TestLongTextIsCut(t *testing.T) {
	for _, char := range []string{"x", "é", "\u009b", "\x00"} {
		long := strings.Repeat(char, MaxLine)
		for _, body := range []Body{Warning{Program: "p", Text: long}, ContainerStage{CTID: 100, Stage: long}} {
			line, err := Append(nil, body)
			if err != nil || len(line) > 64<<10 || !utf8.Valid(line) ||
				!strings.Contains(string(line), " bytes more)") {
				t.Errorf("%q: %T: %d bytes, %v", char, body, len(line), err)
			}
		}
	}
	line, err := Append(nil, Warning{Program: "p", Text: strings.Repeat("x", maxText)})
	if err != nil || strings.Contains(string(line), "cut") {
		t.Errorf("%d bytes, %v", len(line), err)
	}
}
