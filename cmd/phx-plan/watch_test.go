package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"thinkheads.ai/phx/cmd/internal/event"
)

// A watched is a watch in a synctest bubble, whose files, driver and service
// manager are the test's.
type watched struct {
	*watch
	t     *testing.T
	files snapshot
	polls bool
	hint  chan struct{}
	says  chan string // to stdin
	due   chan event.PlanDue
	mu    sync.Mutex
	told  []string // to the service manager
	ended chan error
	stop  context.CancelFunc
}

func newWatched(t *testing.T) *watched {
	w := &watched{
		t: t, files: snapshot{"/config": "1", "/ca": "1"}, hint: make(chan struct{}, 1), says: make(chan string),
		due: make(chan event.PlanDue, 1), ended: make(chan error, 1),
	}
	w.watch = &watch{
		look:  func() (snapshot, bool) { return maps.Clone(w.files), w.polls },
		hints: w.hint, lines: w.says, every: time.Hour,
		emit: func(due event.PlanDue) error { w.due <- due; return nil },
		notify: func(state string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, state)
		},
	}
	return w
}

// start starts the watch and returns after its first event.
func (w *watched) start() {
	ctx, stop := context.WithCancel(w.t.Context())
	w.stop = stop
	go func() { w.ended <- w.run(ctx) }()
	w.wants(event.DueStart, 0)
	synctest.Wait()
}

// end ends the watch.
func (w *watched) end() {
	w.stop()
	if err := <-w.ended; !errors.Is(err, context.Canceled) {
		w.t.Errorf("ended with %v", err)
	}
}

// change gives a file other content.
func (w *watched) change(path string) {
	synctest.Wait()
	w.files[path] += "x"
	select {
	case w.hint <- struct{}{}:
	default:
	}
	synctest.Wait()
}

// wants waits for an event, and checks how long that takes.
func (w *watched) wants(reason string, after time.Duration, paths ...string) {
	w.t.Helper()
	begun := time.Now()
	due := <-w.due
	if due.Reason != reason || !slices.Equal(due.Paths, paths) || time.Since(begun) != after {
		w.t.Errorf("%v after %v, want %s %q after %v", due, time.Since(begun), reason, paths, after)
	}
}

// runs does a run, in which f is done.
func (w *watched) runs(status string, f func()) {
	w.says <- "taken"
	synctest.Wait()
	if f != nil {
		f()
	}
	w.says <- status
	synctest.Wait()
}

func TestWatchIsDue(t *testing.T) {
	for name, test := range map[string]func(w *watched){
		"every hour": func(w *watched) {
			w.runs("0", nil)
			w.wants(event.DueEvery, time.Hour)
			w.runs("1", nil) // a failed one is not repeated sooner
			w.wants(event.DueEvery, time.Hour)
		},
		"a change, when it has settled": func(w *watched) {
			w.runs("0", nil)
			w.change("/config")
			time.Sleep(1900 * time.Millisecond)
			w.change("/config")
			w.wants(event.DueChange, settled, "/config")
		},
		"a change that never settles": func(w *watched) {
			w.runs("0", nil)
			begun := time.Now()
			for len(w.due) == 0 {
				w.change("/config")
				time.Sleep(time.Second)
			}
			if took := time.Since(begun); took < unsettled || took > unsettled+time.Second {
				w.t.Errorf("due after %v", took)
			}
			w.wants(event.DueChange, 0, "/config")
		},
		"touched, or changed back": func(w *watched) {
			w.runs("0", nil)
			w.hint <- struct{}{}
			time.Sleep(time.Minute)
			before := w.files["/config"]
			w.change("/config")
			time.Sleep(time.Second)
			synctest.Wait()
			w.files["/config"] = before
			w.wants(event.DueEvery, time.Hour-time.Minute-time.Second)
		},
		"many changes during a run: one more": func(w *watched) {
			w.runs("0", func() {
				for range 5 {
					w.change("/config")
					time.Sleep(5 * time.Second)
				}
			})
			w.wants(event.DueChange, settled, "/config")
			w.runs("0", nil)
			w.wants(event.DueEvery, time.Hour)
		},
		"what a run writes itself: one more": func(w *watched) {
			w.runs("0", func() { w.change("/ca") })
			w.wants(event.DueChange, settled, "/ca")
			w.runs("0", nil)
			w.wants(event.DueEvery, time.Hour)
		},
		"runs that change their own configuration: ever later": func(w *watched) {
			w.runs("0", func() { w.change("/config") })
			for _, after := range []time.Duration{2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600} {
				w.wants(event.DueChange, after*time.Second, "/config")
				w.runs("0", func() { w.change("/config") })
			}
			w.wants(event.DueChange, time.Hour, "/config")
			w.runs("0", nil)
			w.wants(event.DueEvery, time.Hour)
		},
		"another run at work: again, with what has changed meanwhile": func(w *watched) {
			w.runs("0", nil)
			w.change("/config")
			w.wants(event.DueChange, settled, "/config")
			w.runs("75", nil)
			w.wants(event.DueChange, lockRetry, "/config")
			w.runs("75", func() { w.change("/ca") })
			w.wants(event.DueChange, lockRetry, "/config")
			w.runs("0", nil)
			w.wants(event.DueChange, settled, "/ca")
			w.runs("0", nil)
			w.wants(event.DueEvery, time.Hour)
		},
		"files that have to be looked at": func(w *watched) {
			w.polls = true
			w.runs("0", nil)
			synctest.Wait()
			w.files["/config"] = "2"
			w.wants(event.DueChange, pollEvery+settled, "/config")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWatched(t)
				w.start()
				test(w)
				w.end()
			})
		})
	}
}

// The service manager hears of a driver that hangs: it is told no more that all is
// well, and kills the service.
func TestWatchdogOfADriverThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t)
		w.ping = 10 * time.Second
		pings := func(d time.Duration) (n int) {
			w.mu.Lock()
			w.told = nil
			w.mu.Unlock()
			time.Sleep(d)
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, state := range w.told {
				if state == "WATCHDOG=1" {
					n++
				}
			}
			return n
		}
		w.start()
		if w.told[0] != "READY=1" || !strings.HasPrefix(w.told[1], "STATUS=A run is under way: start") {
			t.Errorf("%q", w.told)
		}
		if n := pings(takenAfter + time.Second); n < 5 {
			t.Errorf("%d pings while the plan may yet be taken", n)
		}
		if n := pings(time.Hour); n != 0 {
			t.Errorf("%d pings though nobody takes the plan", n)
		}
		w.says <- "taken"
		if n := pings(runAtMost + time.Second); n < 8000 {
			t.Errorf("%d pings while a run may be under way", n)
		}
		if n := pings(time.Hour); n != 0 {
			t.Errorf("%d pings though the run never ends", n)
		}
		w.says <- "1"
		if n := pings(59 * time.Minute); n < 350 {
			t.Errorf("%d pings while there is nothing to do", n)
		}
		w.end()
	})
}

func TestWatchEndsWithItsDriver(t *testing.T) {
	for _, taken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWatched(t)
			w.start()
			if taken {
				w.runs("0", nil)
			}
			close(w.says)
			if err := <-w.ended; err != errNoDriver {
				t.Errorf("%v", err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t)
		w.start()
		w.runs("0", nil)
		w.says <- "0"
		if err := <-w.ended; err == nil {
			t.Error("a status without a run is no mistake")
		}
	})
}

// What may happen to a file is seen, however it is replaced: it gives a hint, and
// the next look finds other content.
func TestWatchedFileIsReplaced(t *testing.T) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	write := func(path, text string) { must(os.WriteFile(path, []byte(text), 0o644)) }
	for name, test := range map[string]struct {
		path   string
		make   func()
		change []func()
	}{
		"in place": {"f", func() { write("f", "1") }, []func(){func() { write("f", "2") }}},
		"by a rename over it": {"f", func() { write("f", "1") }, []func(){
			func() { write("new", "2"); must(os.Rename("new", "f")) },
			func() { write("new", "3"); must(os.Rename("new", "f")) },
		}},
		"by an editor that keeps a backup": {"f", func() { write("f", "1") }, []func(){
			func() { must(os.Rename("f", "f~")); write("f", "2") },
		}},
		"it vanishes, and comes back": {"f", func() { write("f", "1") }, []func(){
			func() { must(os.Remove("f")) }, func() { write("f", "2") },
		}},
		"it is made, with its directories": {"a/b/f", func() {}, []func(){
			func() { must(os.MkdirAll("a/b", 0o755)); write("a/b/f", "1") },
			func() { write("a/b/f", "2") },
		}},
		"its directory is replaced": {"a/f", func() { must(os.Mkdir("a", 0o755)); write("a/f", "1") }, []func(){
			func() {
				must(os.Mkdir("b", 0o755))
				write("b/f", "2")
				must(os.Rename("a", "old"))
				must(os.Rename("b", "a"))
			},
			func() { write("a/f", "3") },
			func() { must(os.Rename("a", "b")); must(os.Rename("old", "a")) },
			func() { write("a/f", "4") },
		}},
		"a link to it is turned": {"f", func() { write("1", "1"); must(os.Symlink("1", "f")) }, []func(){
			func() { write("2", "2"); must(os.Symlink("2", "new")); must(os.Rename("new", "f")) },
			func() { write("2", "3") },
		}},
		"what a link leads to changes": {"f", func() {
			must(os.MkdirAll("a/b", 0o755))
			write("a/b/1", "1")
			must(os.Symlink("a/b/../b/1", "f"))
		}, []func(){func() { write("a/b/new", "2"); must(os.Rename("a/b/new", "a/b/1")) }}},
		"a link in the middle of its path is turned, as of a volume of Kubernetes": {"f", func() {
			must(os.Mkdir("..1", 0o755))
			write("..1/f", "1")
			must(os.Symlink("..1", "..data"))
			must(os.Symlink("..data/f", "f"))
		}, []func(){func() {
			must(os.Mkdir("..2", 0o755))
			write("..2/f", "2")
			must(os.Symlink("..2", "..data_tmp"))
			must(os.Rename("..data_tmp", "..data"))
			must(os.RemoveAll("..1"))
		}, func() { write("..2/f", "3") }}},
		"it is written by another name": {"f", func() {
			must(os.Mkdir("a", 0o755))
			write("a/other", "1")
			must(os.Link("a/other", "f"))
		}, []func(){func() { write("a/other", "2") }}},
		"it may be executed": {"f", func() { write("f", "1") }, []func(){func() { must(os.Chmod("f", 0o755)) }}},
		"a link leads in a circle": {"f", func() { must(os.Symlink("g", "f")); must(os.Symlink("f", "g")) }, []func(){
			func() { write("new", "2"); must(os.Rename("new", "g")) },
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			test.make()
			path, err := filepath.Abs(test.path)
			must(err)
			f := watchFiles(func() []string { return []string{path} })
			defer f.close()
			before, poll := f.look()
			if silent, _ := isSilent("."); poll != silent {
				t.Errorf("poll %t", poll)
			}
			for i, change := range test.change {
				for len(f.hints) > 0 {
					<-f.hints
				}
				change()
				<-f.hints // or the test never ends
				// A hint may come before the change is complete.
				var now snapshot
				for now = before; maps.Equal(now, before); now, _ = f.look() {
				}
				if got := now.changedSince(before); !slices.Equal(got, []string{path}) {
					t.Errorf("change %d: %q", i, got)
				}
				before = now
			}
		})
	}
}

// What changes beside the files wakes nobody up.
func TestWatchSleepsWhenOthersChange(t *testing.T) {
	t.Chdir(t.TempDir())
	path, _ := filepath.Abs("f")
	f := watchFiles(func() []string { return []string{path} })
	defer f.close()
	f.look()
	for i := range 100 {
		if err := os.WriteFile(fmt.Sprint("other", i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Events come in their order: when this one has come, those of the others have.
	last, _ := filepath.Abs("last")
	f.mu.Lock()
	f.names[last] = true
	f.mu.Unlock()
	if len(f.hints) > 0 {
		t.Error("a hint")
	}
	if err := os.WriteFile(last, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	<-f.hints
}
