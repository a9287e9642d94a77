package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Call runs the container's half of the program, which is given the request.
// names are those of the service's certificates. Programs that the container
// lacks are installed; supply supplies its other needs.
func (t *Target) Call(ctx context.Context, request any, names []string,
	supply func(need string) (any, error),
) (*remote.Answer, error) {
	log := &cmdline.LineWriter{Line: func(line string) {
		t.Logf("%s", cmdline.Quoted(strings.TrimPrefix(line, cmdline.Name()+": ")))
	}}
	defer log.Close()
	t.Begins("apply")
	return call(ctx, t.Host, t.CTID, names, func(need string) (any, error) {
		switch need {
		case "request":
			return request, nil
		case "step_cli", "traefik": // features
			s, err := t.scripts.Feature(need)
			if err != nil {
				return nil, err
			}
			return true, t.Host.RunFeature(ctx, log, nil, s.Path, strconv.Itoa(t.CTID))
		}
		return supply(need)
	}, func(n remote.Note) {
		if n.Stage != "" {
			t.Begins(n.Stage)
		} else {
			t.Warnf("%s", cmdline.Quoted(n.Warning))
		}
	}, log)
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

// callTimeout is how long a conversation may take: packages may have to be
// installed, behind an update of the system or what an earlier run has left.
const callTimeout = pve.GuestTimeout

// call runs the container's half of this program in a container and returns
// its answer, of which Error may be set. supply returns the JSON value of each
// thing that the other half asks for, and tell gets what it says meanwhile; see
// [remote.Serve]. log gets the other half's messages.
func call(ctx context.Context, host *pve.Host, ctid int, names []string,
	supply func(need string) (any, error), tell func(remote.Note), log io.Writer,
) (*remote.Answer, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	program, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, program)
	if err != nil {
		return nil, err
	}
	if _, err := program.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	name := filepath.Base(path)

	cmd := host.Exec(ctid, "/bin/sh", "-c", boot, "sh", name, hex.EncodeToString(sum.Sum(nil)),
		strconv.FormatInt(size, 10))
	cmd.Label = fmt.Sprintf("pct exec %d (%s apply)", ctid, name)
	cmd.Timeout = callTimeout
	cmd.Stderr = log
	return converse(ctx, host, cmd, program, names, supply, tell)
}

// converse has the conversation with a command that is the container's half, and
// returns its answer. program is what it gets that asks for the program.
func converse(ctx context.Context, host *pve.Host, cmd pve.Command, program io.Reader, names []string,
	supply func(need string) (any, error), tell func(remote.Note),
) (*remote.Answer, error) {
	c, err := host.Converse(ctx, cmd, 4<<10)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	answer, serveErr := remote.Serve(c.From, c.To, program, names, supply, tell)
	if answer == nil && !errors.Is(serveErr, remote.ErrEnded) {
		c.Stop(serveErr)
	}
	c.HangUp()
	// Its status no longer matters, but what it said on stderr may tell why
	// there is no answer.
	defer time.AfterFunc(pve.Linger, func() { c.Stop(serveErr) }).Stop()
	// An answer counts however the command ends.
	err = <-c.Ended
	switch {
	case answer != nil:
		return answer, nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", cmd.Label, serveErr)
}
