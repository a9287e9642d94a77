package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// healthLimit is how long the CA may take to take a connection, and then to answer.
const healthLimit = 5 * time.Second

// reportStatus compares the root certificates of the file, of the pin and of the
// CA, finds out whether the CA answers, and changes nothing. ev tells how its
// container is.
func (e *exporter) reportStatus(ctx context.Context, p *config.Plan, ev event.Event) {
	settings := ca.SettingsOf(p)
	s := &event.CAStatus{CTID: p.CA.CTID, Path: e.path, CAURL: settings.URL()}
	name := ""
	trouble := errors.New("its container cannot be looked at")
	switch body := ev.Body.(type) {
	case event.ContainerStatus:
		name, trouble = body.Name, nil
		if body.State != "running" {
			trouble = fmt.Errorf("its container is %s", body.State)
		}
	case event.ContainerFailed:
		name, trouble = body.Name, fmt.Errorf("its container: %s", body.Error)
	case event.ContainerSkipped:
		name, trouble = body.Name, fmt.Errorf("its container was skipped: %s", body.Reason)
	}
	label := fmt.Sprintf("%d %s", s.CTID, name)
	err := e.compareFile(s)
	if trouble == nil {
		var note string
		note, trouble = compareCA(ctx, e.host, s)
		if note != "" {
			e.warn(s.CTID, label, note)
		}
	}
	switch {
	case err == nil:
		err = trouble
	case trouble != nil:
		err = fmt.Errorf("%w; %w", err, trouble)
	}
	if err != nil {
		s.Error = err.Error()
		e.fail(fmt.Errorf("%s: %w", label, err))
	} else {
		cmdline.Logf("%s: %s is that of the CA, which answers: SHA-256 %s", label, e.path, s.SHA256)
	}
	e.emit(*s)
}

// compareFile compares the file with the pin.
func (e *exporter) compareFile(s *event.CAStatus) error {
	pin, err := cahost.ReadPin(e.host)
	if err != nil {
		return err
	}
	if pin == nil {
		return errors.New("no root certificate is pinned on this host yet: run phoenix")
	}
	s.Pinned = pin.Primary
	text, err := cert.ReadFile(e.path)
	if err != nil {
		return fmt.Errorf("%w: run phoenix, which writes it", err)
	}
	roots, err := cert.ParseChain(text)
	if err != nil {
		return fmt.Errorf("%s: %w: run phoenix, which writes it anew", e.path, err)
	}
	s.SHA256, s.Subject, s.NotAfter = cert.Fingerprint(roots[0]), roots[0].Subject.CommonName, roots[0].NotAfter.UTC()
	sums := []string{s.SHA256}
	for _, c := range roots[1:] {
		s.Also = cert.Fingerprint(c)
		sums = append(sums, s.Also)
	}
	if !slices.Equal(sums, pin.Pins()) {
		return fmt.Errorf("%s has the root %s, and this host has pinned %s: run phoenix, which writes it anew",
			e.path, strings.Join(sums, " and "), strings.Join(pin.Pins(), " and "))
	}
	if _, err := cert.ParseRoots(text); err != nil {
		return fmt.Errorf("%s: %w", e.path, err)
	}
	return nil
}

// compareCA compares the CA's root with the pin, and has the CA answer: to this
// host, or where that cannot be, to its own container, as the note then says.
func compareCA(ctx context.Context, host *pve.Host, s *event.CAStatus) (note string, err error) {
	pinned, err := cahost.PinnedRoots(host)
	if err != nil {
		return "", err
	}
	asked := make(chan error, 1)
	go func() { asked <- answers(ctx, s.CAURL, pinned) }()
	var notReached error
	roots, unwell, err := cahost.Look(ctx, host, s.CTID, func() string {
		if notReached = <-asked; isNotReached(notReached) {
			return s.CAURL
		}
		return ""
	})
	if err != nil {
		return "", err
	}
	s.Serves = cert.Fingerprint(roots[0])
	var pin *cahost.Pin
	if pin, err = cahost.ReadPin(host); err != nil || pin == nil {
		return "", err // which compareFile reports
	}
	switch {
	case !slices.Contains(pin.Pins(), s.Serves):
		return "", fmt.Errorf("the CA has another root than the one that this host has pinned: SHA-256 %s, pinned %s: "+
			"look into its container; if you have replaced the CA, run phoenix with PHX_ACCEPT_NEW_ROOT=%s",
			s.Serves, pin.Primary, s.Serves)
	case notReached == nil:
		return "", nil
	case !isNotReached(notReached):
		return "", notReached
	case unwell != nil:
		return "", fmt.Errorf("the CA does not answer: %w: run phoenix, which starts it; nor in its container: %w",
			notReached, unwell)
	}
	return fmt.Sprintf("the CA answers in its container, and not this host: %v", notReached), nil
}

// isNotReached reports whether an error is that no connection has come up, which may
// be due to what lies between.
func isNotReached(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

// answers returns an error unless the CA at url says that it is well, with a
// certificate that verifies against one of the roots.
func answers(ctx context.Context, url string, roots []*x509.Certificate) error {
	if err := guest.Connects(ctx, strings.TrimPrefix(url, "https://"), healthLimit); err != nil {
		return fmt.Errorf("%s/health: %w", url, err)
	}
	ctx, cancel := context.WithTimeout(ctx, healthLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/health", nil)
	if err != nil {
		return err
	}
	// No proxy, and no redirection.
	transport := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: cert.Pool(roots...), MinVersion: tls.VersionTLS12},
	}
	resp, err := transport.RoundTrip(req)
	switch {
	case isNotReached(err):
		return fmt.Errorf("%s/health: %w", url, err)
	case err != nil: // it may have what was answered
		return fmt.Errorf("%s/health: %s", url, cmdline.OneLine(err.Error()))
	}
	resp.Body.Close()
	if code := resp.StatusCode; code != http.StatusOK { // what is said beside it is anybody's
		return fmt.Errorf("%s/health: status %d %s", url, code, http.StatusText(code))
	}
	return nil
}
