package labtest

import (
	"context"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// The main thread stands for the whole process in /proc: it must never be one that changes its namespace, or `lab down`
// takes this process for one of the lab's.
func init() { runtime.LockOSThread() }

// inNamespace runs f on a thread that is in the lab's network namespace: sockets that f makes are the lab's.
func (l lab) inNamespace(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		done <- func() error {
			ns, err := os.Open("/run/netns/" + l.namespace())
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// dial connects from the host's side of the lab's bridge.
func (l lab) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = l.inNamespace(func() error {
		dialer := net.Dialer{Timeout: 10 * time.Second}
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
