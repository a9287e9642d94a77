package labtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	vm          = "1007" // a virtual machine, of which there is no more than its network and its server
	vmIP, vmIP6 = "10.0.0.107", "fd00:10::107"
	vmPort      = "8443"
)

// startVM has a machine that is no container on vmbr0 until the test ends: with addresses of its own, an HTTPS server
// with a certificate of its own making, which answers "vm HOST", and a qm that says that it runs.
func (l lab) startVM(t *testing.T) {
	t.Helper()
	listeners := make(chan net.Listener, 1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, which is in that network, ends with this goroutine
		failed <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			own := fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
			for _, args := range [][]string{
				{"-n", l.namespace(), "link", "add", "vm" + vm, "type", "veth", "peer", "name", "eth0", "netns", own},
				{"-n", l.namespace(), "link", "set", "vm" + vm, "master", "vmbr0", "up"},
				{"link", "set", "eth0", "up"},
				{"address", "add", vmIP + "/24", "dev", "eth0"},
				{"address", "add", vmIP6 + "/64", "dev", "eth0", "nodad"},
			} {
				if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
					return fmt.Errorf("ip %q: %w\n%s", args, err, out)
				}
			}
			// Whether the system has IPv6, Go judges by the network in which this process was started.
			both := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
				var failed error
				err := c.Control(func(fd uintptr) {
					failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
				})
				return errors.Join(err, failed)
			}}
			listener, err := both.Listen(context.Background(), "tcp6", "[::]:"+vmPort)
			listeners <- listener
			return err
		}()
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	// Its socket keeps the network, and the network the link.
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "vm", r.Host)
	}))
	server.Listener.Close()
	server.Listener = <-listeners
	server.StartTLS()
	t.Cleanup(func() {
		server.Close()
		exec.Command("ip", "-n", l.namespace(), "link", "delete", "vm"+vm).Run() // the kernel does it too, but later
	})

	qm := l.path("bin", "qm")
	write(t, qm, `#!/bin/sh
if [ "$*" != "status `+vm+`" ]; then
	echo "Configuration file 'nodes/lab/qemu-server/$2.conf' does not exist" >&2
	exit 2
fi
echo status: running
`, 0o755)
	t.Cleanup(func() { os.Remove(qm) })
}
