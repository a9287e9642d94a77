package pipetest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// randomConfig returns a configuration whose containers need each other in a random
// way, and clone each other, and the ids.
func randomConfig(rnd *rand.Rand) (text string, ids []int) {
	all := map[string]any{}
	for _, i := range rnd.Perm(3 + rnd.IntN(6)) {
		ids = append(ids, 200+i)
	}
	var sources, earlier []int
	for _, id := range ids {
		var c map[string]any
		if err := json.Unmarshal([]byte(plainContainer), &c); err != nil {
			panic(err)
		}
		c["name"] = fmt.Sprintf("Box-%d", id)
		c["network_config"].(map[string]any)["ip"] = fmt.Sprintf("10.0.0.%d/24", id-100)
		c["mac_address"] = fmt.Sprintf("BC:24:11:00:0%d:00", id-200)
		needs := []string{}
		for _, other := range earlier {
			if rnd.IntN(3) == 0 {
				needs = append(needs, strconv.Itoa(other))
			}
		}
		c["dependencies"] = needs
		if len(sources) > 0 && rnd.IntN(4) > 0 {
			delete(c, "template")
			c["clone_from_ctid"] = strconv.Itoa(sources[rnd.IntN(len(sources))])
		}
		if len(sources) == 0 || rnd.IntN(4) == 0 {
			c["template_snapshot_name"] = "golden"
			sources = append(sources, id)
		}
		if rnd.IntN(2) == 0 {
			c["features"] = []string{"base_setup"}
		}
		if rnd.IntN(2) == 0 {
			c["health_check"] = map[string]any{"command": "/bin/true", "retries": 1}
		}
		all[strconv.Itoa(id)] = c
		earlier = append(earlier, id)
	}
	data, err := json.Marshal(map[string]any{"lxc_configs": all})
	if err != nil {
		panic(err)
	}
	return string(data), ids
}

// TestRandomGraphs: whatever needs whatever, and whatever fails, a run ends, each
// container has one end, and a run in which nothing fails completes all. The seed of a
// test that has failed is its name: with it in PHX_TEST_SEED, it is tried first.
func TestRandomGraphs(t *testing.T) {
	t.Parallel()
	seeds, first := 3, uint64(time.Now().UnixNano()%1e9)
	if full() {
		seeds = 20
	}
	if s := os.Getenv("PHX_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first = n
	}
	for seed := first; seed < first+uint64(seeds); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			h := newHost(t)
			config, ids := randomConfig(rnd)
			h.write("phoenix_lxc_configs.json", config)
			commands := []string{"create", "clone", "start", "set", "snapshot", "exec"}
			for range 2 {
				var faults []string
				for range 1 + rnd.IntN(3) {
					faults = append(faults, fmt.Sprint(commands[rnd.IntN(len(commands))], " ", ids[rnd.IntN(len(ids))]))
				}
				action := "create"
				if rnd.IntN(4) == 0 {
					action = "recreate"
				}
				h.with("PHX_LAB_FAIL="+strings.Join(faults, ";")).randomRun(rnd, ids, 1, action)
			}
			h.randomRun(rnd, ids, 0, "create")
			stdout, said := h.randomRun(rnd, ids, 0, "create")
			for _, id := range ids {
				if strings.Contains(stdout, `"changed":true`) ||
					!strings.Contains(said, fmt.Sprintf("%d Box-%d: unchanged\n", id, id)) {
					t.Errorf("%d is not unchanged:\n%s", id, said)
				}
			}
		})
	}
}

// randomRun runs the programs with a random number of jobs. Each container has to
// have one end.
func (h *host) randomRun(rnd *rand.Rand, ids []int, most int, action string) (stdout, stderr string) {
	h.t.Helper()
	jobs := 1 + rnd.IntN(4)
	cmd := exec.Command("timeout", "-k", "5", "300", "bash", "-c", fmt.Sprintf(
		"set -o pipefail; phx-plan --action %s %s | phx-lxc --jobs %d",
		action, strings.Trim(fmt.Sprint(ids), "[]"), jobs))
	cmd.Env = h.env
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	_ = cmd.Run()
	status := cmd.ProcessState.ExitCode()
	told := fmt.Sprintf("%s, %d jobs, %s: status %d\n%s", action, jobs, h.env[len(h.env)-1], status, said.String())
	if status < 0 || status > most {
		h.t.Fatal(told)
	}
	ends := map[int]int{}
	for line := range strings.Lines(out.String()) {
		var ev struct {
			Event string
			CTID  int
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			h.t.Fatalf("not an event: %q", line)
		}
		if slices.Contains([]string{"ct.ready", "ct.failed", "ct.skipped"}, ev.Event) {
			ends[ev.CTID]++
		}
		if ev.Event == "ct.running" && ends[ev.CTID] > 0 {
			h.t.Errorf("%d runs after its end", ev.CTID)
		}
	}
	for _, id := range ids {
		if ends[id] != 1 {
			h.t.Fatalf("%d has %d ends: %s\n%s", id, ends[id], told, out.String())
		}
	}
	return out.String(), said.String()
}
