package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cmdline"
)

// exported is what the CA is, and how its roots came into the file.
type exported struct {
	*cahost.Result
	changed  bool // the file
	fromHost bool // the roots are those that the host has pinned
}

// export brings the CA, the pin and the file up to date.
func (e *exporter) export(ctx context.Context, ctid int, o cahost.Options) (*exported, error) {
	start := time.Now()
	store, closeStore, err := cahost.OpenStore(ctx, e.host)
	if err != nil {
		return nil, err
	}
	defer closeStore()
	o.Accept = e.accept
	result, err := cahost.Converge(ctx, e.host, ctid, store, o)
	if err != nil {
		return nil, err
	}
	x := &exported{Result: result}
	if x.changed, err = e.write(result.Roots); err != nil {
		return nil, err
	}
	if x.changed {
		cmdline.Logf("wrote %s: %s (%s)", e.path, sums(result.Pin), cmdline.Elapsed(start))
	} else {
		cmdline.Logf("%s is unchanged: %s", e.path, sums(result.Pin))
	}
	return x, nil
}

// sums returns the fingerprints of a pin, for people.
func sums(p cahost.Pin) string {
	if p.Also == "" {
		return "SHA-256 " + p.Primary
	}
	return fmt.Sprintf("SHA-256 %s, and of a second root %s", p.Primary, p.Also)
}

// write brings the file up to date. Only in the pipe it is known to be for
// containers.
func (e *exporter) write(roots []*x509.Certificate) (changed bool, err error) {
	return writeRoots(e.path, e.stream != nil, roots)
}

// fromHost brings the file up to date from what is pinned.
func (e *exporter) fromHost(ctx context.Context) (*exported, error) {
	store, closeStore, err := cahost.OpenStore(ctx, e.host)
	if err != nil {
		return nil, err
	}
	defer closeStore()
	result, err := cahost.Pinned(store)
	if err != nil {
		return nil, err
	}
	x := &exported{Result: result, fromHost: true}
	x.changed, err = e.write(result.Roots)
	return x, err
}
