package remote

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Peer is the host's half, as seen from the container's.
type Peer struct {
	in    *bufio.Reader
	out   *json.Encoder
	notes notes
}

// NewPeer returns the peer that is read from in and written to out: stdin and
// stdout of the container's half.
func NewPeer(in io.Reader, out io.Writer) *Peer {
	return &Peer{in: bufio.NewReader(in), out: json.NewEncoder(out)}
}

// Ask asks the host for a need, once in a conversation, and stores the JSON value
// that it supplies in value, a pointer. The error may be that of the host: why it
// cannot supply it.
func (p *Peer) Ask(need string, value any) error {
	if err := p.out.Encode(message{Need: need}); err != nil {
		return err
	}
	line, err := readLine(p.in)
	if err != nil {
		return fmt.Errorf("ask the host for the %s: it %w", need, err)
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("ask the host for the %s: %w", need, err)
	}
	if r.Error != "" {
		return errors.New(r.Error)
	}
	return json.Unmarshal(r.Value, value)
}

// Tell tells the host something, and reports whether it has: there is a limit to
// what it would take, and it may be gone.
func (p *Peer) Tell(note Note) bool {
	note.Warning = cut(note.Warning, maxWarning)
	return p.notes.add(note) && p.out.Encode(message{Note: note}) == nil
}

// Answer ends the conversation. What is too long of a is cut.
func (p *Peer) Answer(a *Answer) error {
	a.shorten()
	return p.out.Encode(message{Answer: a})
}
