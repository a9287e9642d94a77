package guest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etc/x/y.conf")
	s := &Setup{}
	for i, tt := range []struct {
		text    string
		mode    os.FileMode
		changed bool
	}{{"a", 0o644, true}, {"a", 0o644, false}, {"b", 0o644, true}, {"b", 0o600, true}, {"b", 0o600, false}} {
		changed, err := s.WriteFile(path, []byte(tt.text), tt.mode)
		if err != nil || changed != tt.changed {
			t.Errorf("%d: changed %v, %v", i, changed, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != tt.mode {
			t.Errorf("%d: mode %v, %v", i, info.Mode(), err)
		}
	}
	if len(s.Changes) != 3 {
		t.Errorf("changes %q", s.Changes)
	}
}

// A stray STEP_ variable would change what step does.
func TestRunHasACleanEnvironment(t *testing.T) {
	t.Setenv("STEP_CA_URL", "https://elsewhere")
	out, err := RunEnv(context.Background(), []string{"STEP_TOKEN=x"}, "/usr/bin/env")
	if err != nil || strings.Contains(out, "STEP_CA_URL") || !strings.Contains(out, "STEP_TOKEN=x\n") || !strings.Contains(out, "STEPPATH=/etc/phx/step\n") {
		t.Errorf("environment\n%s%v", out, err)
	}
	_, err = Run(context.Background(), "sh", "-c", "echo why >&2; exit 3")
	if err == nil || !strings.HasSuffix(err.Error(), ": why") {
		t.Errorf("error %v", err)
	}
	if _, err := Run(context.Background(), "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("error %v", err)
	}
}

func TestUntil(t *testing.T) {
	tries := 0
	failing := errors.New("not yet")
	err := Until(context.Background(), time.Minute, func() error {
		if tries++; tries < 3 {
			return failing
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if err := Until(context.Background(), 0, func() error { return failing }); err != failing {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	stopped := errors.New("stopped")
	cancel(stopped)
	if err := Until(ctx, time.Minute, func() error { return failing }); err != stopped {
		t.Errorf("error %v", err)
	}
}
