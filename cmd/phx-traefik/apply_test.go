package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/guest"
)

// Who asks through the gateway, and what of an answer proves that both let
// requests pass.
func TestPasses(t *testing.T) {
	root, other := newAuthority(t), newAuthority(t)
	pair, err := tls.X509KeyPair(root.issue(t, "a.example", time.Now().Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	status := 0
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "https://elsewhere.example/")
		w.WriteHeader(status)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	defer server.Close()
	address := server.Listener.Addr().String()
	roots := []*x509.Certificate{other.cert, root.cert}
	for code, good := range map[int]bool{200: true, 302: true, 401: true, 404: true, 500: true, 502: false, 504: false} {
		status = code
		if err := passes(context.Background(), address, "a.example", roots); (err == nil) != good {
			t.Errorf("%d: %v", code, err)
		}
	}
	status = 200
	if passes(context.Background(), address, "b.example", roots) == nil {
		t.Error("another name's certificate is accepted")
	}
	if passes(context.Background(), address, "a.example", roots[:1]) == nil {
		t.Error("another root's certificate is accepted")
	}
}

// The gateway is asked for only where there is one, and it has been set up.
func TestGatewayIsAskedFor(t *testing.T) {
	for name, tt := range map[string]struct {
		gateway string
		ready   bool
		fails   error
		asked   bool
		err     string
	}{
		"none":      {},
		"not ready": {gateway: "127.0.0.1", asked: true},
		"unknown":   {gateway: "127.0.0.1", fails: errors.New("gone"), asked: true, err: "gone"},
	} {
		p := testProxy
		p.Gateway = tt.gateway
		asked := false
		err := checkGateway(context.Background(), p, nil, func(need string, value any) error {
			asked = need == "gateway"
			*value.(*bool) = tt.ready
			return tt.fails
		})
		if asked != tt.asked || tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: asked %v, %v", name, asked, err)
		}
	}
}

// Why a name is not served is said also when the CA does not answer.
func TestNotServedIsSaid(t *testing.T) {
	p := testProxy
	p.CAURL = "https://127.0.0.1:1"
	// Learned, so that the CA is asked long before Traefik would be restarted.
	err := checkServing(t.Context(), &guest.Setup{}, p, []*x509.Certificate{newAuthority(t).cert}, true)
	if err == nil || !strings.Contains(err.Error(), "which does not answer") || !strings.Contains(err.Error(), "TLS with 127.0.0.1:443 for ca.internal.example") {
		t.Error(err)
	}
}
