package pve

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What is mounted where a script of before is run, be it by a mount point of the
// configuration or by the script itself, is not removed with the directory.
func TestWhatIsMountedIsNotRemoved(t *testing.T) {
	if exec.Command("unshare", "-m", "mount", "-t", "tmpfs", "none", "/tmp").Run() != nil {
		t.Skip("needs a mount namespace")
	}
	const dir = "/tmp/phoenix_run"
	for _, tt := range []struct {
		name         string
		place        string // where it is run
		before       string // commands of the shell
		script       string
		fails        bool
		says, leaves string
	}{
		{name: "before", place: dir, before: "mkdir -p DIR/in; mount --bind $DATA DIR/in", fails: true,
			says: "something is mounted at " + dir + ", and would be removed", leaves: "in\n"},
		{name: "in its place", place: dir, before: "mkdir DIR; mount --bind $DATA DIR", fails: true,
			says: "something is mounted at " + dir, leaves: "kept\n"},
		{name: "by the script", place: dir, script: "mkdir in .in; mount --bind $DATA in",
			says: dir + " stays, because something is mounted there", leaves: "in\n"},
		{name: "by the script over it", place: dir, script: "mount --bind $DATA " + dir,
			says: dir + " stays, because something is mounted there", leaves: "kept\n"},
		{name: "in a place of its own", place: "-", script: "mkdir in; mount --bind $DATA in",
			says: "stays, because something is mounted there"},
		{name: "nothing", place: dir, before: "mkdir -p DIR/a/b; echo old >DIR/a/b/c", script: "mkdir in"},
		{name: "nothing in a place of its own", place: "-", script: "mkdir in"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := t.TempDir()
			if err := os.WriteFile(filepath.Join(data, "kept"), []byte("all of it"), 0o600); err != nil {
				t.Fatal(err)
			}
			// That /tmp is another one must not hide the data.
			program := "mount --bind $DATA /mnt; DATA=/mnt; mount -t tmpfs none /tmp; mount -t tmpfs none /run; " +
				strings.ReplaceAll(tt.before, "DIR", dir) + "\n" +
				`/bin/sh -c "$RUN" sh x.sh 950 "$PLACE" x.sh ${#SCRIPT} secret.json 6 -- A=b; status=$?; ` +
				`ls ` + dir + ` 2>/dev/null; find /tmp /run -name secret.json -exec echo left {} +; exit $status`
			script := "#!/bin/sh\nset -e\nDATA=/mnt\n[ $A = b ]\n" + tt.script + "\n"
			cmd := exec.Command("unshare", "-m", "bash", "-c", program)
			cmd.Env = append(os.Environ(), "DATA="+data, "RUN="+runInside, "PLACE="+tt.place, "SCRIPT="+script)
			cmd.Stdin = strings.NewReader(script + "secret")
			var said strings.Builder
			cmd.Stderr = &said
			left, err := cmd.Output()
			if (err != nil) != tt.fails || !strings.Contains(said.String(), tt.says) ||
				tt.says == "" && said.Len() > 0 {
				t.Errorf("%v\n%s", err, said.String())
			}
			if string(left) != tt.leaves {
				t.Errorf("leaves %q, want %q", left, tt.leaves)
			}
			if text, _ := os.ReadFile(filepath.Join(data, "kept")); string(text) != "all of it" {
				t.Error("what was mounted is gone")
			}
		})
	}
}
