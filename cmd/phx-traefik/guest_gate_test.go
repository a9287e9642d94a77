package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// listen returns a listening socket as systemd makes them: without MPTCP,
// which takes no filter.
func listen(t *testing.T) (l net.Listener, fd int) {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return l, int(f.Fd())
}

// Who comes to a shut gate is not refused: he gets through when it opens.
func TestGate(t *testing.T) {
	l, fd := listen(t)
	const nowhere = 0 // no interface has this index
	if err := shut(fd, nowhere); err != nil {
		if os.Geteuid() != 0 {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	dialed := make(chan error, 1)
	go func() {
		conn, err := net.DialTimeout("tcp", l.Addr().String(), 30*time.Second)
		if err == nil {
			conn.Close()
		}
		dialed <- err
	}()
	select {
	case err := <-dialed:
		t.Fatalf("the shut gate let a connection through, or refused it: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	for range 2 {
		if err := open(fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-dialed; err != nil {
		t.Errorf("after the gate was opened: %v", err)
	}
}

// The keeper itself must reach Traefik while the gate is shut.
func TestGateLetsLoopbackThrough(t *testing.T) {
	l, fd := listen(t)
	if err := shut(fd, loopback); err != nil {
		if os.Geteuid() != 0 {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", l.Addr().String(), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestStorageOf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "traefik.yml")
	if err := os.WriteFile(file, testProxy.static(usualHours), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := storageOf(file); err != nil || got != testProxy.acmeFile() {
		t.Errorf("%q, %v; want %q", got, err, testProxy.acmeFile())
	}
}
