package cahost

import (
	"bytes"
	"strings"

	"thinkheads.ai/phx/cmd/internal/pve"
)

// WriteTaken notes on the host which roots a service trusts now, the CA's
// first, so that a rotation can go on. service is "nginx" or "traefik". A note
// that is right already is left alone.
func WriteTaken(host *pve.Host, service string, pins []string) error {
	if Taken(host, service, pins) {
		return nil
	}
	return host.State("").Write(takenFile(service), takenNote(pins))
}

// Taken reports whether it is noted that a service trusts these roots.
func Taken(host *pve.Host, service string, pins []string) bool {
	have, err := host.State("").Read(takenFile(service))
	return err == nil && bytes.Equal(have, takenNote(pins))
}

func takenFile(service string) string { return "taken-" + service }

func takenNote(pins []string) []byte { return []byte(strings.Join(pins, " ") + "\n") }
