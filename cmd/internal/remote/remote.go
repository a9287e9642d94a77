// Package remote connects the two halves of a program: one on the host, one
// in a container, over the stdin and stdout of a single pct exec.
//
// The half in the container asks, one JSON line on stdout for each need:
// {"need":"request"}. The host supplies one JSON line on its stdin. The last
// line of the container's half is {"answer":{…}}. Messages for people go
// through stderr. The program itself is the first thing that may be asked
// for; it is sent as it is, and kept in /usr/local/bin, so that it travels
// only when it has changed.
//
// The half in the container may be anybody: it asks for each thing once, its
// lines have a limit, and its answer is checked.
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
	"regexp"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/pve"
)

// Limits of a conversation. An answer within them fits into an event, however
// its text has to be escaped there.
const (
	maxLine    = 1 << 20  // bytes of a line, in either direction
	maxNeeds   = 16       // things that the half in the container may ask for
	maxError   = 16 << 10 // bytes of Answer.Error
	maxChanges = 100      // of Answer.Changes
	maxChange  = 1 << 10  // bytes of one of them
	maxAge     = 20 * 365 * 24 * time.Hour

	// linger is how long the container's half may go on after the conversation,
	// and what it leaves behind may hold the pipes.
	linger = 2 * time.Second
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

// boot puts the program in place unless it is there, and is root's to change
// and everybody's to run, and becomes its half in the container. Its arguments:
// name, SHA-256, size in bytes.
//
// A transfer that was killed leaves a file behind, with the mode that mktemp
// has given it; whoever holds the lock is alone and may remove it.
const boot = `set -eu
umask 022
dir=/usr/local/bin
program=$dir/$1 sum=$2 size=$3
mode=$(stat -c '%u %a' "$program" 2>/dev/null) || mode=none
if [ "$mode" != "$(id -u) 755" ] || ! echo "$sum  $program" | sha256sum --check --status 2>/dev/null; then
	exec 9<"$dir"
	flock -w 60 9 || { echo "another transfer of $1 is under way in this container" >&2; exit 1; }
	find "$dir" -maxdepth 1 -type f -name "$1.??????" -user "$(id -u)" -perm 600 -delete
	echo '{"need":"program"}'
	new=$(mktemp "$program.XXXXXX") # mode 0600
	trap 'rm -f "$new"' EXIT
	head -c "$size" >"$new"
	echo "$sum  $new" | sha256sum --check --status || { echo "the transfer of $1 broke off" >&2; exit 1; }
	chmod 0755 "$new"
	mv -f "$new" "$program"
	trap - EXIT
	exec 9<&-
fi
export HOME=/root
exec "$program" apply --request -`

// timeout is how long a conversation may take: packages may have to be
// installed, behind an update of the system or what an earlier run has left.
const timeout = pve.GuestTimeout

// Call runs the container's half of this program in a container and returns
// its answer, of which Error may be set. names are those of the service's
// certificates: the host knows them, and does not have itself told. supply
// returns the JSON value of each need; its error is told to the other half,
// whose answer then follows. log gets the other half's messages.
func Call(ctx context.Context, host *pve.Host, ctid int, names []string, supply func(need string) (any, error), log io.Writer) (*Answer, error) {
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
	cmd.Timeout = timeout
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

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A process that is left in the container may hold the other ends.
	silence := func(in time.Duration) {
		fromContainer.SetDeadline(time.Now().Add(in))
		toContainer.SetDeadline(time.Now().Add(in))
	}
	defer context.AfterFunc(ctx, func() { silence(0) })()
	ended := make(chan error, 1)
	go func() {
		_, err := host.Run(ctx, cmd)
		stdin.Close()
		stdout.Close()
		silence(linger)
		ended <- err
	}()
	answer, talkErr := talk(fromContainer, toContainer, program, names, supply)
	if answer == nil && !errors.Is(talkErr, errEnded) {
		cancel(talkErr)
	}
	toContainer.Close()
	fromContainer.Close()
	// Its status no longer matters, but what it said on stderr may tell why
	// there is no answer.
	defer time.AfterFunc(linger, func() { cancel(talkErr) }).Stop()
	err = <-ended
	switch {
	case answer != nil:
		return answer, nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", cmd.Label, talkErr)
}

// errEnded says that the other half is not there any more.
var errEnded = errors.New("ended without an answer")

// talk answers the needs of the container's half until its answer has come.
func talk(in io.Reader, out io.Writer, program []byte, names []string, supply func(string) (any, error)) (*Answer, error) {
	lines := bufio.NewReader(in)
	asked := map[string]bool{}
	for {
		line, err := readLine(lines)
		if err != nil {
			return nil, err
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("not an answer: %.100q", line)
		}
		switch {
		case m.Answer != nil:
			if err := m.Answer.check(names); err != nil {
				return nil, err
			}
			return m.Answer, nil
		case !needForm.MatchString(m.Need):
			return nil, fmt.Errorf("not a need: %.100q", line)
		case asked[m.Need]:
			return nil, fmt.Errorf("asks for the %s a second time", m.Need)
		case len(asked) == maxNeeds:
			return nil, fmt.Errorf("asks for more than %d things", maxNeeds)
		}
		asked[m.Need] = true
		if m.Need == "program" {
			_, err = out.Write(program)
		} else {
			err = send(out, m.Need, supply)
		}
		if err != nil {
			return nil, errEnded
		}
	}
}

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
			return nil, errEnded
		}
	}
}

var (
	needForm  = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)
	stageForm = regexp.MustCompile(`^[a-z]+( [a-z]+)?$`)
)

// check makes of what the container's half has sent what the host may use: it
// refuses what cannot be, and cuts what is too long.
func (a *Answer) check(names []string) error {
	if a.Stage != "" && (len(a.Stage) > 32 || !stageForm.MatchString(a.Stage)) {
		return fmt.Errorf("not a stage: %.100q", a.Stage)
	}
	if until := time.Until(a.NotAfter); !a.NotAfter.IsZero() && (until > maxAge || until < -maxAge) {
		return fmt.Errorf("not the end of a certificate: %s", a.NotAfter)
	}
	a.Names = names
	a.NotAfter = a.NotAfter.UTC().Truncate(time.Second)
	a.shorten()
	return nil
}

// shorten brings the answer within the limits.
func (a *Answer) shorten() {
	a.Error = cut(a.Error, maxError)
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

func send(out io.Writer, need string, supply func(string) (any, error)) error {
	var r reply
	value, err := supply(need)
	if err == nil {
		r.Value, err = json.Marshal(value)
	}
	if err == nil && len(r.Value) > maxLine-100 {
		err = fmt.Errorf("the %s is longer than %d MiB", need, maxLine>>20)
	}
	if err != nil {
		r = reply{Error: cut(err.Error(), maxError)}
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = out.Write(append(line, '\n'))
	return err
}

// Peer is the host's half, as seen from the container.
type Peer struct {
	in  *bufio.Reader
	out *json.Encoder
}

// NewPeer returns the peer that reads and writes these two, stdin and stdout.
func NewPeer(in io.Reader, out io.Writer) *Peer {
	return &Peer{bufio.NewReader(in), json.NewEncoder(out)}
}

// Ask asks the host for a need and stores what it supplies in value.
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

// Answer ends the conversation.
func (p *Peer) Answer(a *Answer) error {
	a.shorten()
	return p.out.Encode(message{Answer: a})
}
