// Package guest sets up services from inside a container: packages, files,
// units, and trust in the CA. Every step does nothing when there is nothing
// to do, and says what it has changed.
package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

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
	Stage    string // what is being done, for the answer to a failure
	Changes  []string
	NotAfter time.Time // when the first of the service's certificates expires
}

// Apply does the work of a program's half in the container, and makes the
// answer of it. names are those of the service's certificates.
func Apply(names []string, work func(*Setup) error) *remote.Answer {
	s := &Setup{}
	err := work(s)
	a := &remote.Answer{Names: names, NotAfter: s.NotAfter, Changed: len(s.Changes) > 0, Changes: append([]string{}, s.Changes...)}
	if err != nil {
		a.Stage, a.Error = s.Stage, err.Error()
	}
	return a
}

// Print prints the answer to whoever has run a program's half in the container
// by hand. The error is that of the answer.
func Print(a *remote.Answer) error {
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		return err
	}
	if a.Error != "" {
		return fmt.Errorf("%s: %s", a.Stage, a.Error)
	}
	return nil
}

// Changed notes something that has been changed.
func (s *Setup) Changed(format string, args ...any) {
	s.Changes = append(s.Changes, fmt.Sprintf(format, args...))
}
