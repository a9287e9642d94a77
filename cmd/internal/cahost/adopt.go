package cahost

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"path"
	"regexp"
	"strconv"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cert"
)

// adopt takes over the CA that was there before phx: nothing of it is
// replaced, and what its ca.json lacks is added, with a copy beside it.
func (w *work) adopt() error {
	if err := w.read(); err != nil {
		return w.notAdopted("%w", err)
	}
	if _, err := cert.ParseRoots(w.haveRoots); err != nil {
		return w.notAdopted("its root %s: %w", short(w.rootFile), err)
	}
	if err := w.checkPin(); err != nil {
		return err
	}
	if w.files.adminAPI {
		return w.notAdopted("its provisioners are kept in its database (enableAdmin)")
	}
	if _, port, err := net.SplitHostPort(w.files.address); err != nil || port != strconv.Itoa(w.Settings.Port) {
		return w.notAdopted("it listens at %q, and traefik_service says port %d",
			short(w.files.address), w.Settings.Port)
	}
	home := path.Dir(w.state.config)
	if path.Base(home) == "config" {
		home = path.Dir(home)
	}
	name, password, err := w.findProvisioner(home)
	if err != nil {
		return err
	}
	if name == "" {
		return w.notAdopted("no JWK provisioner whose password lies in %s/provisioner_password.txt "+
			"or another usual place", home)
	}
	text, changes, err := completeConfig(w.config, *w.Settings, true)
	if err != nil {
		return w.notAdopted("%w", err)
	}
	if err := w.complete(text, changes); err != nil {
		return err
	}
	if _, err := w.c.call("link", w.rootFile, ca.RootPath); err != nil {
		return err
	}
	note := fmt.Sprintf("# The CA that was here before phx. Written and read by phx.\n"+
		"STEPPATH=%s\nCONFIG=%s\nROOT=%s\nPROVISIONER=%s\nPASSWORD=%s\n",
		home, w.state.config, w.rootFile, name, password)
	if _, err := w.c.call("adopt", base64.StdEncoding.EncodeToString([]byte(note))); err != nil {
		return err
	}
	w.state.kind = kindAdopted
	w.changed("took over the CA at %s as it is, with its root and its keys; tokens come from its provisioner %q",
		w.state.config, short(name))
	return nil
}

// notAdopted returns the error of a CA that cannot be taken over, and why.
func (w *work) notAdopted(format string, args ...any) error {
	config := short(w.state.config)
	return fmt.Errorf("the CA at %s cannot be taken over: %w: set that right, or, for a new CA, "+
		"move %s away and disable step-ca.service", config, fmt.Errorf(format, args...), config)
}

// nameForm are the names of provisioners that fit into a line of [ca.AdoptedFile].
var nameForm = regexp.MustCompile(`^[[:print:]]+$`)

// passwordFiles are where the password of a provisioner usually lies, below the
// CA's directory.
var passwordFiles = []string{
	"provisioner_password.txt", "secrets/provisioner_password", "secrets/provisioner_password.txt",
	"config/provisioner_password.txt",
	"password.txt", "secrets/password.txt", "secrets/password", "ca_password.txt", "secrets/ca_password",
	"config/password.txt",
}

// findProvisioner returns the name of the first provisioner of one-time tokens
// whose password the container has, and the path of the password; "" when there
// is none.
func (w *work) findProvisioner(home string) (name, password string, err error) {
	var candidates []string
	for _, file := range passwordFiles {
		candidates = append(candidates, path.Join(home, file))
	}
	for _, p := range w.files.tokens {
		if !nameForm.MatchString(p.name) {
			continue
		}
		answer, err := w.c.call("password", append([]string{p.encryptedKey}, candidates...)...)
		if err != nil {
			return "", "", err
		}
		if len(answer) == 1 && answer[0] != "-" {
			return p.name, answer[0], nil
		}
	}
	return "", "", nil
}

// complete gives ca.json what it lacks, which text has.
func (w *work) complete(text []byte, changes []string) error {
	if len(changes) > 0 {
		if _, err := w.c.call("keep", w.state.config); err != nil {
			return err
		}
		if _, err := w.c.call("changing"); err != nil {
			return err
		}
		if err := w.c.put(w.state.config, text); err != nil {
			return err
		}
		for _, change := range changes {
			w.changed("added to %s: %s", w.state.config, change)
		}
		w.Log("the former file is %s.before-phx", w.state.config)
	}
	if len(changes) > 0 || w.state.stale {
		if _, err := w.c.call("reload", w.Settings.URL(), w.rootFile); err != nil {
			return errors.Join(err, w.restore())
		}
	}
	return nil
}
