package pve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"thinkheads.ai/phx/cmd/internal/process"
)

// RunFeature runs a feature's script, argv, which works in a container; env is
// added to its environment. What the script prints, which is mostly what the
// container says, goes to log.
func (h *Host) RunFeature(ctx context.Context, log io.Writer, env []string, argv ...string) error {
	way := "pct"
	if h.Direct {
		way = "direct"
	}
	return h.runScript(ctx, log, Command{
		Argv: argv,
		Env: append([]string{
			"PHX_PCT=" + h.PCT, "PHX_PVE_ROOT=" + h.PVERoot,
			"PHX_ATTACH=" + way, "PHX_LXC_PATH=" + h.lxcPath(), "PHX_PROC=" + h.proc(),
		}, env...),
		Guest:    true,
		Patience: 10 * time.Second,
	})
}

// runScript runs a command whose output goes to log. Its error has the last lines of
// that: many a script says on stdout why it fails.
func (h *Host) runScript(ctx context.Context, log io.Writer, c Command) error {
	said := &lastLines{log: log}
	c.Stdout, c.Stderr = said, said
	_, err := h.Run(ctx, c)
	flood := (*process.TooMuch)(nil)
	if failed := (*CommandError)(nil); errors.As(err, &failed) && !errors.As(err, &flood) {
		text := strings.TrimSpace(string(said.text[max(0, len(said.text)-keepOfGuest):]))
		lines := strings.Split(text, "\n")
		failed.Output = strings.Join(lines[max(0, len(lines)-lastOfScript):], "\n")
	}
	return err
}

// lastOfScript is how many lines of a script its error has: the log has had all.
const lastOfScript = 20

// lastLines passes on what is written to it, by several writers, and keeps the end.
type lastLines struct {
	mu   sync.Mutex
	log  io.Writer
	text []byte
}

func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if len(l.text) > 2*keepOfGuest {
		l.text = append(l.text[:0], l.text[len(l.text)-keepOfGuest:]...)
	}
	return l.log.Write(p)
}

// Application is an application script with what it finds in its working
// directory, which is there for this run alone, and for root alone.
type Application struct {
	Files []File   // the script itself is the first
	Dir   string   // where they are put, in a directory like /tmp; "" for a place of its own
	Env   []string // added to the script's environment
}

// File is a file in a container.
type File struct {
	Name string // a name in its directory
	Text []byte
}

// runInside puts files into a directory of the container, and runs the first of
// them there. Its arguments: that file's name, CTID, the directory ("-" for one
// of its own), a name and a size of each file, "--", the environment.
//
// A directory with a fixed name is in a place where others may have made
// something of that name, and where a run that was killed may still be at work.
// What is mounted in it, by the configuration or by a script, is not removed with
// it.
const runInside = `set -eu
mounted() { cut -d " " -f 5 /proc/self/mountinfo | grep -q "^$dir\(/\|\$\)"; }
leave() {
	if mounted; then
		rm -f ./* ./.[!.]* 2>/dev/null || :
		echo "$dir stays, because something is mounted there" >&2
	else
		rm -rf "$dir"
	fi
}
# systemd, while it starts, does not answer yet, and empties /tmp.
case $(readlink /proc/1/exe) in
*/systemd)
	end=$(($(date +%s) + 60))
	until state=$(systemctl is-system-running 2>/dev/null) || [ "$state" = degraded ]; do
		[ "$(date +%s)" -lt "$end" ] || break
		sleep 0.2
	done
	;;
esac
umask 077
name=$1 ctid=$2 dir=$3 run=./$1
shift 3
if [ "$dir" = - ]; then
	dir=$(mktemp -d /run/phx.XXXXXX)
else
	run=$dir/$name
	if command -v flock >/dev/null; then
		exec 9>>/run/phx.lock
		flock -w 740 9 || { echo "an earlier run is still at work in this container" >&2; exit 1; }
	fi
	if [ -n "$(find "${dir%/*}" -maxdepth 0 \( -perm -0002 -o -perm -0020 \) ! -perm -1000)" ]; then
		echo "${dir%/*}: others may replace what is in it: run: chmod +t ${dir%/*}" >&2
		exit 1
	fi
	if mounted; then
		echo "something is mounted at $dir, and would be removed with what $name leaves there:" \
			"unmount it, and have it mounted elsewhere" >&2
		exit 1
	fi
	if [ -L "$dir" ] || [ -e "$dir" ]; then
		if [ -L "$dir" ] || [ "$(stat -c %u "$dir")" != "$(id -u)" ]; then
			echo "$dir is there, and does not belong to root: see what it is, and remove it:" \
				"$name is put there, and whoever owns the directory could replace it" >&2
			exit 1
		fi
		rm -rf "$dir"
	fi
	mkdir "$dir"
fi
trap leave EXIT
trap 'exit 143' TERM
cd "$dir"
while [ "$1" != -- ]; do
	head -c "$2" >"$1"
	[ "$(wc -c <"$1")" -eq "$2" ] || { echo "the transfer of $1 broke off" >&2; exit 1; }
	shift 2
done
shift
chmod 0700 "$name"
umask 022
env HOME=/root "$@" "$run" "$ctid" </dev/null 9>&-`

// RunApplication runs an application script inside a container: SCRIPT CTID.
// What the script prints, which may be anything, goes to log.
func (h *Host) RunApplication(ctx context.Context, ctid int, a Application, log io.Writer) error {
	name, dir := a.Files[0].Name, a.Dir
	if dir == "" {
		dir = "-"
	}
	argv := []string{"/bin/sh", "-c", runInside, "sh", name, strconv.Itoa(ctid), dir}
	var texts []io.Reader
	for _, f := range a.Files {
		argv = append(argv, f.Name, strconv.Itoa(len(f.Text)))
		texts = append(texts, bytes.NewReader(f.Text))
	}
	c := h.Exec(ctid, append(append(argv, "--"), a.Env...)...)
	c.Label = fmt.Sprintf("pct exec %d (%s)", ctid, name)
	c.Stdin = io.MultiReader(texts...)
	return h.runScript(ctx, log, c)
}
