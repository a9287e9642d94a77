package guest

import (
	"strings"
	"testing"

	"reflect"
)

func TestNeighbourUnitText(t *testing.T) {
	text, err := NeighbourUnitText("eth0", []Neighbour{{"10.0.0.10", "52:54:00:67:89:C3"},
		{"fd00::1", "52:54:00:67:89:c2"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"\nExecStart=/sbin/ip neighbour replace 10.0.0.10 lladdr 52:54:00:67:89:c3 dev eth0 nud permanent\n",
		"\nExecStart=/sbin/ip neighbour replace fd00::1 lladdr 52:54:00:67:89:c2 dev eth0 nud permanent\n",
	} {
		if !strings.Contains(string(text), line) {
			t.Errorf("the unit lacks %q:\n%s", line, text)
		}
	}
	if got, want := neighboursOf(text), map[string][]string{"eth0": {"10.0.0.10", "fd00::1"}}; !reflect.DeepEqual(got,
		want) {
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
		"line in the interface": {"eth0\nExecStart=/bin/x", Neighbour{"10.0.0.10", "52:54:00:67:89:c3"}},
		"blank in it":           {"eth0 x", Neighbour{"10.0.0.10", "52:54:00:67:89:c3"}},
		"no interface":          {"", Neighbour{"10.0.0.10", "52:54:00:67:89:c3"}},
		"option":                {"-x", Neighbour{"10.0.0.10", "52:54:00:67:89:c3"}},
		"zone":                  {"eth0", Neighbour{"fe80::1%eth0 lladdr", "52:54:00:67:89:c3"}},
		"name":                  {"eth0", Neighbour{"ca.example", "52:54:00:67:89:c3"}},
		"line in the MAC":       {"eth0", Neighbour{"10.0.0.10", "52:54:00:67:89:c3\nExecStart=/bin/x"}},
		"long MAC":              {"eth0", Neighbour{"10.0.0.10", "52:54:00:67:89:c3:00:01"}},
		"no MAC":                {"eth0", Neighbour{"10.0.0.10", ""}},
	} {
		if text, err := NeighbourUnitText(tt.device, []Neighbour{tt.n}); err == nil {
			t.Errorf("%s is accepted:\n%s", name, text)
		}
	}
}
