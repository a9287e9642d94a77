package cmdline

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
)

// stderrOf returns what f writes to stderr.
func stderrOf(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = w
	defer func() { os.Stderr = old }()
	f()
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// A message may hold what a container has said: nothing of it acts on the
// terminal, and none of it looks like another message.
func TestMessagesCannotActOnATerminal(t *testing.T) {
	defer func(args []string) { os.Args = args }(os.Args)
	os.Args = []string{"/x/phx"}
	for text, want := range map[string]string{
		"plain – ünïcode 漢字 🙂, \ttabs and '\\''":   "plain – ünïcode 漢字 🙂, \ttabs and '\\''",
		"\x1b[2J\x1b]52;c;cm0gLXJm\a":              `\x1b[2J\x1b]52;c;cm0gLXJm\x07`,
		"good\rphx: all well":                      `good\x0dphx: all well`,
		"\x00\x7f":                                 `\x00\x7f`,
		"C1: \u009b31m \u0085":                     `C1: \u009b31m \u0085`,
		"not UTF-8: \x9b31m \xff":                  `not UTF-8: \x9b31m \xff`,
		"bidi: \u202e \u2066 \u2069 \u200f \u061c": `bidi: \u202e \u2066 \u2069 \u200f \u061c`,
		"unseen: \u200b \ufeff \u2028 \U000e0041":  `unseen: \u200b \ufeff \u2028 \U000e0041`,
		"two\nlines\n":                             "two\nphx:   lines",
	} {
		if got := stderrOf(t, func() { Logf("%s", text) }); got != "phx: "+want+"\n" {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

func TestQuoted(t *testing.T) {
	const want = "| one\n| \n| hint: two"
	got := Quoted("one\n\nhint: two\n")
	if got != want || Quoted(got) != want {
		t.Errorf("%q, again %q", got, Quoted(got))
	}
}

func TestLongLineIsCut(t *testing.T) {
	var lines []string
	w := &LineWriter{Line: func(line string) { lines = append(lines, line) }}
	io.WriteString(w, "first\n\n  ")
	chunk := bytes.Repeat([]byte("x"), 1000)
	const chunks = 300_000 // 300 MB: copied again for each chunk, this would take hours
	for range chunks {
		w.Write(chunk)
	}
	io.WriteString(w, "\nlast")
	w.Close()
	if len(lines) != 3 || lines[0] != "first" || lines[2] != "last" {
		t.Fatalf("%d lines: %.100q", len(lines), lines)
	}
	if want := strings.Repeat("x", MaxLogLine-2) + "… (cut, 299991810 bytes more)"; lines[1] != want {
		t.Errorf("%d bytes, at the end %q", len(lines[1]), lines[1][len(lines[1])-50:])
	}
	if n := cap(w.buf); n > 2*MaxLogLine {
		t.Errorf("a buffer of %d bytes", n)
	}
}
