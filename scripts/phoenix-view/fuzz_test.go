package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzEvents: whatever a stream says, it is shown without acting on the terminal, makes
// a page that is whole, and metrics that are read again as they were written.
func FuzzEvents(f *testing.F) {
	for _, s := range pages() {
		if s.out.Len() < 16<<10 {
			f.Add(s.out.Bytes(), false)
		}
	}
	f.Add([]byte(strings.Join(plan("check", "", 900, 103), "\n")), true)
	f.Add([]byte(strings.Join(plan("status", `,"dry_run":true`, 900, 103), "\n")), true)
	f.Fuzz(func(t *testing.T, stream []byte, redrawn bool) {
		path := filepath.Join(t.TempDir(), "shown")
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		out := &screen{out: file}
		if redrawn {
			out.columns, out.rows = 60, 10
		}
		v := viewAt(false, true, out)
		v.finished = func(r *run) error {
			if page, err := makePage(r); err != nil || !bytes.HasSuffix(page, []byte("</html>\n")) ||
				bytes.Contains(page, []byte("ZgotmplZ")) {
				t.Errorf("the page: %v", err)
			}
			now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
			text := formatMetrics(mergeMetrics(nil, r, now))
			if again := formatMetrics(parseMetrics(text)); !bytes.Equal(text, again) {
				t.Errorf("the metrics are\n%s\nand after reading them\n%s", text, again)
			}
			out.print((&summary{run: r, last: r, now: now, out: out}).whole()...)
			return nil
		}
		if err := readEvents(bytes.NewReader(stream), nil, v.event); err != nil {
			t.Fatal(err)
		}
		readMessages(bytes.NewReader(stream), v.message)
		v.close()
		shown, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range string(own.ReplaceAll(shown, nil)) {
			if hidden(r) && r != '\n' && r != '\r' {
				t.Fatalf("%q is written: %q", r, shown)
			}
		}
	})
}
