// Package remote connects the two halves of a program: one on the host, one
// in a container, over the stdin and stdout of a single pct exec.
//
// The half in the container asks, one JSON line on stdout for each need:
// {"need":"request"}. The host supplies one JSON line on its stdin. The last
// line of the container's half is {"answer":{…}}. Messages for people go
// through stderr. The program itself is the first thing that may be asked
// for; it is sent as it is, and kept in /usr/local/bin, so that it travels
// only when it has changed.
package remote

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"thinkheads.ai/phx/cmd/internal/pct"
)

// Answer is what the container's half has done.
type Answer struct {
	Stage    string    `json:"stage,omitempty"` // where it failed
	Error    string    `json:"error,omitempty"` // why it failed; "" when it did not
	Names    []string  `json:"names"`           // the names that its certificates are for
	NotAfter time.Time `json:"not_after,omitzero"`
	Changed  bool      `json:"changed"`
	Changes  []string  `json:"changes"`
}

type message struct {
	Need   string  `json:"need,omitempty"`
	Answer *Answer `json:"answer,omitempty"`
}

type reply struct {
	Error string          `json:"error,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

// boot puts the program in place if it is not there yet, and becomes its
// half in the container. Its arguments: name, SHA-256, size in bytes.
const boot = `set -eu
program=/usr/local/bin/$1 sum=$2 size=$3
if ! echo "$sum  $program" | sha256sum --check --status 2>/dev/null; then
	echo '{"need":"program"}'
	umask 077
	new=$(mktemp "$program.XXXXXX")
	trap 'rm -f "$new"' EXIT
	head -c "$size" >"$new"
	echo "$sum  $new" | sha256sum --check --status || { echo "the transfer of $1 broke off" >&2; exit 1; }
	chmod 0755 "$new"
	mv -f "$new" "$program"
	trap - EXIT
	umask 022
fi
export HOME=/root
exec "$program" apply --request -`

// Call runs the container's half of this program in a container and returns
// its answer, of which Error may be set. supply returns the JSON value of each
// need; its error is told to the other half, whose answer then follows.
// log gets the other half's messages.
func Call(ctx context.Context, host *pct.Host, ctid int, supply func(need string) (any, error), log io.Writer) (*Answer, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(program)
	name := filepath.Base(path)

	cmd := host.Exec(ctid, "/bin/sh", "-c", boot, "sh", name, hex.EncodeToString(sum[:]), strconv.Itoa(len(program)))
	cmd.Label = fmt.Sprintf("pct exec %d (%s apply)", ctid, name)
	cmd.Stderr = log

	// Pipes of the system, not of Go: each side then sees the other one end.
	stdin, toContainer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer toContainer.Close()
	fromContainer, stdout, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return nil, err
	}
	defer fromContainer.Close()
	cmd.Stdin, cmd.Stdout = stdin, stdout

	ended := make(chan error, 1)
	go func() {
		_, err := host.Run(ctx, cmd)
		stdin.Close()
		stdout.Close()
		ended <- err
	}()
	answer, talkErr := talk(fromContainer, toContainer, program, supply)
	toContainer.Close()
	if err := <-ended; err != nil && answer == nil {
		return nil, err
	}
	if answer == nil {
		return nil, fmt.Errorf("%s: %w", cmd.Label, talkErr)
	}
	return answer, nil
}

// talk answers the needs of the container's half until its answer has come.
func talk(in io.Reader, out io.Writer, program []byte, supply func(string) (any, error)) (*Answer, error) {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil, errors.New("ended without an answer")
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("not an answer: %.100q", line)
		}
		switch {
		case m.Answer != nil:
			return m.Answer, nil
		case m.Need == "program":
			_, err = out.Write(program)
		default:
			err = send(out, m.Need, supply)
		}
		if err != nil {
			// The other half is gone; what it said on stderr tells why.
			return nil, err
		}
	}
}

func send(out io.Writer, need string, supply func(string) (any, error)) error {
	var r reply
	value, err := supply(need)
	if err == nil {
		r.Value, err = json.Marshal(value)
	}
	if err != nil {
		r = reply{Error: err.Error()}
	}
	return json.NewEncoder(out).Encode(r)
}

// Peer is the host's half, as seen from the container.
type Peer struct {
	in  *json.Decoder
	out *json.Encoder
}

// NewPeer returns the peer that reads and writes these two, stdin and stdout.
func NewPeer(in io.Reader, out io.Writer) *Peer {
	return &Peer{json.NewDecoder(in), json.NewEncoder(out)}
}

// Ask asks the host for a need and stores what it supplies in value.
func (p *Peer) Ask(need string, value any) error {
	if err := p.out.Encode(message{Need: need}); err != nil {
		return err
	}
	var r reply
	if err := p.in.Decode(&r); err != nil {
		return fmt.Errorf("ask the host for the %s: %w", need, err)
	}
	if r.Error != "" {
		return errors.New(r.Error)
	}
	return json.Unmarshal(r.Value, value)
}

// Answer ends the conversation.
func (p *Peer) Answer(a *Answer) error { return p.out.Encode(message{Answer: a}) }
