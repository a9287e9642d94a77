package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/event"
)

// filter answers every ca.exported with a ca.fingerprint. The fingerprint is
// that which came with the event, out of the CA's container: one that is
// computed from the file would prove nothing of it.
func filter(ctx context.Context, in io.Reader, out io.Writer) error {
	failed := false
	fail := func(err error) {
		failed = true
		cmdline.Logf("%v", err)
	}
	stream := event.NewStream(in, out, fail)
	for {
		ev, err := stream.Next(ctx, event.NameCAExported)
		switch {
		case errors.Is(err, io.EOF):
			if failed {
				return cmdline.Status(1)
			}
			return nil
		case err != nil:
			return err
		case ev.Name == event.NamePlanDone:
			if err := stream.Forward(ev); err != nil {
				return err
			}
			continue
		}
		exported := ev.Body.(event.CAExported)
		if err := check(exported, ev.Line); err != nil {
			fail(err)
			continue
		}
		err = stream.Emit(event.CAFingerprint{
			Path: exported.Path, SHA256: exported.SHA256, Also: exported.Also, CAURL: exported.CAURL,
		})
		if err != nil {
			return err
		}
	}
}

// check returns an error unless the file of an export holds the roots that it
// names, and nothing else. line is that of the event.
func check(e event.CAExported, line int) error {
	switch {
	case e.Path == "":
		return fmt.Errorf("event stream: line %d: ca.exported without a path", line)
	case e.SHA256 == "":
		return fmt.Errorf("event stream: line %d: ca.exported without a fingerprint", line)
	}
	pins := []string{e.SHA256}
	if e.Also != "" {
		pins = append(pins, e.Also)
	}
	if _, err := cert.ReadPinned(e.Path, pins...); err != nil {
		return fmt.Errorf("not what phx-ca-export has exported: %w", err)
	}
	return nil
}
