package cmdline

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

var sayMu sync.Mutex

// Logf writes one message for people to stderr, prefixed by the program's
// name. Every line of a message of several lines carries the prefix.
func Logf(format string, args ...any) {
	msg := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	Say(Name() + ": " + strings.ReplaceAll(msg, "\n", "\n"+Name()+":   "))
}

// Print writes a result to stdout.
func Print(text string) error {
	if _, err := os.Stdout.WriteString(text); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// result writes to stdout and keeps the first error: whoever prints help does
// not look at it.
type result struct{ err error }

func (r *result) Write(p []byte) (int, error) {
	if r.err == nil {
		r.err = Print(string(p))
	}
	return len(p), nil
}

// Say writes text to stderr as it is, but escaped, and ends it with a newline.
func Say(text string) {
	text = Escape(text) + "\n"
	sayMu.Lock()
	defer sayMu.Unlock()
	os.Stderr.WriteString(text)
}

// Escape returns text with everything that could act on a terminal, or hide
// or reorder what stands beside it, in the form of a Go string: \x1b, \u202e.
// Only newlines and tabs stay.
func Escape(text string) string {
	if strings.IndexFunc(text, hidden) < 0 {
		return text
	}
	var b strings.Builder
	for rest := text; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		switch {
		case r == utf8.RuneError && size == 1, r < utf8.RuneSelf && hidden(r):
			fmt.Fprintf(&b, `\x%02x`, rest[0])
		case !hidden(r):
			b.WriteString(rest[:size])
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		rest = rest[size:]
	}
	return b.String()
}

// OneLine returns text that comes from elsewhere, such as what a peer on the network
// has said, escaped and in one line. Of a long one the rest is left out, and that is
// said.
func OneLine(text string) string {
	const limit = 1 << 10
	more := ""
	if cut := len(text) - limit; cut > 0 {
		text, more = text[:limit], fmt.Sprintf("… (cut, %d bytes more)", cut)
	}
	return strings.ReplaceAll(Escape(text), "\n", `\n`) + more
}

// hidden reports whether r is not to be written as it is. An invalid byte,
// which reads as U+FFFD, may be one.
func hidden(r rune) bool {
	return r == utf8.RuneError || !strconv.IsPrint(r) && r != '\n' && r != '\t'
}

// Quoted returns the words of somebody else, such as a container, so that they
// cannot be taken for those of phx: each line stands behind "| ", once.
func Quoted(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines {
		lines[i] = quote + strings.TrimPrefix(line, quote)
	}
	return strings.Join(lines, "\n")
}

const quote = "| "

// MaxLogLine is how much of a line a [LineWriter] passes on, in bytes.
const MaxLogLine = 8 << 10

// LineWriter passes what is written to it on, line by line and without blank
// lines. Of a line longer than [MaxLogLine] the rest is left out, and that is
// said. It may be written to by several goroutines.
type LineWriter struct {
	Line func(string)

	mu  sync.Mutex
	buf []byte // the line that has not ended, as far as it is passed on
	cut int    // how many bytes of it are left out
}

func (w *LineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte{'\n'})
		fits := line[:min(len(line), MaxLogLine-len(w.buf))]
		w.buf = append(w.buf, fits...)
		w.cut += len(line) - len(fits)
		if ended {
			w.pass()
		}
		rest = after
	}
	return len(p), nil
}

// Close passes on a last line that had no end.
func (w *LineWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pass()
	return nil
}

func (w *LineWriter) pass() {
	text := strings.TrimSpace(string(w.buf))
	if w.cut > 0 {
		text = fmt.Sprintf("%s… (cut, %d bytes more)", text, w.cut)
	}
	if text != "" {
		w.Line(text)
	}
	w.buf, w.cut = w.buf[:0], 0
}
