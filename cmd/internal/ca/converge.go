package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// Options are what [Converge] may do.
type Options struct {
	Settings *Settings // nil: look, and change nothing in the container
	Create   bool      // make a CA where there is none, or take over the one that was there

	// Accept allows the CA to have another root than the pinned one: "1" any,
	// else the one with this fingerprint.
	Accept string

	// Rotate is the step of a rotation of the root to take, "" for none; it
	// needs Settings. Taken returns an error unless everything that trusts the
	// CA has taken the roots with these fingerprints.
	Rotate string
	Taken  func(pins []string) error

	Log func(format string, args ...any)
}

// Result is what the CA is when [Converge] is done.
type Result struct {
	Pin     Pin
	Roots   []*x509.Certificate // those of the pin, in its order
	Changes []string            // in the container
	Rotated bool                // a step of the rotation was taken
	Refused error               // why it was not

	// What the container has to find the proxy by, as it is: the block of its
	// /etc/hosts, and the unit that pins its neighbours. Empty when missing.
	Hosts, Neighbours []byte
}

// StoreDir is the place of the store on a host.
func StoreDir(host *pve.Host) string { return filepath.Join(host.StateDir(), "ca") }

// Pinned returns the roots that are pinned on the host, for when the CA cannot
// be asked.
func Pinned(store *Store) (*Result, error) {
	pin, err := store.Pin()
	if err != nil {
		return nil, err
	}
	if pin == nil {
		return nil, errors.New("no root is pinned on this host yet")
	}
	r := &Result{Pin: *pin}
	return r, r.load(store)
}

func (r *Result) load(store *Store) error {
	r.Roots = nil
	for _, sum := range r.Pin.Pins() {
		root, err := store.Root(sum)
		if err != nil {
			return err
		}
		r.Roots = append(r.Roots, root)
	}
	return nil
}

// work is one conversation with the CA's container.
type work struct {
	Options
	store *Store
	c     *container
	state state
	pin   *Pin
	now   time.Time

	config  []byte // ca.json
	files   files
	root    string // place of the roots in the container
	have    []byte // what lies there
	changes []string
}

// Converge brings a CA's container and the pin on the host together, by one
// pct exec: what the container has is compared with the pin and with settings,
// and what differs is changed. A run that is killed is completed by the next
// one.
func Converge(ctx context.Context, host *pve.Host, ctid int, store *Store, o Options) (result *Result, err error) {
	pin, err := store.Pin()
	if err != nil {
		return nil, err
	}
	c, err := open(ctx, host, ctid)
	if err != nil {
		return nil, err
	}
	defer func() { c.end(err) }()
	w := &work{Options: o, store: store, c: c, pin: pin, now: time.Now()}
	return w.run()
}

// run has the whole conversation.
func (w *work) run() (result *Result, err error) {
	c := w.c
	if w.state, err = c.look(); err != nil {
		return nil, err
	}
	if w.state.finished {
		w.changed("finished an interrupted run: the CA is in place")
	}
	if err := w.find(); err != nil {
		return nil, err
	}
	if err := w.read(); err != nil {
		return nil, err
	}
	if err := w.checkPin(); err != nil {
		return nil, err
	}
	rotated := false
	var refused error
	if w.Rotate != "" {
		rotated, refused = w.rotate()
	}
	if w.Settings != nil && w.state.kind == kindOwn {
		if err := w.converge(); err != nil {
			return nil, err
		}
	}
	result = &Result{Pin: *w.pin, Changes: w.changes, Rotated: rotated, Refused: refused}
	// What cannot be read is as good as missing: it is written anew.
	if hosts, err := c.read("/etc/hosts"); err == nil {
		result.Hosts = hostsBlockOf(hosts)
	}
	if unit, err := c.read(guest.NeighbourFile); err == nil {
		result.Neighbours = unit
	}
	return result, result.load(w.store)
}

func (w *work) changed(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.changes = append(w.changes, text)
	w.Log("%s", text)
}

// find makes sure that there is a CA.
func (w *work) find() error {
	switch kind := w.state.kind; {
	case kind == kindOwn, kind == kindAdopted:
		return nil
	case kind == kindNone && w.Create:
		return w.create()
	case kind == kindFound && w.Create:
		return w.adopt()
	case kind == kindNone:
		return errors.New("there is no CA in the container: the feature step_ca makes it; remove the line phx: … from the notes of the container to have it run again")
	case kind == kindFound:
		return fmt.Errorf("there is a CA at %s, which phx has not taken over: the feature step_ca does that", short(w.state.config))
	case kind == kindSeveral:
		return fmt.Errorf("there is more than one CA: %s, and none is run by step-ca.service: phx takes none of them and makes no other: let step-ca.service name the one to use, or move the others away", short(w.state.config))
	case kind == kindLost:
		return fmt.Errorf("there was a CA, and %s is missing: bring its files back from a backup, or move what is left away, with step-ca.service, for a new one", short(w.state.config))
	}
	return fmt.Errorf("not an answer: a CA of the kind %q", short(w.state.kind))
}

// create makes the CA. The host has a root before the container has a CA.
func (w *work) create() error {
	if w.pin != nil {
		if _, err := w.store.Signer(w.pin.Primary); errors.Is(err, fs.ErrNotExist) {
			if w.Accept != "1" {
				return fmt.Errorf("the CA that this host has pinned is gone with its container, which had the only key of its root, SHA-256 %s: bring the container back from a backup, or have a new root made, which everything has to trust anew: PHX_ACCEPT_NEW_ROOT=1", w.pin.Primary)
			}
			w.Log("the root %s is given up", w.pin.Primary)
			w.pin = nil
		} else if err != nil {
			return err
		}
	}
	if w.pin == nil {
		root, err := w.store.NewRoot()
		if err != nil {
			return fmt.Errorf("make a root: %w", err)
		}
		w.pin = &Pin{Primary: cert.Fingerprint(root)}
		if err := w.store.SetPin(*w.pin); err != nil {
			return err
		}
		w.Log("made the root %s; its key is in %s, for root alone", w.pin.Primary, w.store.Dir)
	}
	root, signer, err := w.signer()
	if err != nil {
		return err
	}
	s := *w.Settings
	config, err := w.c.file("make", strconv.Itoa(s.Port), strings.Join(s.serverNames(), ","))
	if err != nil {
		return err
	}
	text, _, err := editConfig(config, s, intermediatePath, keyPath)
	if err != nil {
		return fmt.Errorf("the ca.json of step ca init: %w", err)
	}
	fresh := func(path string) string { return Home + "/.new" + strings.TrimPrefix(path, Home) }
	request, err := w.c.file("csr", fresh(keyPath))
	if err != nil {
		return err
	}
	intermediate, err := signIntermediate(request, s, root, signer, w.now)
	if err != nil {
		return err
	}
	roots, err := w.roots()
	if err != nil {
		return err
	}
	defaults, err := json.MarshalIndent(map[string]string{"ca-url": s.URL(), "root": rootPath}, "", "\t")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{
		{intermediatePath, cert.Encode(intermediate)},
		{rootPath, roots},
		{Home + "/config/defaults.json", append(defaults, '\n')},
		{configPath, text},
	} {
		if err := w.c.put(fresh(f.path), f.data); err != nil {
			return err
		}
	}
	if _, err := w.c.call("ready"); err != nil {
		return err
	}
	w.state, err = w.c.look()
	if err == nil && w.state.kind != kindOwn {
		err = fmt.Errorf("the new CA is not there: the container now has one of the kind %q", short(w.state.kind))
	}
	w.changed("made the CA for %s, below the root %s", s.Domain, w.pin.Primary)
	return err
}

// roots are the roots of the pin, as the container has them.
func (w *work) roots() ([]byte, error) {
	r := Result{Pin: *w.pin}
	if err := r.load(w.store); err != nil {
		return nil, err
	}
	return cert.Encode(r.Roots...), nil
}

// signer returns the root in use and its key.
func (w *work) signer() (*x509.Certificate, crypto.Signer, error) {
	root, err := w.store.Root(w.pin.Primary)
	if err != nil {
		return nil, nil, err
	}
	signer, err := w.store.Signer(w.pin.Primary)
	return root, signer, err
}

// read reads what the CA is.
func (w *work) read() (err error) {
	if w.config, err = w.c.read(w.state.config); err != nil {
		return err
	}
	if w.config == nil {
		return fmt.Errorf("%s is missing: bring it back from a backup", short(w.state.config))
	}
	if w.files, err = filesOf(w.config); err != nil {
		return fmt.Errorf("%s: %w", short(w.state.config), err)
	}
	if w.root = w.files.root; !strings.HasPrefix(w.root, "/") {
		return fmt.Errorf("%s: its root %q is not an absolute path", short(w.state.config), short(w.root))
	}
	w.have, err = w.c.read(w.root)
	return err
}

// checkPin compares the CA's root with the pinned one. The first one to be
// seen is pinned: it comes by pct exec, and the host is trusted.
func (w *work) checkPin() error {
	roots, err := cert.ParseRoots(w.have)
	if err != nil {
		if w.mayReissue() {
			return nil // its file is lost or damaged, and is made anew
		}
		return fmt.Errorf("%s: %w", short(w.root), err)
	}
	have := cert.Fingerprint(roots[0])
	switch {
	case w.pin == nil:
		w.Log("pinned the root %s", have)
	case slices.Contains(w.pin.Pins(), have), have == w.pin.Dropped && w.mayReissue():
		return nil
	case w.Accept == "1" || w.Accept == have:
		w.Log("accepted the root %s in place of %s", have, w.pin.Primary)
	default:
		return fmt.Errorf("the CA has another root than the one that this host has pinned: SHA-256 %s, pinned %s: if you have not replaced the CA, look into its container; if you have, run again with PHX_ACCEPT_NEW_ROOT=%s", have, w.pin.Primary, have)
	}
	if err := w.store.Keep(roots[0]); err != nil {
		return err
	}
	w.pin = &Pin{Primary: have}
	return w.store.SetPin(*w.pin)
}

// rotate takes a step of a rotation of the root: it changes the pin, and all
// else follows from that, now or in a later run.
func (w *work) rotate() (changed bool, err error) {
	if w.state.kind != kindOwn {
		return false, errors.New("this CA was there before phx, which does not change its keys: rotate it by hand, then have its new root accepted with PHX_ACCEPT_NEW_ROOT=FINGERPRINT")
	}
	next := *w.pin
	switch at := w.pin.Step; {
	case w.Rotate == at, w.Rotate == StepDrop && at == "" && w.pin.Dropped != "":
		return false, nil
	case w.Rotate == StepTrust && at == "":
		if w.pin.Dropped != "" { // a run that was killed may have left its key
			if err := w.store.Remove(w.pin.Dropped); err != nil {
				return false, err
			}
		}
		root, err := w.store.NewRoot()
		if err != nil {
			return false, fmt.Errorf("make a root: %w", err)
		}
		next = Pin{Primary: w.pin.Primary, Also: cert.Fingerprint(root), Step: StepTrust}
		w.Log("rotation of the root: %s is trusted beside %s", next.Also, next.Primary)
	case w.Rotate == StepCertificates && at == StepTrust:
		next = Pin{Primary: w.pin.Also, Also: w.pin.Primary, Step: StepCertificates}
		w.Log("rotation of the root: certificates come from %s", next.Primary)
	case w.Rotate == StepDrop && at == StepCertificates:
		next = Pin{Primary: w.pin.Primary, Dropped: w.pin.Also}
		w.Log("rotation of the root: %s is dropped", next.Dropped)
	case w.Rotate == StepTrust:
		return false, errors.New("certificates come from the new root already: the next step is drop")
	case at == "" && (w.Rotate == StepCertificates || w.Rotate == StepDrop):
		return false, errors.New("no rotation is under way: its first step is trust")
	case w.Rotate == StepDrop:
		return false, errors.New("certificates still come from the old root: the next step is certificates")
	default:
		return false, errors.New("the steps are trust, certificates, drop")
	}
	if w.Rotate != StepTrust {
		if err := w.Taken(w.pin.Pins()); err != nil {
			return false, err
		}
	}
	w.pin = &next
	return true, w.store.SetPin(next)
}

// mayReissue reports whether the host can give the CA its certificates again.
func (w *work) mayReissue() bool {
	if w.pin == nil || w.Settings == nil || w.state.kind != kindOwn {
		return false
	}
	_, err := w.store.Signer(w.pin.Primary)
	return err == nil
}

// converge brings a CA of phx's own to what pin and settings ask for. All that
// counts for the running service is one file, ca.json, and what it names; the
// roots change before it when there are others, after it when only their order
// does.
func (w *work) converge() error {
	s := *w.Settings
	wantRoots, err := w.roots()
	if err != nil {
		return err
	}
	root, signer, err := w.signer()
	own := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	certificate, key := "", ""
	if own {
		why, err := w.intermediate(root)
		if err != nil {
			return err
		}
		if why != "" {
			if certificate, key, err = w.reissue(root, signer, why); err != nil {
				return err
			}
		}
	}
	text, changes, err := editConfig(w.config, s, certificate, key)
	if err != nil {
		return fmt.Errorf("%s: %w", w.state.config, err)
	}
	newRoots := !bytes.Equal(wantRoots, w.have)
	if len(changes) > 0 || newRoots {
		err := w.apply(text, wantRoots, sameRoots(wantRoots, w.have))
		if err != nil {
			return errors.Join(err, w.back())
		}
		if newRoots {
			changes = append(changes, "roots")
		}
		w.changed("changed the CA's %s", strings.Join(changes, ", "))
		if w.files, err = filesOf(text); err != nil {
			return err
		}
	} else if w.state.stale {
		if _, err := w.c.call("reload", s.URL(), w.root); err != nil {
			return err
		}
		w.changed("had the CA take what an interrupted run had changed")
	}
	if !own {
		if w.Create && w.state.rootKey {
			w.Log("the key of this CA's root is in its container; a rotation of the root moves it out: PHX_ROTATE_ROOT=trust, then certificates, then drop")
		}
		return nil
	}
	if life := root.NotAfter.Sub(w.now); life < renewBefore {
		w.Log("the root expires on %s: rotate it: PHX_ROTATE_ROOT=trust", root.NotAfter.Format(time.DateOnly))
	}
	if w.pin.Step == "" {
		return w.tidy()
	}
	return nil
}

// intermediate says why the CA's intermediate has to be replaced, "" when it
// has not.
func (w *work) intermediate(root *x509.Certificate) (string, error) {
	if !strings.HasPrefix(w.files.intermediate, w.state.home+"/") || !strings.HasPrefix(w.files.key, w.state.home+"/") {
		return "", fmt.Errorf("%s: the intermediate is not below %s", w.state.config, w.state.home)
	}
	data, err := w.c.read(w.files.intermediate)
	if err != nil {
		return "", err
	}
	all, err := cert.ParseChain(data)
	if err != nil {
		return "it cannot be read", nil
	}
	return misfit(all[0], *w.Settings, root, w.now), nil
}

// reissue has the CA get another certificate for its intermediate, beside the
// one in use, and returns the places of certificate and key. Below another
// root it has another key.
func (w *work) reissue(root *x509.Certificate, signer crypto.Signer, why string) (certificate, key string, err error) {
	key = w.files.key
	if data, err := w.c.read(w.files.intermediate); err == nil {
		if all, err := cert.ParseChain(data); err == nil && !signedBy(all[0], root) {
			key = fmt.Sprintf("%s/secrets/intermediate_ca-%.8s_key", w.state.home, w.pin.Primary)
		}
	}
	request, err := w.c.file("csr", key)
	if err != nil {
		return "", "", err
	}
	c, err := signIntermediate(request, *w.Settings, root, signer, w.now)
	if err != nil {
		return "", "", err
	}
	certificate = fmt.Sprintf("%s/certs/intermediate_ca-%.8s.crt", w.state.home, cert.Fingerprint(c))
	w.Log("the intermediate is replaced: %s", why)
	return certificate, key, w.c.put(certificate, cert.Encode(c))
}

// sameRoots reports whether two files of roots differ in their order at most.
func sameRoots(a, b []byte) bool {
	x, err1 := cert.ParseRoots(a)
	y, err2 := cert.ParseRoots(b)
	if err1 != nil || err2 != nil || len(x) != len(y) {
		return false
	}
	for _, c := range x {
		if !slices.ContainsFunc(y, c.Equal) {
			return false
		}
	}
	return true
}

func (w *work) apply(config, roots []byte, rootsLast bool) error {
	if _, err := w.c.call("changing"); err != nil {
		return err
	}
	if !rootsLast {
		if err := w.c.put(w.root, roots); err != nil {
			return err
		}
	}
	if !bytes.Equal(config, w.config) {
		if err := w.c.put(w.state.config, config); err != nil {
			return err
		}
	}
	if _, err := w.c.call("reload", w.Settings.URL(), w.root); err != nil {
		return err
	}
	if rootsLast {
		return w.c.put(w.root, roots)
	}
	return nil
}

// back puts the former files in place again, after step-ca has not come up
// with others.
func (w *work) back() error {
	if err := w.c.put(w.state.config, w.config); err != nil {
		return err
	}
	if len(w.have) > 0 {
		if err := w.c.put(w.root, w.have); err != nil {
			return err
		}
	}
	former := *w.Settings
	if w.state.kind == kindOwn { // where it was is not where it should be
		former.Addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if _, port, ok := strings.Cut(w.files.address, ":"); ok {
			former.Port, _ = strconv.Atoi(port)
		}
	}
	if _, err := w.c.call("reload", former.URL(), w.root); err != nil {
		return fmt.Errorf("with its former configuration: %w", err)
	}
	return errors.New("the former configuration is in place again")
}

// tidy removes what no rotation needs any more: former intermediates, and the
// key of a root that is in use no longer or whose key is on the host.
func (w *work) tidy() error {
	remove := func(path string) error {
		if _, err := w.c.call("remove", path); err != nil {
			return err
		}
		w.changed("removed %s", short(path))
		return nil
	}
	for _, path := range w.state.intermediates {
		if path != w.files.intermediate && path != w.files.key {
			if err := remove(path); err != nil {
				return err
			}
		}
	}
	if w.state.rootKey {
		if err := remove(w.state.home + "/secrets/root_ca_key"); err != nil {
			return err
		}
	}
	if w.pin.Dropped == "" {
		return nil
	}
	return w.store.Remove(w.pin.Dropped)
}

var nameForm = regexp.MustCompile(`^[[:print:]]+$`)

// adopt takes over the CA that was there before phx: nothing of it is
// replaced, and what its ca.json lacks is added, with a copy beside it.
func (w *work) adopt() error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("the CA at %s cannot be taken over: %w: set that right, or, for a new CA, move %s away and disable step-ca.service",
			short(w.state.config), fmt.Errorf(format, args...), short(w.state.config))
	}
	if err := w.read(); err != nil {
		return refuse("%w", err)
	}
	if _, err := cert.ParseRoots(w.have); err != nil {
		return refuse("its root %s: %w", short(w.root), err)
	}
	if err := w.checkPin(); err != nil {
		return err
	}
	if w.files.adminAPI {
		return refuse("its provisioners are kept in its database (enableAdmin)")
	}
	if _, port, ok := strings.Cut(w.files.address, ":"); !ok || port != strconv.Itoa(w.Settings.Port) {
		return refuse("it listens at %q, and traefik_service says port %d", short(w.files.address), w.Settings.Port)
	}
	home := path.Dir(w.state.config)
	if path.Base(home) == "config" {
		home = path.Dir(home)
	}
	var candidates []string
	for _, name := range []string{
		"provisioner_password.txt", "secrets/provisioner_password", "secrets/provisioner_password.txt", "config/provisioner_password.txt",
		"password.txt", "secrets/password.txt", "secrets/password", "ca_password.txt", "secrets/ca_password", "config/password.txt",
	} {
		candidates = append(candidates, path.Join(home, name))
	}
	name, password := "", ""
	for _, p := range w.files.tokens {
		if !nameForm.MatchString(p.name) {
			continue
		}
		answer, err := w.c.call("password", append([]string{p.encryptedKey}, candidates...)...)
		if err != nil {
			return err
		}
		if len(answer) == 1 && answer[0] != "-" {
			name, password = p.name, answer[0]
			break
		}
	}
	if name == "" {
		return refuse("no JWK provisioner whose password lies in %s/provisioner_password.txt or another usual place", home)
	}
	text, changes, err := completeConfig(w.config, *w.Settings)
	if err != nil {
		return refuse("%w", err)
	}
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
		if _, err := w.c.call("reload", w.Settings.URL(), w.root); err != nil {
			return errors.Join(err, w.back())
		}
	}
	if _, err := w.c.call("link", w.root, rootPath); err != nil {
		return err
	}
	note := fmt.Sprintf("# The CA that was here before phx. Written and read by phx.\nSTEPPATH=%s\nCONFIG=%s\nROOT=%s\nPROVISIONER=%s\nPASSWORD=%s\n",
		home, w.state.config, w.root, name, password)
	if _, err := w.c.call("adopt", base64.StdEncoding.EncodeToString([]byte(note))); err != nil {
		return err
	}
	w.state.kind = kindAdopted
	w.changed("took over the CA at %s as it is, with its root and its keys; tokens come from its provisioner %q", w.state.config, short(name))
	return nil
}
