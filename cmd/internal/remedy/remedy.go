// Package remedy is for errors that say what to do about them apart from what is
// wrong: a message has both, and an event has a field for each.
//
// It must not know what can be wrong.
package remedy

import (
	"errors"
	"fmt"
	"strings"
)

// Error is an error with what to do about it. Its text is "WHAT: REMEDY".
type Error struct {
	What   error
	Remedy string
}

func (e *Error) Error() string { return e.What.Error() + ": " + e.Remedy }

func (e *Error) Unwrap() error { return e.What }

// Errorf returns an [Error] with the remedy, and with a format and its arguments
// as in [fmt.Errorf] for what is wrong.
func Errorf(remedy, format string, args ...any) error {
	return &Error{What: fmt.Errorf(format, args...), Remedy: remedy}
}

// Split returns what is wrong according to an error, and what to do about it, ""
// where the error has no [Error] at its end.
func Split(err error) (what, remedy string) {
	what = err.Error()
	if e, ok := errors.AsType[*Error](err); ok {
		if rest, isLast := strings.CutSuffix(what, ": "+e.Remedy); isLast {
			return rest, e.Remedy
		}
	}
	return what, ""
}

// Each returns the errors that [errors.Join] has joined to err, in order; none for
// nil.
func Each(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, err := range joined.Unwrap() {
		all = append(all, Each(err)...)
	}
	return all
}

// unquoted are the characters that mean nothing to a shell.
const unquoted = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:,./@%"

// Quote joins the words of a command as a shell would read them.
func Quote(argv []string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		if w == "" || strings.Trim(w, unquoted) != "" {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}
