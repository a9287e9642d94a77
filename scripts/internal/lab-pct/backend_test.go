package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// A signal that comes before the command has been started is the command's, too.
func TestChildGetsEarlierSignals(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGTERM
	err := (&lab{ctx: context.Background(), signals: signals}).child(exec.Command("sleep", "30"))
	var inner innerStatus
	if !errors.As(err, &inner) || inner.signal != syscall.SIGTERM {
		t.Errorf("%v, want the end by SIGTERM", err)
	}
}
