package cahost

import (
	"errors"
	"fmt"

	"thinkheads.ai/phx/cmd/internal/cert"
)

// rotate takes a step of a rotation of the root: it changes the pin, and all
// else follows from that, now or in a later run.
func (w *work) rotate() (changed bool, err error) {
	if w.state.kind != kindOwn {
		return false, errors.New("this CA was there before phx, which does not change its keys: " +
			"rotate it by hand, then have its new root accepted with PHX_ACCEPT_NEW_ROOT=FINGERPRINT")
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
