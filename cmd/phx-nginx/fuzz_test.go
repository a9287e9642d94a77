package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/cli-utils/token"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// shape is what of a configuration does not come from names and addresses.
func shape(text []byte) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("{};\"'\\$#\n\r", r) {
			return r
		}
		return -1
	}, string(text))
}

// A request that is taken changes nothing in nginx's configuration, or in the
// unit of the neighbours, but names, addresses and ports.
func FuzzRequest(f *testing.F) {
	good, err := json.Marshal(testGateway)
	if err != nil {
		f.Fatal(err)
	}
	for _, value := range []string{
		string(good), `null`, `{}`, `[]`, `{"domain":"a.example;","proxy":"10.0.0.1","root":"/x"}`,
		`{"domain":"a.example","proxy":"fe80::1%eth0","root":"/x"}`,
		`{"domain":"a.example","proxy":"::1","root":"/x/../y",` +
			`"status_port":8080,"status_host":"s.a.example"}`,
		`{"domain":"a.example","proxy":"10.0.0.1","root":"/x","interface":"eth0",` +
			`"neighbours":[{"ip":"10.0.0.2","mac":"02:00:00:00:00:01"}]}`,
		`{"domain":"a.example","proxy":"10.0.0.1","root":"/x","interface":"eth0\nExecStart=/bin/x",` +
			`"neighbours":[{"ip":"10.0.0.2","mac":"02:00:00:00:00:01"}]}`,
	} {
		f.Add([]byte(`{"value":` + value + "}\n"))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var g gateway
		if err := remote.NewPeer(bytes.NewReader(line), io.Discard).Ask("request", &g); err != nil {
			return
		}
		if err := g.check(); err == nil {
			plain := gateway{Trust: guest.Trust{Root: "/x"}, Domain: "a.example", Proxy: "10.0.0.1"}
			if g.StatusPort != 0 {
				plain.StatusPort = 8080
			}
			if g.StatusHost != "" {
				plain.StatusHost = "s.a.example"
			}
			if got, want := shape(g.site()), shape(plain.site()); got != want {
				t.Errorf("%s\nhas the shape %q, want %q", g.site(), got, want)
			}
		}
		if unit, err := guest.NeighbourUnitText(g.Interface, g.Neighbours); err == nil {
			plain, err := guest.NeighbourUnitText("eth0", make([]guest.Neighbour, 0))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := shape(unit), shape(plain); len(got) != len(want)+len(g.Neighbours) {
				t.Errorf("%s\nhas the shape %q, want %q", unit, got, want)
			}
		}
	})
}

// A token that is taken is for this CA, for these names and for a short time,
// whatever else it is; what is said of any other is short.
func FuzzToken(f *testing.F) {
	now := time.Now()
	f.Add("", int64(0))
	f.Add("x.y.z", int64(0))
	f.Add("eyJhbGciOiJFUzI1NiJ9.e30.AA", int64(0))
	f.Add("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIiwic2FucyI6WyIqIl0sImV4cCI6MWU5OTl9.", int64(1)<<40)
	f.Add(ott(f, func(*token.Claims) {}), int64(60))
	f.Add(ott(f, func(c *token.Claims) { c.Audience = nil }), int64(-60))
	f.Add(ott(f, func(c *token.Claims) { c.Expiry = nil }), int64(60))
	f.Add(ott(f, func(c *token.Claims) { c.Set("sans", []string{strings.Repeat("x", 10_000), "\x1b[2J"}) }), int64(60))
	f.Fuzz(func(t *testing.T, text string, seconds int64) {
		if len(text) > 64<<10 {
			return
		}
		at := now.Add(time.Duration(seconds%(1<<30)) * time.Second)
		err := checkToken(text, testGateway, at)
		if err != nil {
			if len(err.Error()) > 1000 || len(text) > 20 && strings.Contains(err.Error(), text) {
				t.Errorf("an error of %d bytes: %.300v", len(err.Error()), err)
			}
			return
		}
		jwt, err := token.ParseInsecure(text)
		if err != nil {
			t.Fatal(err)
		}
		p := jwt.Payload
		if !strings.EqualFold(p.SHA, testGateway.Fingerprint) || p.Subject != testGateway.Domain ||
			len(p.SANs) != len(testGateway.names()) ||
			p.Expiry == nil || !p.Expiry.Time().After(at) || p.Expiry.Time().Sub(at) > tokenLife+time.Minute {
			t.Errorf("taken: %+v", p)
		}
	})
}
