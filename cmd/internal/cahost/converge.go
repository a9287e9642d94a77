// Package cahost is the host's half of the CA: the root's key and the pin in
// phx's state directory, and [Converge], which brings them and the CA's
// container together. It knows nothing of events, and nothing of those who
// trust the CA but what they have noted with [WriteTaken].
//
// The root's key never enters the container. There the intermediate's key is
// made, and its certificate is requested from the host.
package cahost

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// Options are what [Converge] may do.
type Options struct {
	Settings *ca.Settings // nil: look, and change nothing in the container
	Create   bool         // make a CA where there is none, or take over the one that was there

	// Accept allows the CA to have another root than the pinned one: "1" any,
	// else the one with this fingerprint.
	Accept string

	// Rotate is the step of a rotation of the root to take, "" for none; it
	// needs Settings. Taken returns an error unless everything that trusts the
	// CA has taken the roots with these fingerprints.
	Rotate string
	Taken  func(pins []string) error

	// Log gets messages for people: what is changed, and what should be done. Warn,
	// if set, gets in its place what people should know of and what is no failure.
	Log, Warn func(format string, args ...any)

	// Early is for a CA on which others may be at work: it is only read, and refused
	// with [ErrEarly] where it does not say that it is well at its URL, where something
	// is to be changed, which may restart it, and for whatever else. It needs Settings.
	Early bool

	// Begins, if set, is told of what begins in the container that takes time.
	Begins func(stage string)
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

// Pinned returns the roots that are pinned on the host, for when the CA cannot
// be asked. All else in the result is empty.
func Pinned(store *Store) (*Result, error) {
	pin, err := store.Pin()
	if err != nil {
		return nil, err
	}
	if pin == nil {
		return nil, errors.New("no root is pinned on this host yet")
	}
	roots, err := store.roots(*pin)
	return &Result{Pin: *pin, Roots: roots}, err
}

// ErrEarly is the error of [Converge] for what is to be done when nobody else is at
// work on the CA any more.
var ErrEarly = errors.New("it is too early for more than to read")

// Converge brings a CA's container and the pin on the host together, by one
// pct exec: what the container has is compared with the pin and with settings,
// and what differs is changed. A run that is killed is completed by the next
// one.
func Converge(ctx context.Context, host *pve.Host, ctid int, store *Store, o Options) (result *Result, err error) {
	pin, err := store.Pin()
	if err != nil {
		return nil, err
	}
	c, err := open(ctx, host, ctid, convergeLimit)
	if err != nil {
		return nil, err
	}
	defer func() { c.end(err) }()
	c.begins, c.readOnly = o.Begins, o.Early
	w := &work{Options: o, store: store, c: c, pin: pin, now: time.Now()}
	result, err = w.run()
	if err != nil && o.Early {
		return nil, ErrEarly
	}
	return result, err
}

// work is what one call of [Converge] does, and what it has seen.
type work struct {
	Options
	store *Store
	c     *container
	pin   *Pin // nil when nothing is pinned yet
	now   time.Time

	state     state  // of the container
	config    []byte // ca.json
	files     files  // that it names
	rootFile  string // path of the roots in the container
	haveRoots []byte // what lies there
	changes   []string
}

// run has the whole conversation.
func (w *work) run() (result *Result, err error) {
	c := w.c
	look := "look"
	if w.Early {
		look = "peek"
	}
	if w.state, err = c.look(look); err != nil {
		return nil, err
	}
	if w.state.finished {
		w.changed("finished an interrupted run: the CA is in place")
	}
	if err := w.ensureCA(); err != nil {
		return nil, err
	}
	if err := w.read(); err != nil {
		return nil, err
	}
	if w.Early {
		if _, err := c.call("health", w.Settings.URL(), w.rootFile); err != nil {
			return nil, err
		}
		if w.Rotate != "" || w.pin == nil {
			return nil, ErrEarly
		}
	}
	if err := w.checkPin(); err != nil {
		return nil, err
	}
	rotated := false
	var refused error
	if w.Rotate != "" {
		rotated, refused = w.rotate()
	}
	if w.Settings != nil && w.Settings.Names == nil {
		settings := keepRest(w.config, *w.Settings)
		w.Settings = &settings
	}
	if w.Settings != nil && w.state.kind == kindOwn {
		if err := w.update(); err != nil {
			return nil, err
		}
	}
	if w.Settings != nil && w.state.kind == kindAdopted {
		text, changes, err := completeConfig(w.config, *w.Settings, false)
		if err == nil {
			err = w.complete(text, changes)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", short(w.state.config), err)
		}
	}
	result = &Result{Pin: *w.pin, Changes: w.changes, Rotated: rotated, Refused: refused}
	// What cannot be read counts as missing: it is written again.
	if hosts, err := c.read("/etc/hosts"); err == nil {
		result.Hosts = ca.HostsBlockOf(hosts)
	}
	if unit, err := c.read(guest.NeighbourFile); err == nil {
		result.Neighbours = unit
	}
	result.Roots, err = w.store.roots(*w.pin)
	return result, err
}

// changed notes a change in the container, and logs it.
func (w *work) changed(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.changes = append(w.changes, text)
	w.Log("%s", text)
}

func (w *work) warn(format string, args ...any) {
	if w.Warn == nil {
		w.Log(format, args...)
		return
	}
	w.Warn(format, args...)
}

// ensureCA makes sure that there is a CA.
func (w *work) ensureCA() error {
	switch kind := w.state.kind; {
	case kind == kindOwn, kind == kindAdopted:
		return nil
	case w.Early:
		return ErrEarly
	case kind == kindNone && w.Create:
		return w.create()
	case kind == kindFound && w.Create:
		return w.adopt()
	case kind == kindNone:
		return errors.New("there is no CA in the container: the feature step_ca makes it; " +
			"remove the line phx: … from the notes of the container to have it run again")
	case kind == kindFound:
		return fmt.Errorf("there is a CA at %s, which phx has not taken over: the feature step_ca does that",
			short(w.state.config))
	case kind == kindSeveral:
		return fmt.Errorf("there is more than one CA: %s, and none is run by step-ca.service: "+
			"phx takes none of them and makes no other: "+
			"let step-ca.service name the one to use, or move the others away", short(w.state.config))
	case kind == kindLost:
		return fmt.Errorf("there was a CA, and %s is missing: bring its files back from a backup, "+
			"or move what is left away, with step-ca.service, for a new one", short(w.state.config))
	}
	return fmt.Errorf("not an answer: a CA of the kind %q", short(w.state.kind))
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
	if w.rootFile = w.files.root; !strings.HasPrefix(w.rootFile, "/") {
		return fmt.Errorf("%s: its root %q is not an absolute path", short(w.state.config), short(w.rootFile))
	}
	w.haveRoots, err = w.c.read(w.rootFile)
	return err
}

// checkPin compares the CA's root with the pinned one. The first one to be
// seen is pinned: it comes by pct exec, and the host is trusted.
func (w *work) checkPin() error {
	roots, err := cert.ParseRoots(w.haveRoots)
	if err != nil {
		if w.mayReissue() {
			return nil // its file is lost or damaged, and is written again
		}
		return fmt.Errorf("%s: %w", short(w.rootFile), err)
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
		return fmt.Errorf("the CA has another root than the one that this host has pinned: SHA-256 %s, pinned %s: "+
			"if you have not replaced the CA, look into its container; "+
			"if you have, run again with PHX_ACCEPT_NEW_ROOT=%s", have, w.pin.Primary, have)
	}
	if err := w.store.Keep(roots[0]); err != nil {
		return err
	}
	w.pin = &Pin{Primary: have}
	return w.store.SetPin(*w.pin)
}

// wantRoots returns the roots of the pin, as the container has them.
func (w *work) wantRoots() ([]byte, error) {
	roots, err := w.store.roots(*w.pin)
	return cert.Encode(roots...), err
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

// mayReissue reports whether the host can give the CA its certificates again.
func (w *work) mayReissue() bool {
	if w.pin == nil || w.Settings == nil || w.state.kind != kindOwn {
		return false
	}
	_, err := w.store.Signer(w.pin.Primary)
	return err == nil
}

// update brings a CA of phx's own to what pin and settings ask for. All that
// counts for the running service is one file, ca.json, and what it names; the
// roots change before it when there are others, after it when only their order
// does.
func (w *work) update() error {
	wantRoots, err := w.wantRoots()
	if err != nil {
		return err
	}
	root, err := w.store.Root(w.pin.Primary)
	if err != nil {
		return err
	}
	hasKey, err := w.store.HasKey(w.pin.Primary) // not of a CA whose root phx has not made
	if err != nil {
		return err
	}
	certificate, key := "", ""
	if hasKey {
		if certificate, key, err = w.renewIntermediate(root); err != nil {
			return err
		}
	}
	if err := w.change(wantRoots, certificate, key); err != nil {
		return err
	}
	if !hasKey {
		if w.Create && w.state.rootKey {
			w.warn("the key of this CA's root is in its container; a rotation of the root moves it out: " +
				"PHX_ROTATE_ROOT=trust, then certificates, then drop")
		}
		return nil
	}
	if life := root.NotAfter.Sub(w.now); life < renewBefore {
		w.warn("the root expires on %s: rotate it: PHX_ROTATE_ROOT=trust", root.NotAfter.Format(time.DateOnly))
	}
	if w.pin.Step == "" {
		return w.removeLeftovers()
	}
	return nil
}

// change gives the CA these roots and, unless they are "", the intermediate and
// key at these places, and has it take what has changed.
func (w *work) change(roots []byte, certificate, key string) error {
	text, changes, err := editConfig(w.config, *w.Settings, certificate, key)
	if err != nil {
		return fmt.Errorf("%s: %w", w.state.config, err)
	}
	newRoots := !bytes.Equal(roots, w.haveRoots)
	if len(changes) == 0 && !newRoots {
		if !w.state.stale {
			return nil
		}
		if _, err := w.c.call("reload", w.Settings.URL(), w.rootFile); err != nil {
			return err
		}
		w.changed("had the CA take what an interrupted run had changed")
		return nil
	}
	if err := w.install(text, roots, sameRoots(roots, w.haveRoots)); err != nil {
		return errors.Join(err, w.restore())
	}
	if newRoots {
		changes = append(changes, "roots")
	}
	w.changed("changed the CA's %s", strings.Join(changes, ", "))
	w.files, err = filesOf(text)
	return err
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

// install writes ca.json and the roots, and has the service take them.
func (w *work) install(config, roots []byte, rootsLast bool) error {
	if _, err := w.c.call("changing"); err != nil {
		return err
	}
	if !rootsLast {
		if err := w.c.put(w.rootFile, roots); err != nil {
			return err
		}
	}
	if !bytes.Equal(config, w.config) {
		if err := w.c.put(w.state.config, config); err != nil {
			return err
		}
	}
	if _, err := w.c.call("reload", w.Settings.URL(), w.rootFile); err != nil {
		return err
	}
	if rootsLast {
		return w.c.put(w.rootFile, roots)
	}
	return nil
}

// restore puts the former files in place again, after step-ca has not come up
// with others. It returns an error in any case.
func (w *work) restore() error {
	if err := w.c.put(w.state.config, w.config); err != nil {
		return err
	}
	if len(w.haveRoots) > 0 {
		if err := w.c.put(w.rootFile, w.haveRoots); err != nil {
			return err
		}
	}
	former := *w.Settings
	if w.state.kind == kindOwn { // where it was is not where it should be
		former.Addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if _, port, err := net.SplitHostPort(w.files.address); err == nil {
			former.Port, _ = strconv.Atoi(port)
		}
	}
	if _, err := w.c.call("reload", former.URL(), w.rootFile); err != nil {
		return fmt.Errorf("with its former configuration: %w", err)
	}
	return errors.New("the former configuration is in place again")
}

// removeLeftovers removes what no rotation needs any more: former
// intermediates, and the key of a root that is in use no longer or whose key is
// on the host.
func (w *work) removeLeftovers() error {
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
