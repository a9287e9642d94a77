// What of phx-nginx runs on the hypervisor: the filter, and the one-time token.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/smallstep/cli-utils/token"
	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/process"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remote"
	"thinkheads.ai/phx/cmd/internal/service"
)

// filter is the host's half.
func filter(c *cli.Context) error {
	aptProxy, err := cmdline.AptProxy(c)
	if err != nil {
		return err
	}
	return service.Run(c, service.Program{
		Name:   "nginx",
		Script: config.GatewayScript,
		SetUp: func(ctx context.Context, t *service.Target) (*remote.Answer, error) {
			return setUp(ctx, t, aptProxy)
		},
		Shows:  shows,
		Ready:  func(r event.ServiceReady) event.Body { return event.NginxReady(r) },
		Failed: func(f event.ServiceFailed) event.Body { return event.NginxFailed(f) },
		Status: func(s event.ServiceStatus) event.Body { return event.NginxStatus(s) },
	})
}

// shows are the names for which the gateway has to show a certificate.
func shows(p *config.Plan) []string { return append([]string{p.Domain}, p.Hosts()...) }

// setUp has the container of a target set up as the gateway, with packages that come
// by aptProxy.
func setUp(ctx context.Context, t *service.Target, aptProxy string) (*remote.Answer, error) {
	g, err := requestFor(t)
	if err != nil {
		return nil, err
	}
	g.AptProxy = aptProxy
	return t.Call(ctx, g, g.names(), func(need string) (any, error) {
		if need != "token" {
			return nil, fmt.Errorf("the container's half asks for %q, which this phx-nginx does not know", need)
		}
		t.Logf("getting a one-time token from container %d", t.CA.CTID)
		return fetchToken(ctx, t.Host, t.CA.CTID, g)
	})
}

// requestFor returns the gateway that the configuration asks for.
func requestFor(t *service.Target) (gateway, error) {
	if t.Proxy == nil {
		return gateway{}, fmt.Errorf("the configuration has no proxy behind the gateway: "+
			"give a container with a fixed address the application script %s", config.ProxyScript)
	}
	g := gateway{
		Trust: t.Trust, Domain: t.Domain, Names: deepNames(t), Proxy: t.AddressOf(t.Proxy),
		Interface: t.Container.Reached().Name, Neighbours: t.Neighbours(),
	}
	if t.Gateway != nil && len(t.Gateway.Also) > 0 {
		g.Addresses = t.Gateway.Addresses()
	}
	if s := t.Container.TraefikService; s != nil {
		g.StatusPort, g.StatusHost = s.Port, s.Name+"."+t.Domain
		if s.Port == 80 || s.Port == 443 { // by its name alone, as phx-plan has warned
			g.StatusPort = 0
		}
	}
	return g, g.check()
}

// deepNames returns the hosts of what is served that have several labels below the
// domain, which *.DOMAIN does not cover in a certificate.
func deepNames(t *service.Target) []string {
	var names []string
	add := func(host string) {
		if label, below := strings.CutSuffix(host, "."+t.Domain); below && strings.Contains(label, ".") {
			names = append(names, host)
		}
	}
	for _, s := range t.Services {
		add(s.Host)
	}
	if t.Dashboard != nil {
		add(t.Dashboard.Host)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// tokenLife is how long step makes a token valid.
const tokenLife = 5 * time.Minute

// fetchToken gets a one-time token for the gateway's names from the CA's
// container. The provisioner's password does not leave that container.
func fetchToken(ctx context.Context, host *pve.Host, ctid int, g gateway) (string, error) {
	cmd := host.Exec(ctid, ca.TokenCommand(g.CAURL, g.Domain, g.names()...)...)
	cmd.Label = fmt.Sprintf("pct exec %d (step ca token)", ctid)
	var out bytes.Buffer // of its own: what is captured may end up in an error
	cmd.Stdout, cmd.MaxStdout, cmd.Timeout = &out, process.MaxCapture, time.Minute
	if _, err := host.Run(ctx, cmd); err != nil {
		return "", err
	}
	t := strings.TrimSpace(out.String())
	if err := checkToken(t, g, time.Now()); err != nil {
		return "", fmt.Errorf("one-time token of container %d: %w", ctid, err)
	}
	return t, nil
}

// checkToken checks that a token is for this CA, for the gateway's names and
// no others, and valid now for a short time. Its signature is the CA's to
// check. The token is not in any error.
func checkToken(s string, g gateway, now time.Time) error {
	jwt, err := token.ParseInsecure(s)
	if err != nil {
		return errors.New("not a token")
	}
	p := jwt.Payload
	names := g.names()
	slices.Sort(names)
	sans := slices.Clone(p.SANs)
	slices.Sort(sans)
	switch {
	case !strings.EqualFold(p.SHA, g.Fingerprint):
		return fmt.Errorf("it is for the root certificate %s, not %s", quoted(p.SHA), g.Fingerprint)
	case !slices.ContainsFunc(p.Audience, func(aud string) bool { return isSignURL(aud, g.CAURL) }):
		return fmt.Errorf("its audience is %s, not to sign at %s", quoted(p.Audience), g.CAURL)
	case p.Subject != g.Domain || !slices.Equal(sans, names):
		return fmt.Errorf("it is for %s with the names %s, not for %q", quoted(p.Subject), quoted(sans), names)
	case p.Expiry == nil || !p.Expiry.Time().After(now):
		return errors.New("it has expired")
	case p.Expiry.Time().After(now.Add(tokenLife + time.Minute)):
		return fmt.Errorf("it is valid until %s, longer than the %s of a one-time token",
			p.Expiry.Time().UTC().Format(time.RFC3339), tokenLife)
	case p.NotBefore != nil && p.NotBefore.Time().After(now.Add(time.Minute)):
		return errors.New("it is not valid yet: compare the clocks of host and container")
	}
	return nil
}

// quoted returns what a token says as it can be shown: it may say much.
func quoted(v any) string {
	text := fmt.Sprintf("%+q", v) // ASCII, which can be cut anywhere
	if len(text) > 200 {
		text = text[:200] + "… (cut)"
	}
	return text
}

// isSignURL reports whether an audience is the place where the CA at caURL
// signs certificates.
func isSignURL(audience, caURL string) bool {
	a, err1 := url.Parse(audience)
	ca, err2 := url.Parse(caURL)
	return err1 == nil && err2 == nil && a.Scheme == "https" && a.Host == ca.Host &&
		(a.Path == "/1.0/sign" || a.Path == "/sign")
}
