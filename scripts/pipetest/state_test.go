package pipetest

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var withVolume = map[string]any{"volumes": []any{map[string]any{"name": "data", "pool": "lab", "size_gb": 2, "mount_point": "/data"}}}

// pctInAdvice is a command that a message tells one to run.
var pctInAdvice = regexp.MustCompile(`pct set 500 --(?:mp\d+ [^ ;]+|revert mp\d+)`)

// wantRefusal checks that neither a dry run nor a run changes anything, and
// returns the commands of pct that the reason names.
func (h *host) wantRefusal(said string) (advice []string) {
	h.t.Helper()
	for _, args := range [][]string{{"--dry-run"}, {}} {
		before := h.read(conf500)
		_, calls, status, stderr := h.run(args...)
		if status != 1 || len(calls) > 0 || h.read(conf500) != before || !strings.Contains(stderr, said) || !strings.Contains(stderr, "nothing was changed") {
			h.t.Errorf("%v: status %d, calls\n%s\n%s\nwant %q", args, status, join(calls), stderr, said)
		}
		advice = pctInAdvice.FindAllString(stderr, -1)
	}
	return advice
}

// follow runs a command of pct that phx has named.
func (h *host) follow(advice string) {
	h.t.Helper()
	if out, status := h.bash("$PHX_PCT" + strings.TrimPrefix(advice, "pct")); status != 0 {
		h.t.Fatalf("%s: status %d\n%s", advice, status, out)
	}
}

// A volume is allocated once: where it is gone, an empty one does not take its
// place. Each way out that is named is one.
func TestVolumeIsNotReplacedByAnEmptyOne(t *testing.T) {
	const mounted = "mp0: lab:500/vm-500-disk-0.raw,mp=/data"
	h := converged(t, withVolume)
	if !strings.Contains(h.read(conf500), mounted) {
		t.Fatalf("%s", h.read(conf500))
	}
	back := func(advice string) {
		t.Helper()
		h.follow(advice)
		h.bash("$PHX_PCT start 500")
		if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 || !strings.Contains(h.read(conf500), mounted) {
			t.Errorf("after %s: status %d, calls\n%s\n%s\n%s", advice, status, join(calls), stderr, h.read(conf500))
		}
		h.wantUnchanged()
	}
	// Of a running container: its removal waits.
	h.bash("$PHX_PCT set 500 --delete mp0")
	advice := h.wantRefusal("the volume at /data (mp0) is removed at the next start")
	back(advice[0])
	// It is removed, and kept as unused0.
	h.bash("$PHX_PCT stop 500; $PHX_PCT set 500 --delete mp0")
	advice = h.wantRefusal("the volume at /data is not mounted any more")
	back(advice[0])
	// Nothing tells that phx has allocated it, but for the unused volume.
	h.bash("$PHX_PCT stop 500; $PHX_PCT set 500 --delete mp0 --description none")
	advice = h.wantRefusal("unused0")
	back(advice[0])
	// It is destroyed: a new one is made by hand alone.
	h.bash("$PHX_PCT stop 500; $PHX_PCT set 500 --delete mp0; $PHX_PCT set 500 --delete unused0")
	advice = h.wantRefusal("pvesm list lab --vmid 500")
	h.follow(advice[len(advice)-1])
	h.bash("$PHX_PCT start 500")
	if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	h.wantUnchanged()
}

// A rollback to before a volume keeps the notes, and the volume as an unused
// one.
func TestVolumeOfAfterARollback(t *testing.T) {
	h := converged(t, nil)
	h.bash("$PHX_PCT snapshot 500 before")
	h.configure(withVolume)
	if _, _, status, stderr := h.run(); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	h.wantUnchanged()
	h.bash("$PHX_PCT rollback 500 before --start 1")
	advice := h.wantRefusal("the volume at /data is not mounted any more")
	h.follow(advice[0])
	if _, _, status, stderr := h.run(); status != 0 {
		t.Errorf("status %d\n%s", status, stderr)
	}
	h.wantUnchanged()
}

// A volume counts as allocated once it is there: what a run that broke off has
// not allocated, the next one does.
func TestVolumeOfAnUnfinishedRun(t *testing.T) {
	h := converged(t, nil)
	h.configure(withVolume)
	// pct set is killed with its caller, before it has done anything.
	h.write("bin/killer", "#!/bin/sh\ncase \" $* \" in *\" set 500 \"*) kill -KILL $PPID; exit 1 ;; esac\nexec "+bin+"/pct \"$@\"\n")
	os.Chmod(h.path("bin/killer"), 0o755)
	killed := h.with("PHX_PCT=" + h.path("bin/killer"))
	if _, _, status, stderr := killed.run(); status != 137 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	if _, calls, status, stderr := h.run(); status != 0 || !strings.Contains(join(calls), "set 500 --mp0 lab:2,mp=/data") {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	h.wantUnchanged()
	// It is killed once it has: the volume is known, and not forgotten.
	h.write("bin/killer", "#!/bin/sh\n"+bin+"/pct \"$@\" || exit\ncase \" $* \" in *\" set 500 \"*) kill -KILL $PPID ;; esac\n")
	h.configure(map[string]any{"volumes": []any{withVolume["volumes"].([]any)[0], map[string]any{"name": "more", "pool": "lab", "size_gb": 1, "mount_point": "/more"}}})
	if _, _, status, stderr := killed.run(); status != 137 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	h.bash("$PHX_PCT stop 500; $PHX_PCT set 500 --delete mp1; $PHX_PCT set 500 --delete unused0")
	h.wantRefusal("the volume at /more is not mounted any more")
}
