package cahost

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cert"
)

// create makes the CA. The host has a root before the container has a CA.
func (w *work) create() error {
	if err := w.ensureRoot(); err != nil {
		return err
	}
	root, signer, err := w.signer()
	if err != nil {
		return err
	}
	if err := w.fillFreshHome(root, signer); err != nil {
		return err
	}
	if _, err := w.c.call("ready"); err != nil {
		return err
	}
	w.state, err = w.c.look("look")
	if err == nil && w.state.kind != kindOwn {
		err = fmt.Errorf("the new CA is not there: the container now has one of the kind %q", short(w.state.kind))
	}
	w.changed("made the CA for %s, below the root %s", w.Settings.Domain, w.pin.Primary)
	return err
}

// ensureRoot pins a root whose key the host has: a new one if there is none.
func (w *work) ensureRoot() error {
	if w.pin != nil {
		_, err := w.store.Signer(w.pin.Primary)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return err
		case w.Accept != "1":
			return fmt.Errorf("the CA that this host has pinned is gone with its container, "+
				"which had the only key of its root, SHA-256 %s: bring the container back from a backup, "+
				"or have a new root made, which everything then has to trust: PHX_ACCEPT_NEW_ROOT=1", w.pin.Primary)
		}
		w.Log("the root %s is given up", w.pin.Primary)
	}
	root, err := w.store.NewRoot()
	if err != nil {
		return fmt.Errorf("make a root: %w", err)
	}
	w.pin = &Pin{Primary: cert.Fingerprint(root)}
	if err := w.store.SetPin(*w.pin); err != nil {
		return err
	}
	w.Log("made the root %s; its key is in %s, for root alone", w.pin.Primary, w.store.dir.Path(""))
	return nil
}

// freshHome is where a CA is made; the container's "ready" brings it to [ca.Home].
const freshHome = ca.Home + "/.new"

// fillFreshHome has the CA's files made there.
func (w *work) fillFreshHome(root *x509.Certificate, signer crypto.Signer) error {
	fresh := func(path string) string { return freshHome + strings.TrimPrefix(path, ca.Home) }
	s := *w.Settings
	config, err := w.c.file("make", strconv.Itoa(s.Port), strings.Join(s.ServerNames(), ","))
	if err != nil {
		return err
	}
	config, _, err = editConfig(config, s, ca.IntermediatePath, ca.KeyPath)
	if err != nil {
		return fmt.Errorf("the ca.json of step ca init: %w", err)
	}
	request, err := w.c.file("csr", fresh(ca.KeyPath))
	if err != nil {
		return err
	}
	intermediate, err := signIntermediate(request, s, root, signer, w.now)
	if err != nil {
		return err
	}
	roots, err := w.wantRoots()
	if err != nil {
		return err
	}
	defaults, err := json.MarshalIndent(map[string]string{"ca-url": s.URL(), "root": ca.RootPath}, "", "\t")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{
		{ca.IntermediatePath, cert.Encode(intermediate)},
		{ca.RootPath, roots},
		{ca.Home + "/config/defaults.json", append(defaults, '\n')},
		{ca.ConfigPath, config},
	} {
		if err := w.c.put(fresh(f.path), f.data); err != nil {
			return err
		}
	}
	return nil
}
