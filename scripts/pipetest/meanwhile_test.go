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
	if _, _, status, stderr := meanwhile.run(); status != 1 || !strings.Contains(stderr, "rolled the container back meanwhile") {
		t.Errorf("status %d\n%s", status, stderr)
	}
	h.wantApplied(true, "step_cli")
}
