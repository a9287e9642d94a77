package ca

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// WriteTaken notes on the host which roots a service trusts now, the CA's
// first, so that a rotation can go on. A note that is right already is left
// alone.
func WriteTaken(host *pve.Host, service string, pins []string) error {
	if Taken(host, service, pins) {
		return nil
	}
	path := takenPath(host, service)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(path, takenNote(pins), 0o600)
}

// Taken reports whether it is noted that a service trusts these roots.
func Taken(host *pve.Host, service string, pins []string) bool {
	have, err := cert.ReadFile(takenPath(host, service))
	return err == nil && bytes.Equal(have, takenNote(pins))
}

func takenPath(host *pve.Host, service string) string {
	return filepath.Join(host.StateDir(), "taken-"+service)
}

func takenNote(pins []string) []byte { return []byte(strings.Join(pins, " ") + "\n") }
