package ca

import (
	"bufio"
	"bytes"
	"os"
	"strings"
	"testing"
)

// FuzzContainer: whatever the CA's container answers, it is believed only
// where it names paths, and what is shown of it cannot be taken for phx's own
// words.
func FuzzContainer(f *testing.F) {
	f.Add([]byte("ok own /home/step /home/step/config/ca.json no yes /home/step/certs/a.crt\nok QQ==\n"))
	f.Add([]byte("ok none - - no no\nok -\n"))
	f.Add([]byte("ok several /a /b:/c no no\nok\n"))
	f.Add([]byte("error \x1b]0;owned\x07\rhint: rm -rf /\nerror\n"))
	f.Add([]byte("ok lost /home/step /" + strings.Repeat("x", 2000) + " no no\nok !!!\n"))
	f.Add([]byte("ok own /home/step /x.\u2800Run: no no\n\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		in, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		c := &container{ctid: 103, in: in, out: bufio.NewReaderSize(bytes.NewReader(said), maxAnswer), ended: make(chan error, 1), stop: func(error) {}}
		c.ended <- os.ErrDeadlineExceeded // of pct

		shown := func(err error) {
			t.Helper()
			text := err.Error()
			if len(text) > 10000 || strings.ContainsAny(text, "\x00\x07\r\x1b\u009b\u202e") {
				t.Errorf("%d bytes, %q", len(text), short(text))
			}
			for _, line := range strings.Split(text, "\n")[1:] {
				if !strings.HasPrefix(line, "| ") {
					t.Errorf("the container speaks as phx: %q", line)
				}
			}
		}
		s, err := c.look()
		if err != nil {
			shown(err)
		} else {
			if len(s.intermediates) > maxIntermediates {
				t.Errorf("%d intermediates", len(s.intermediates))
			}
			for _, path := range append([]string{s.home, s.config}, s.intermediates...) {
				if s.kind != kindNone && !pathForm.MatchString(path) {
					t.Errorf("%q of a CA that is %s", path, s.kind)
				}
			}
		}
		data, err := c.read("/home/step/config/ca.json")
		if err != nil {
			shown(err)
		}
		if len(data) > maxAnswer {
			t.Errorf("a file of %d bytes", len(data))
		}
	})
}
