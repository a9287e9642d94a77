package pipetest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The programs in docs/extending.md do what the page says: the filter passes every
// line on and tells what was changed, the feature script is run once, and the health
// check finds what that has done.
func TestExtending(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(repo, "docs/extending.md"))
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	var files []string
	for _, m := range regexp.MustCompile("(?ms)^```sh norun\n(#!.*?\n# FILE (\\S+)\n.*?)^```$").
		FindAllStringSubmatch(string(page), -1) {
		h.program(m[2], m[1])
		files = append(files, m[2])
	}
	if len(files) != 3 {
		t.Fatalf("programs in the page: %q", files)
	}
	h.program("inside", `#!/bin/sh
case "$2 $3" in
"tee /etc/motd") cat >"$PHX_WORK/motd" ;;
"cat /etc/motd") cat "$PHX_WORK/motd" ;;
*) echo "inside: unexpected: $*" >&2; exit 99 ;;
esac
`)
	h.configure(map[string]any{"features": []any{"motd"}, "health_checks": []any{
		map[string]any{"name": "motd", "script": "has_motd.sh", "args": []any{"500"}}}})

	const pipe = "set -o pipefail; phx-plan | phx-lxc 2>log | tee before | ./phx-changes 2>changes >after; " +
		"status=$?; cmp before after && exit $status"
	if out, status := h.bash(pipe); status != 0 {
		t.Fatalf("status %d: %s\n%s", status, out, h.read("log"))
	}
	if said := h.read("changes"); !strings.HasPrefix(said, "Box: ") || !strings.Contains(said, "motd") {
		t.Errorf("the filter says %q", said)
	}
	if motd := h.read("motd"); !strings.Contains(motd, "kept by phx") {
		t.Errorf("motd: %q", motd)
	}
	h.write("motd", "kept by phx, and not written again\n")
	if out, status := h.bash(pipe); status != 0 || h.read("changes") != "" {
		t.Errorf("status %d, %s: the second run changes %q", status, out, h.read("changes"))
	}
	if motd := h.read("motd"); !strings.Contains(motd, "not written again") {
		t.Errorf("the feature script ran twice: %q", motd)
	}
	h.program(files[1], "#!/bin/sh\necho 'the mirror does not answer'\nexit 42\n")
	if out, status := h.bash("phx-plan | phx-lxc 2>log | jq -r 'select(.event == \"ct.failed\").error'"); status != 0 ||
		!strings.HasSuffix(out, "motd.sh 500: exit status 42\n| the mirror does not answer\n") {
		t.Errorf("status %d, the event has %s\n%s", status, out, h.read("log"))
	}
	h.write("motd", "")
	if out, stderr, status := h.command(h.path(files[2]), "500"); status == 0 {
		t.Errorf("the health check does not miss it: %s%s", out, stderr)
	}
}
