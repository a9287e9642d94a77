package guest

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNeighbourUnitText(t *testing.T) {
	text, err := NeighbourUnitText("eth0", []Neighbour{{IP: "10.0.0.10", MAC: "52:54:00:67:89:C3"},
		{IP: "fd00::1", MAC: "52:54:00:67:89:c2", Device: "eth1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"\nExecStart=/sbin/ip neighbour replace 10.0.0.10 lladdr 52:54:00:67:89:c3 dev eth0 nud permanent\n",
		"\nExecStart=/sbin/ip neighbour replace fd00::1 lladdr 52:54:00:67:89:c2 dev eth1 nud permanent\n",
	} {
		if !strings.Contains(string(text), line) {
			t.Errorf("the unit lacks %q:\n%s", line, text)
		}
	}
	want := []Neighbour{{IP: "10.0.0.10", Device: "eth0"}, {IP: "fd00::1", Device: "eth1"}}
	if got := neighboursOf(text); !slices.Equal(got, want) {
		t.Errorf("read back: %v, want %v", got, want)
	}
	if got := neighboursOf(nil); len(got) > 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// What comes from a stream must not become another line of a unit.
func TestNeighbourUnitTextRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		device string
		n      Neighbour
	}{
		"line in the interface": {"eth0\nExecStart=/bin/x", Neighbour{IP: "10.0.0.10", MAC: "52:54:00:67:89:c3"}},
		"blank in it":           {"eth0 x", Neighbour{IP: "10.0.0.10", MAC: "52:54:00:67:89:c3"}},
		"no interface":          {"", Neighbour{IP: "10.0.0.10", MAC: "52:54:00:67:89:c3"}},
		"option":                {"-x", Neighbour{IP: "10.0.0.10", MAC: "52:54:00:67:89:c3"}},
		"zone":                  {"eth0", Neighbour{IP: "fe80::1%eth0 lladdr", MAC: "52:54:00:67:89:c3"}},
		"name":                  {"eth0", Neighbour{IP: "ca.example", MAC: "52:54:00:67:89:c3"}},
		"line in the MAC":       {"eth0", Neighbour{IP: "10.0.0.10", MAC: "52:54:00:67:89:c3\nExecStart=/bin/x"}},
		"long MAC":              {"eth0", Neighbour{IP: "10.0.0.10", MAC: "52:54:00:67:89:c3:00:01"}},
		"no MAC":                {"eth0", Neighbour{IP: "10.0.0.10", MAC: ""}},
		"line in its interface": {"eth0", Neighbour{IP: "10.0.0.10", MAC: "52:54:00:67:89:c3",
			Device: "eth1\nExecStart=/bin/x"}},
	} {
		if text, err := NeighbourUnitText(tt.device, []Neighbour{tt.n}); err == nil {
			t.Errorf("%s is accepted:\n%s", name, text)
		}
	}
}

// Neighbours of both families, on two interfaces, are pinned once, again when the
// kernel has lost one, and freed when they are none any more.
func TestPinNeighbours(t *testing.T) {
	privateMounts(t, "/etc", "/run", "/usr/local")
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	do := func(script string) string {
		t.Helper()
		out, err := exec.Command("/bin/sh", "-euc", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	do(`for dev in eth0 eth1; do
	ip link add $dev type veth peer name peer-$dev
	ip link set $dev up
	ip link set peer-$dev up
done
mkdir -p /etc/systemd/system /usr/local/sbin
cat >/usr/local/sbin/systemctl <<'END'
#!/bin/sh
unit=/etc/systemd/system/phx-neighbours.service
case $1 in
is-active) [ -e /run/active ] ;;
is-enabled) echo enabled ;;
start | restart) : >/run/active; sed -n "s/^ExecStart=//p" $unit | sh -e ;;
esac
END
chmod +x /usr/local/sbin/systemctl`)
	four := Neighbour{IP: "10.0.0.10", MAC: "52:54:00:67:89:C3"}
	six := Neighbour{IP: "fd00:0::10", MAC: "52:54:00:67:89:C2", Device: "eth1"}
	moved := Neighbour{IP: "fd00::10", MAC: "52:54:00:67:89:C2"}
	for _, tt := range []struct {
		name       string
		before     string
		neighbours []Neighbour
		changes    string
		want       string
	}{
		{"the first time", "", []Neighbour{four, six}, "wrote " + NeighbourFile + ", started " + NeighbourUnit,
			"10.0.0.10 eth0 52:54:00:67:89:c3, fd00::10 eth1 52:54:00:67:89:c2"},
		{"a second time", "", []Neighbour{four, six}, "",
			"10.0.0.10 eth0 52:54:00:67:89:c3, fd00::10 eth1 52:54:00:67:89:c2"},
		{"lost", "ip link set eth1 down; ip link set eth1 up", []Neighbour{four, six}, "restart of " + NeighbourUnit,
			"10.0.0.10 eth0 52:54:00:67:89:c3, fd00::10 eth1 52:54:00:67:89:c2"},
		{"on the other interface", "", []Neighbour{four, moved}, "freed the address of neighbour fd00::10, wrote " +
			NeighbourFile + ", restart of " + NeighbourUnit,
			"10.0.0.10 eth0 52:54:00:67:89:c3, fd00::10 eth0 52:54:00:67:89:c2"},
		{"none", "", nil, "freed the address of neighbour 10.0.0.10, freed the address of neighbour fd00::10, " +
			"removed " + NeighbourFile, ""},
	} {
		do(tt.before)
		s := &Setup{}
		if err := s.PinNeighbours(t.Context(), "eth0", tt.neighbours); err != nil ||
			strings.Join(s.Changes, ", ") != tt.changes {
			t.Errorf("%s: %v, %q", tt.name, err, s.Changes)
		}
		var pinned []string
		for line := range strings.Lines(do("ip neighbour show nud permanent | sort")) {
			words := strings.Fields(line) // ADDRESS dev DEVICE lladdr MAC PERMANENT
			pinned = append(pinned, words[0]+" "+words[2]+" "+words[4])
		}
		if got := strings.Join(pinned, ", "); got != tt.want {
			t.Errorf("%s: pinned %s, want %s", tt.name, got, tt.want)
		}
	}
}
