// The gate before Traefik's sockets, in the container.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
)

// Traefik accepts connections before it has read its routes and certificates:
// for some hundredths of a second it breaks them off, or shows a certificate
// of its own. systemd holds its sockets while it restarts, so whoever comes
// meanwhile would be among the first to be broken off.
//
// Therefore the sockets have a gate. While it is shut the kernel passes over
// whatever comes to them from outside, and the client's kernel tries again by
// itself, after one second and then three. It is shut when Traefik is told to
// stop or dies, and opened when Traefik serves.

// loopback is the index of the loopback interface, in every network namespace.
const loopback = 1

// shut makes the kernel drop what comes to a listening socket by another
// interface than the one let through. Connections that have been accepted are
// not affected.
func shut(fd, letThrough int) error {
	const interfaceOfPacket = -0x1000 + 8 // SKF_AD_OFF + SKF_AD_IFINDEX
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(0x1_0000_0000 + interfaceOfPacket)},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(letThrough), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff_ffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	return os.NewSyscallError("shut the gate", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
}

// open takes back what shut has done.
func open(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // it was open
	}
	return os.NewSyscallError("open the gate", err)
}

// handedOver returns the listening sockets that systemd has handed over to
// this process.
func handedOver() []int {
	pid, err1 := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, err2 := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if errors.Join(err1, err2) != nil || pid != os.Getpid() {
		return nil
	}
	return sockets(n)
}

// sockets returns the n descriptors after stderr.
func sockets(n int) []int {
	var fds []int
	for i := range n {
		fds = append(fds, 3+i)
	}
	return fds
}

// startCommand is what the unit starts: it shuts the gate, leaves it to a
// keeper, leaves to Traefik only certificates of what is served, and becomes Traefik,
// without the capability that the gate needs.
func startCommand(c *cli.Context) error {
	// Capabilities are those of a thread, and the keeper is told when the
	// thread that started it ends.
	runtime.LockOSThread()
	fds := handedOver()
	if err := keepGate(fds); err != nil {
		cmdline.Logf("without a gate Traefik breaks off who comes while it starts: %v", err)
		for _, fd := range fds {
			_ = open(fd)
		}
	}
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return err
		}
	}
	if p, err := guest.ReadState[proxy](proxyFile); err == nil && cert.IsFingerprint(p.Fingerprint) {
		if err := dropOthers(p.acmeFile(), p.hosts()); err != nil {
			cmdline.Logf("Traefik renews also what it does not serve any more: %v", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	err := syscall.Exec(program, append([]string{program}, c.Args().Slice()...), os.Environ())
	return fmt.Errorf("%s: %w", program, err)
}

// keeperCommand is the command of the program that is the gate's keeper.
const keeperCommand = "keep-gate"

// keepGate shuts the gate and starts its keeper.
func keepGate(fds []int) error {
	if len(fds) == 0 {
		return nil
	}
	keeper, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(keeper, keeperCommand, strconv.Itoa(len(fds)))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	for _, fd := range fds {
		if err := shut(fd, loopback); err != nil {
			return err
		}
		// A copy, so that the collector cannot close the socket.
		copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(copied), "socket"))
	}
	return cmd.Start()
}

// keep keeps the gate of n sockets: it opens it when Traefik serves, and shuts
// it when Traefik is told to stop, as it is itself, or has died.
func keep(n int) error {
	// systemd and the kernel may both tell it; once is enough.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()

	// A gate that is shut for good is worse than what it is against.
	if err := guest.Until(ctx, 10*time.Second, func() error { return serves(ctx) }); err != nil && ctx.Err() == nil {
		cmdline.Logf("opening the gate, although Traefik does not serve yet: %v", err)
	}
	var failed error
	for _, fd := range sockets(n) {
		if ctx.Err() == nil {
			failed = errors.Join(failed, open(fd))
		}
	}
	<-ctx.Done()
	for _, fd := range sockets(n) {
		failed = errors.Join(failed, shut(fd, loopback))
	}
	return failed
}

// serves returns an error unless Traefik serves the certificates that it has
// in its storage.
func serves(ctx context.Context) error {
	if err := guest.Answers(ctx, pingURL); err != nil {
		return err
	}
	path, err := storageOf(staticFile)
	if err != nil {
		return err
	}
	all, err := readStorage(path)
	if err != nil {
		return nil // there are no certificates to wait for
	}
	for _, cert := range all {
		if cert.valid(time.Now()) {
			if err := hasCertificate(ctx, cert.host); err != nil {
				return err
			}
		}
	}
	return nil
}

// storageOf returns the storage that a static configuration names.
func storageOf(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var static struct {
		Resolvers map[string]struct {
			ACME struct{ Storage string }
		} `yaml:"certificatesResolvers"`
	}
	err = yaml.Unmarshal(text, &static)
	return static.Resolvers[resolver].ACME.Storage, err
}

// hasCertificate returns an error unless Traefik has a certificate for host.
// Who has signed it is for others to check.
func hasCertificate(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{ServerName: host, InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(ctx, "tcp", "127.0.0.1:443")
	if err != nil {
		return fmt.Errorf("TLS for %s: %w", host, err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].VerifyHostname(host)
}
