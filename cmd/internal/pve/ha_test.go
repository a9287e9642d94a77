package pve

import (
	"os"
	"strings"
	"testing"
)

// What HA has not done is said with what its configuration wants.
func TestHARefusal(t *testing.T) {
	for text, wants := range map[string][2]string{
		"ct: 500\n\tstate stopped\n": {"started",
			"has it stopped: run: ha-manager set ct:500 --state started"},
		"ct: 500\n\tgroup a\n\tstate disabled\n": {"started",
			"has it disabled: run: ha-manager set ct:500 --state started"},
		"ct: 500\n\tstate ignored\n": {"stopped",
			"has it ignored: run: ha-manager set ct:500 --state stopped"},
		"ct: 500\n\nct: 501\n\tstate stopped\n": {"stopped",
			"has it started: run: ha-manager set ct:500 --state stopped"},
		"vm: 500\n\tstate stopped\n\nct: 500\n": {"started",
			"see why with: ha-manager status; from an error it comes back with ha-manager set ct:500 --state " +
				"disabled, and, once it is disabled, ha-manager set ct:500 --state started"},
		"ct: 5\n\tstate stopped\n\nct: 500\n\tstate enabled\n": {"started", "see why with: ha-manager status"},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(dir+"/ha", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/ha/resources.cfg", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c := &Container{CTID: 500, host: &Host{PVERoot: dir}}
		if err := c.haRefusal(wants[0], haPatience); err == nil || !strings.Contains(err.Error(), wants[1]) {
			t.Errorf("%s\n%v\nwant %s", text, err, wants[1])
		}
	}
}

// Whom Proxmox's HA does not know, it does not manage.
func TestHAState(t *testing.T) {
	h := &Host{PVERoot: t.TempDir()}
	if state, managed, err := h.haState(500); state != "" || managed || err != nil {
		t.Errorf("%q %v %v", state, managed, err)
	}
}
