package pipetest

import (
	"strings"
	"testing"
)

// A container that is rolled back in the middle of a run gets again, in the
// next one, what the rollback has taken away.
func TestRollbackInTheMiddleOfARun(t *testing.T) {
	h := converged(t, map[string]any{"features": []string{"base_setup"}})
	h.bash("$PHX_PCT snapshot 500 mine")
	h.configure(map[string]any{"features": []string{"base_setup", "step_cli"}})
	h.wantApplied(false, "step_cli")

	h.configure(map[string]any{"features": []string{"base_setup", "step_cli"}, "memory_mb": 1024,
		"volumes": withVolume["volumes"]})
	meanwhile := h.stub(`case "$1" in set) $PHX_REAL rollback 500 mine --start 1 ;; esac`)
	if _, _, status, stderr := meanwhile.run(); status != 1 ||
		!strings.Contains(stderr, "rolled the container back meanwhile") {
		t.Errorf("status %d\n%s", status, stderr)
	}
	h.wantApplied(true, "step_cli")
}

// A container that is gone when its command has ended is an error of that
// container alone, and made by the next run.
func TestGoneOnceMade(t *testing.T) {
	for _, command := range []string{"create", "clone"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			h := newHost(t) // with the configuration that is shipped
			gone := h.stub(`case "$1" in ` + command +
				`) $PHX_REAL "$@"; id=$2; [ "$1" = create ] || id=$3; exec $PHX_REAL destroy $id ;; esac`)
			_, _, status, stderr := gone.run()
			if status != 1 || !strings.Contains(stderr,
				": define: the container is gone: it has been destroyed or moved meanwhile: open ") {
				t.Errorf("status %d\n%s", status, stderr)
			}
			if _, _, status, stderr := h.run(); status != 0 {
				t.Errorf("the next run: status %d\n%s", status, stderr)
			}
			if _, calls, status, stderr := h.run(); status != 0 || strings.Contains(stderr, "(0.") {
				t.Errorf("and another: status %d, calls\n%s\n%s", status, join(calls), stderr)
			}
		})
	}
}
