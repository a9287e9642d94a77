package service

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/process"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// The action status: what the service shows, by handshakes, and nothing is changed.

// Limits of a status.
const (
	dialLimit   = 5 * time.Second  // for a connection to come up, also of a service that is just being started
	statusLimit = 30 * time.Second // for all handshakes together
)

// port is where gateway and proxy serve.
const port = "443"

// looked is what the container's own status says of it.
type looked struct {
	state   string // running, stopped or missing; "" where it is not known
	trouble string // why it is not known
}

// observeStatus notes how the program's container is, in a plan that asks for it.
func (p *planState) observeStatus(ev event.Event) {
	if !p.asks || p.container == nil || ev.CTID() != p.container.CTID || p.looked != nil {
		return
	}
	switch body := ev.Body.(type) {
	case event.ContainerStatus:
		p.looked = &looked{state: body.State}
	case event.ContainerFailed:
		p.looked = &looked{trouble: "its container: " + body.Error}
	case event.ContainerSkipped:
		p.looked = &looked{trouble: "its container was skipped: " + body.Reason}
	}
}

// reportStatus reports what the program's service shows.
func (f *filter) reportStatus(ctx context.Context, plan config.Plan, c *config.Container, look looked) {
	s := &serviceStatus{filter: f, container: c, names: f.program.Shows(&plan)}
	s.CTID, s.Certificates = c.CTID, []event.Certificate{}
	if err := s.ask(ctx, look); err != nil {
		s.Error = err.Error()
	}
	for _, problem := range s.problems() {
		if s.OutOfReach {
			warn(f.emit, c, problem)
		} else {
			f.fail(fmt.Errorf("%d %s: %s", c.CTID, c.Name, problem))
		}
	}
	f.emit(f.program.Status(s.ServiceStatus))
}

// serviceStatus is a status as it is found out.
type serviceStatus struct {
	event.ServiceStatus
	filter    *filter
	container *config.Container
	names     []string // that are to be served
}

// ask has the service show its certificates. The error says why it could not be
// asked.
func (s *serviceStatus) ask(ctx context.Context, look looked) error {
	switch {
	case look.trouble != "":
		return errors.New(look.trouble)
	case look.state != "running":
		return fmt.Errorf("its container is %s", look.state)
	}
	roots, err := cahost.PinnedRoots(s.filter.host)
	if err != nil {
		return err
	}
	if roots == nil {
		return errors.New("no root certificate is pinned on this host yet, against which to verify: run phoenix")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, statusLimit, fmt.Errorf("not asked within %s", statusLimit))
	defer cancel()
	notReached := s.reach(ctx)
	if notReached == nil {
		s.take(guest.Certificates(ctx, s.Address, s.names, roots...))
		return nil
	}
	// A firewall, or another VLAN, may lie between: what it shows in its container is
	// as good.
	certificates, err := s.inside(ctx, roots)
	// A connection that is refused has reached somebody.
	refused := errors.Is(notReached, syscall.ECONNREFUSED)
	if err == nil && (!refused || slices.ContainsFunc(certificates, isShown)) {
		s.Address = "127.0.0.1:" + port
		s.take(certificates)
		return nil
	}
	s.OutOfReach = !refused
	if s.OutOfReach {
		return fmt.Errorf("it cannot be seen from this host: %w; nor asked in its container: %w", notReached, err)
	}
	return fmt.Errorf("nothing serves there: %w: run phoenix, which sets it up again", notReached)
}

// isShown reports whether c is a certificate, and not only why there is none.
func isShown(c remote.Certificate) bool { return c.SHA256 != "" || c.Error == "" }

// reach finds the address at which the service takes connections from this host.
func (s *serviceStatus) reach(ctx context.Context) error {
	var all []error
	for _, a := range s.container.Addresses() {
		address := net.JoinHostPort(a.String(), port)
		s.Address = cmp.Or(s.Address, address)
		err := guest.Connects(ctx, address, dialLimit)
		if err == nil {
			s.Address = address
			return nil
		}
		all = append(all, err)
	}
	if len(all) == 0 {
		return errors.New("it has no fixed address")
	}
	return errors.Join(all...)
}

// inside has the program's half in the container say what is shown there.
func (s *serviceStatus) inside(ctx context.Context, roots []*x509.Certificate) ([]remote.Certificate, error) {
	program := "/usr/local/bin/" + filepath.Base(cmdline.Name())
	cmd := s.filter.host.Exec(s.CTID, program, guest.ShownCommand)
	cmd.Label = fmt.Sprintf("pct exec %d (%s %s)", s.CTID, filepath.Base(program), guest.ShownCommand)
	cmd.Timeout, cmd.MaxStdout = statusLimit, process.MaxCapture
	question := guest.Question{Names: s.names, Roots: string(cert.Encode(roots...))}
	answer, err := converse(ctx, s.filter.host, cmd, strings.NewReader(""), s.names,
		func(string) (any, error) { return question, nil }, func(remote.Note) {})
	switch {
	case err != nil:
		return nil, err
	case answer.Error != "":
		return nil, fmt.Errorf("%s:\n%s", cmd.Label, cmdline.Quoted(answer.Error))
	case len(answer.Certificates) == 0 && len(s.names) > 0:
		return nil, fmt.Errorf("%s: not an answer", cmd.Label)
	}
	return answer.Certificates, nil
}

// take makes certificates those of the status.
func (s *serviceStatus) take(certificates []remote.Certificate) {
	s.Certificates = events(remote.Fit(certificates))
}

// events returns certificates for an event. Words that come from elsewhere, such as
// names in a certificate, have one line.
func events(certificates []remote.Certificate) []event.Certificate {
	all := make([]event.Certificate, len(certificates))
	for i, c := range certificates {
		c.Issuer, c.Error = cmdline.OneLine(c.Issuer), cmdline.OneLine(c.Error)
		all[i] = event.Certificate(c)
	}
	return all
}

// problems returns what is wrong, for people, of much the first.
func (s *serviceStatus) problems() []string {
	const shown = 16
	var all []string
	if s.Error != "" {
		all = append(all, s.Error)
	}
	for _, c := range s.Certificates {
		if c.Error != "" {
			all = append(all, c.Name+": "+c.Error)
		}
	}
	if more := len(all) - shown; more > 0 {
		all = append(slices.Clip(all[:shown]), fmt.Sprintf("and %d more", more))
	}
	return all
}
