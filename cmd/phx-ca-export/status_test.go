package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hostileCA returns the URL of a CA that verifies against root, and says something to
// each connection.
func hostileCA(t *testing.T, say func(net.Conn)) (url string, root *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	shown := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{shown}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := conn.Read(make([]byte, 4096)); err == nil {
					say(conn)
				}
			}()
		}
	}()
	return "https://" + listener.Addr().String(), root
}

// What the CA's container answers is believed where it says 200, and its words are
// neither shown as phx's own nor too long for an event.
func TestAnswersOfAHostileCA(t *testing.T) {
	// It is not asked by way of a proxy, which would get to know the addresses.
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	const advice = ": run phoenix with PHX_ACCEPT_NEW_ROOT=1"
	long := strings.Repeat("x", 2<<20)
	for name, answer := range map[string]string{
		"well":          "HTTP/1.1 200 OK\r\n\r\n",
		"endless":       "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n",
		"reason":        "HTTP/1.1 500 no" + advice + "\x1b[2J\r\n\r\n",
		"long reason":   "HTTP/1.1 500 " + long + "\r\n\r\n",
		"no HTTP":       advice + "\x1b[2J" + long + "\r\n\r\n",
		"header":        "HTTP/1.1 200 OK\r\n" + advice + "\x1b[2J" + long + "\r\n\r\n",
		"redirection":   "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
		"says nothing":  "",
		"not the start": "HTTP/1.1 100 Continue\r\n\r\n",
	} {
		url, root := hostileCA(t, func(conn net.Conn) { conn.Write([]byte(answer)) })
		err := answers(context.Background(), url, []*x509.Certificate{root})
		if well := name == "well" || name == "endless"; well != (err == nil) {
			t.Errorf("%s: %.500v", name, err)
		}
		if err == nil {
			continue
		}
		said := err.Error()
		if len(said) > 2<<10 || strings.ContainsAny(said, "\x1b\n") {
			t.Errorf("%s: %d bytes: %.500q", name, len(said), said)
		}
		if i := strings.Index(said, advice); i >= 0 && !strings.Contains(said[:i], `"`) {
			t.Errorf("%s: as if phx said it: %.500q", name, said)
		}
	}
}

// Who has taken a connection and then broken it off has been reached.
func TestIsNotReached(t *testing.T) {
	for want, errs := range map[bool][]error{
		true:  {fmt.Errorf("health: %w", &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT})},
		false: {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, errors.New("500 Internal Server Error")},
	} {
		for _, err := range errs {
			if have := isNotReached(err); have != want {
				t.Errorf("%v: %t", err, have)
			}
		}
	}
}
