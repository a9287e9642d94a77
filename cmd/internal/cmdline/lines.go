package cmdline

import (
	"bytes"
	"strings"
	"sync"
)

// LineWriter passes what is written to it on, line by line and without blank
// lines. It may be written to by several goroutines.
type LineWriter struct {
	Line func(string)

	mu   sync.Mutex
	rest []byte
}

func (w *LineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte{'\n'})
		if !ok {
			return len(p), nil
		}
		w.pass(line)
		w.rest = rest
	}
}

// Close passes on a last line that had no end.
func (w *LineWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pass(w.rest)
	w.rest = nil
	return nil
}

func (w *LineWriter) pass(line []byte) {
	if text := strings.TrimSpace(string(line)); text != "" {
		w.Line(text)
	}
}
