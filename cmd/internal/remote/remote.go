// Package remote is the conversation between the two halves of a program: one
// on the host, one in a container, over two pipes. It knows nothing of what
// connects them, nor of what either half does.
//
// The half in the container asks, one JSON line on stdout for each need:
// {"need":"request"}. The host supplies one JSON line on its stdin. The last
// line of the container's half is {"answer":{…}}. Messages for people go
// through stderr. The program itself is the first thing that may be asked
// for; it is sent as it is. While it works it may say what begins that takes time,
// {"stage":"packages"}, and what people should know, {"warning":"…"}; nothing is
// replied to that.
//
// The half in the container may be anybody: it asks for each thing once, its
// lines have a limit, as has what it says, and its answer is checked.
package remote

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of a conversation. An answer within them fits into an event, however
// its text has to be escaped there.
const (
	maxLine    = 1 << 20  // bytes of a line, in either direction
	maxNeeds   = 16       // things that the half in the container may ask for
	maxError   = 16 << 10 // bytes of Answer.Error
	maxChanges = 100      // of Answer.Changes
	maxChange  = 1 << 10  // bytes of one of them
	maxNotes   = 32       // stages that it may say, and warnings
	maxWarning = 1 << 10  // bytes of one of these
	maxAge     = 20 * 365 * 24 * time.Hour

	maxCertificates = 192 << 10 // bytes of Answer.Certificates, as JSON
	maxIssuer       = 64        // bytes of Certificate.Issuer, as X.509 has it
	maxCertError    = 512       // bytes of Certificate.Error
)

// Answer is what the container's half has done.
type Answer struct {
	Stage    string    `json:"stage,omitempty"` // where it failed
	Error    string    `json:"error,omitempty"` // why it failed; "" when it did not
	Names    []string  `json:"names"`           // the names that its certificates are for
	NotAfter time.Time `json:"not_after,omitzero"`
	Changed  bool      `json:"changed"`
	Changes  []string  `json:"changes"`

	Certificates []Certificate `json:"certificates,omitempty"` // that it has seen served
}

// Certificate is what a service shows for a name.
type Certificate struct {
	Name     string    `json:"name"`
	Issuer   string    `json:"issuer,omitempty"` // common name of the intermediate
	SHA256   string    `json:"sha256,omitempty"` // fingerprint
	NotAfter time.Time `json:"not_after,omitzero"`
	Error    string    `json:"error,omitempty"` // why it is none that verifies; "" when it does
}

// Short returns the certificate with what is too long of its words left out.
func (c Certificate) Short() Certificate {
	c.Issuer, c.Error = cut(c.Issuer, maxIssuer), cut(c.Error, maxCertError)
	c.NotAfter = c.NotAfter.UTC().Truncate(time.Second)
	return c
}

// Fit returns those of the certificates, shortened, for which an event has room:
// first those that do not verify, then those that expire first. They keep their
// order.
func Fit(all []Certificate) []Certificate {
	order := make([]int, len(all))
	short := slices.Clone(all)
	for i := range short {
		short[i] = short[i].Short()
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := short[i], short[j]
		if (a.Error == "") != (b.Error == "") {
			return cmp.Compare(b.Error, a.Error)
		}
		return a.NotAfter.Compare(b.NotAfter)
	})
	room := maxCertificates
	var kept []int
	for _, i := range order {
		text, err := json.Marshal(short[i])
		if room -= len(text) + 1; err != nil || room < 0 {
			break
		}
		kept = append(kept, i)
	}
	slices.Sort(kept)
	fit := make([]Certificate, 0, len(kept))
	for _, i := range kept {
		fit = append(fit, short[i])
	}
	return fit
}

// shorten brings the answer within the limits.
func (a *Answer) shorten() {
	a.Error = cut(a.Error, maxError)
	if len(a.Certificates) > 0 {
		a.Certificates = Fit(a.Certificates)
	}
	changes := append([]string{}, a.Changes[:min(len(a.Changes), maxChanges)]...)
	for i, change := range changes {
		changes[i] = cut(change, maxChange)
	}
	if more := len(a.Changes) - maxChanges; more > 0 {
		changes[maxChanges-1] = fmt.Sprintf("… (%d more)", more+1)
	}
	a.Changes = changes
}

// cut returns the beginning of text, and how much is left out.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const room = 32 // for what is said about it
	kept := strings.ToValidUTF8(text[:limit-room], "")
	return fmt.Sprintf("%s… (cut, %d bytes more)", kept, len(text)-len(kept))
}

// Note is what the container's half says while it works: one of the two.
type Note struct {
	Stage   string `json:"stage,omitempty"`   // what begins that takes time, in a few words
	Warning string `json:"warning,omitempty"` // what people should know of, and what is no failure
}

// notes are those of a conversation so far.
type notes struct{ stages, warnings int }

// add counts a note, and reports whether there may be as many of its kind.
func (n *notes) add(note Note) bool {
	count := &n.stages
	if note.Warning != "" {
		count = &n.warnings
	}
	*count++
	return *count <= maxNotes
}

// message is a line of the container's half: a note, a need, or the answer.
type message struct {
	Note
	Need   string  `json:"need,omitempty"`
	Answer *Answer `json:"answer,omitempty"`
}

// reply is a line of the host's half: one of the two.
type reply struct {
	Error string          `json:"error,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

// ErrEnded says that the other half ended before the conversation did.
var ErrEnded = errors.New("ended without an answer")

// readLine returns the next line. A line that is not ended is none.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, fmt.Errorf("sends a line longer than %d MiB", maxLine>>20)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, ErrEnded
		}
	}
}
