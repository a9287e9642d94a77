package cahost

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/cert"
)

// A look changes nothing, also where a run was interrupted, and tells why not all is well.
func TestLook(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	none := func() string { return "" }
	all := func() string {
		return s.do(t, "sh", "-c", `find /home/step /root /run /etc/phx* -path /home/step/db -prune -o \
			-printf '%m %U %s %p\n' | sort; ls -A /run`)
	}
	before := all()
	_, _, err := Look(t.Context(), s.host, 103, none)
	if err == nil || !strings.Contains(err.Error(), "there is no CA") {
		t.Errorf("without a CA: %v", err)
	}
	if after := all(); after != before {
		t.Errorf("it has changed\n%s\nwas\n%s", after, before)
	}

	r, _ := s.must(t, Options{Settings: &settings, Create: true})
	s.calls(t)
	url := func() string { return settings.URL() }
	roots, unwell, err := Look(t.Context(), s.host, 103, url)
	if err != nil || len(roots) != 1 || cert.Fingerprint(roots[0]) != r.Pin.Primary {
		t.Fatalf("%v, %v", roots, err)
	}
	if unwell == nil || !strings.Contains(unwell.Error(), "| ") || !strings.Contains(unwell.Error(), "refused") {
		t.Errorf("a CA that does not run: %v", unwell)
	}
	s.serve(t)
	if _, unwell, err = Look(t.Context(), s.host, 103, url); err != nil || unwell != nil {
		t.Errorf("a CA that runs: %v, %v", unwell, err)
	}
	if n := s.calls(t); n != 2 {
		t.Errorf("%d calls of pct for 2 looks", n)
	}
	s.do(t, "systemctl", "stop")

	// What a run was about to put in place stays beside its place.
	s.do(t, "sh", "-c", "cd /home/step && mkdir .ready && chown 990:990 .ready && mv config .ready/")
	before = all()
	if _, _, err := Look(t.Context(), s.host, 103, none); err == nil {
		t.Error("an interrupted run: there is a CA")
	}
	if after := all(); after != before {
		t.Errorf("it has changed\n%s\nwas\n%s", after, before)
	}
	s.must(t, Options{Settings: &settings})
	if _, err := s.try("test", "-e", filepath.Join("/home/step", ".ready")); err == nil {
		t.Error("the next run has not finished it")
	}
}

// An early run says of a CA that is as it should be what any run says of it, and
// changes nothing of any other one, nor on the host.
func TestEarly(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	all := func() string {
		return s.do(t, "sh", "-c", `find /home/step /root /run /etc/phx* -path /home/step/db -prune -o \
			-path /run/log -o -printf '%m %U %s %p\n' | sort; ls -A /run`)
	}
	refused := func(what string, o Options) {
		t.Helper()
		before := all()
		o.Early = true
		if r, log, err := s.converge(t, o); !errors.Is(err, ErrEarly) || log != "" {
			t.Errorf("%s: %v, %v\n%s", what, r, err, log)
		}
		if after := all(); after != before {
			t.Errorf("%s: it has changed\n%s\nwas\n%s", what, after, before)
		}
	}
	refused("no CA", Options{Settings: &settings})
	refused("no CA, which may be made", Options{Settings: &settings, Create: true})

	made, _ := s.must(t, Options{Settings: &settings, Create: true})
	refused("a CA that does not run", Options{Settings: &settings})
	s.serve(t)
	before := all()
	r, log, err := s.converge(t, Options{Settings: &settings, Early: true})
	if err != nil || r.Pin != made.Pin || len(r.Changes) > 0 || len(r.Roots) != 1 || log != "" {
		t.Errorf("%+v, %v\n%s", r, err, log)
	}
	if after := all(); after != before {
		t.Errorf("it has changed\n%s\nwas\n%s", after, before)
	}
	refused("a rotation", Options{Settings: &settings, Rotate: StepTrust})
	other := settings
	other.Name = "pki"
	refused("other settings", Options{Settings: &other})
	s.do(t, "sh", "-c", "cd /home/step && mkdir .ready && chown 990:990 .ready && mv config .ready/")
	refused("an interrupted run", Options{Settings: &settings})
	if r, _ := s.must(t, Options{Settings: &settings}); len(r.Changes) != 1 {
		t.Errorf("the run after it: %q", r.Changes)
	}
}
