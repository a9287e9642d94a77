package cahost

import (
	"context"
	"crypto/x509"
	"fmt"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// Look returns the root certificates that the CA in a container has, that of the CA
// first. By the same pct exec, the container then asks the CA at the URL that
// askInside returns how it is, unless that is "": the error of this is unwell.
// Nothing is changed, neither in the container nor on the host.
func Look(ctx context.Context, host *pve.Host, ctid int,
	askInside func() string) (roots []*x509.Certificate, unwell, err error) {
	c, err := open(ctx, host, ctid, lookLimit)
	if err != nil {
		return nil, nil, err
	}
	defer func() { c.end(err) }()
	w := &work{c: c}
	if w.state, err = c.look("peek"); err != nil {
		return nil, nil, err
	}
	if err = w.ensureCA(); err != nil {
		return nil, nil, err
	}
	if err = w.read(); err != nil {
		return nil, nil, err
	}
	if roots, err = cert.ParseRoots(w.haveRoots); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", short(w.rootFile), err)
	}
	if url := askInside(); url != "" {
		_, unwell = c.call("health", url, w.rootFile)
	}
	return roots, unwell, nil
}
