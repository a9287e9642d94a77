package config

import (
	"testing"

	"github.com/tidwall/gjson"
)

// TestVersionDecides: a version is a row of numbers, and one that is not known
// refuses nothing.
func TestVersionDecides(t *testing.T) {
	for _, c := range []struct {
		host, since string
		knows       bool
	}{
		{"6.1.10", "6.0.15", true},
		{"6.0.15", "6.0.15", true},
		{"6.0.15-1", "6.0.15", true},
		{"6.0.9", "6.0.15", false},
		{"5.2.6", "6.0.15", false},
		{"4.1-3", "4.1-5", false},
		{"4.1-10", "4.1-5", true},
		{"5.0.7~pve1", "5.0.7", true},
		{"6", "6.0.1", false},
		{"", "6.0.15", true},
	} {
		p := newParser("{}", &Host{PCT: c.host})
		if got := p.since(gjson.Parse("{}"), c.since, "it"); got != c.knows || got != (p.mistakes.count == 0) {
			t.Errorf("%s of %s: %t, %d mistakes", c.since, c.host, got, p.mistakes.count)
		}
	}
	for s, want := range map[string]bool{
		"6.1.10": true, "4.1-5": true, "5.0.7~pve1": true, "": false, "v6": false, "6 1": false, "latest": false,
	} {
		if IsVersion(s) != want {
			t.Errorf("%q: %t", s, !want)
		}
	}
}
