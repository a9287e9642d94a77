package pipetest

import (
	"strings"
	"testing"
)

// managedByHA returns a host whose container HA manages.
func managedByHA(t *testing.T) *host {
	t.Helper()
	needsFull(t)
	h := converged(t, nil)
	h.bash("mkdir -p host/pve/ha; printf 'vm: 100\n\tstate stopped\n\nct: 500\n\tgroup a\n' >host/pve/ha/resources.cfg")
	h.write("bin/ha-manager", `#!/bin/sh
case "$1 $2 $3" in
"remove ct:500 ") sed -i '/^ct: 500$/,$d' $PHX_PVE_ROOT/ha/resources.cfg ;;
"set ct:500 --state")
	sed -i '/^ct: 500$/,$d' $PHX_PVE_ROOT/ha/resources.cfg
	printf 'ct: 500\n\tstate %s\n' $4 >>$PHX_PVE_ROOT/ha/resources.cfg
	;;
*) exit 1 ;;
esac
`)
	h.bash("chmod +x bin/ha-manager")
	return h
}

// Under HA a start and a stop are requests: what was asked for is awaited.
func TestContainerOfHA(t *testing.T) {
	h := managedByHA(t)
	for _, action := range []string{"stop", "create", "stop", "start"} {
		state := "running"
		if action == "stop" {
			state = "stopped"
		}
		said, _, status := h.phx(action)
		if status != 0 || !strings.Contains(said,
			"500 Box: HA manages the container and was asked for it: waiting until it is ") {
			t.Errorf("%s: status %d\n%s", action, status, said)
		}
		if told := h.read("events"); !strings.Contains(told, `"stage":"waiting for HA, until it is `) {
			t.Errorf("%s: %s", action, told)
		}
		h.wantState(state)
	}
	h.wantUnchanged()
	// Proxmox destroys none that stands there: that is said before it is down.
	said, calls, status := h.phx("delete")
	if status != 1 || calls != "" {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
	h.wantState("running")
	if command := h.wayOut(said); command != "ha-manager remove ct:500" {
		t.Errorf("advised: %s", command)
	}
	if said, _, status := h.phx("delete"); status != 0 {
		t.Errorf("status %d\n%s", status, said)
	}
}

// Proxmox destroys no container that is replicated either: that is said before it
// is down, and before others are destroyed that are recreated with it.
func TestReplicatedContainer(t *testing.T) {
	h := converged(t, nil)
	h.write("host/pve/replication.cfg", "local: 5000-0\n\ttarget pve2\n\nlocal: 500-1\n\ttarget pve2\n")
	for _, action := range []string{"delete", "recreate"} {
		out, status := h.with("PHX_ACTION=" + action).bash("phx-plan 500 | phx-lxc >/dev/null")
		if status != 1 || !strings.Contains(out, "pvesr delete 500-1") {
			t.Errorf("%s: status %d\n%s", action, status, out)
		}
		h.wantState("running")
	}
	h.write("host/pve/replication.cfg", "local: 5000-0\n\ttarget pve2\n")
	if out, status := h.with("PHX_ACTION=recreate").bash("phx-plan 500 | phx-lxc >/dev/null"); status != 0 {
		t.Errorf("status %d\n%s", status, out)
	}
}

// HA has not done what it was asked for: that is an error, with what its
// configuration wants.
func TestHAThatDoesNothing(t *testing.T) {
	h := managedByHA(t)
	idle := h.with("PHX_LAB_HA=0").with("PHX_TIMEOUT=10s")
	said, _, status := idle.phx("stop")
	if status != 1 || !strings.Contains(said, "500 Box: stop: HA, which manages the container, "+
		"was asked to have it stopped, and its configuration has it started: ") {
		t.Errorf("status %d\n%s", status, said)
	}
	idle.wantState("running")
	if command := h.wayOut(said); command != "ha-manager set ct:500 --state stopped" {
		t.Errorf("advised: %s", command)
	}
	for range 3 {
		h.bash("$PHX_PCT status 500") // HA's turn
	}
	h.wantState("stopped")
	if said, _, status := idle.phx("create"); status != 1 ||
		!strings.Contains(said, "500 Box: start: HA, which manages the container, was asked to have it started, "+
			"and has not in 10s: see why with: ha-manager status; ") {
		t.Errorf("status %d\n%s", status, said)
	}
	if said, _, status := h.phx("start"); status != 0 {
		t.Errorf("status %d\n%s", status, said)
	}
}
