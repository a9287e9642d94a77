// Package guest sets up services from inside a container: packages, files,
// units, and trust in the CA. Every step does nothing when there is nothing
// to do, and says what it has changed. It knows nothing of Proxmox VE and of the
// events: what it needs of the host it asks for.
package guest

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Places inside a container.
const (
	StepProgram = "/usr/local/bin/step"
	stepPath    = "/etc/phx/step" // STEPPATH of the bootstrap
	loginPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Setup is one run of changes to a container.
type Setup struct {
	Stage    string    // what is being done, for the answer to a failure
	Changes  []string  // what has been changed, for people
	NotAfter time.Time // when the first of the service's certificates expires

	Certificates []remote.Certificate // that have been seen served

	// AptProxy is the proxy by which apt gets packages, http://HOST:PORT; "" for what
	// the container is set to.
	AptProxy string

	tell  Tell
	begun string // what has been told last that begins
}

// Apply does the work of a program's half in the container, and makes the
// answer of it. names are those of the service's certificates; tell, which may be
// nil, is told of what goes on.
func Apply(names []string, tell Tell, work func(*Setup) error) *remote.Answer {
	s := &Setup{tell: tell}
	err := work(s)
	a := &remote.Answer{
		Names: names, NotAfter: s.NotAfter,
		Changed: len(s.Changes) > 0, Changes: append([]string{}, s.Changes...),
		Certificates: s.Certificates,
	}
	if err != nil {
		a.Stage, a.Error = s.Stage, err.Error()
	}
	return a
}

// Prepare does what comes first in each run of apply: [Setup.Begin], the end of
// the container's boot, and the neighbours on device.
func (s *Setup) Prepare(ctx context.Context, program string, trust Trust,
	device string, neighbours []Neighbour,
) ([]*x509.Certificate, error) {
	roots, err := s.Begin(ctx, program, trust)
	if err != nil {
		return nil, err
	}
	if err := s.WaitForBoot(ctx); err != nil {
		return nil, err
	}
	s.Stage = "neighbours"
	return roots, s.PinNeighbours(ctx, device, neighbours)
}

// Begins tells whoever follows the work that something begins that takes time: a
// wait, "waiting for …" in small letters, or with "" the stage, once.
func (s *Setup) Begins(wait string) {
	stage := cmp.Or(wait, s.Stage)
	if s.tell == nil || stage == s.begun {
		return
	}
	s.begun = stage
	s.tell(remote.Note{Stage: stage})
}

// Run is [Run] for a program that does more than read, as which the stage begins.
func (s *Setup) Run(ctx context.Context, argv ...string) (string, error) {
	s.Begins("")
	return Run(ctx, argv...)
}

// Warnf warns people of something that is no failure.
func (s *Setup) Warnf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if s.tell == nil || !s.tell(remote.Note{Warning: text}) {
		cmdline.Logf("%s", text)
	}
}

// Changed notes something that has been changed.
func (s *Setup) Changed(format string, args ...any) {
	s.Changes = append(s.Changes, fmt.Sprintf(format, args...))
}
