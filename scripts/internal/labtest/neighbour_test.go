package labtest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const (
	neighbour   = "666" // a container that phx knows nothing of
	neighbourIP = "10.0.0.66"
	caIP        = "10.0.0.10"
	caURL       = "https://" + caIP + ":9000"
	hostIP      = "10.0.0.1"

	neighbourNet = "name=eth0,bridge=vmbr0,ip=" + neighbourIP + "/24,hwaddr=52:54:00:00:06:66"
	program      = "/usr/local/bin/neighbour"
)

// addNeighbour makes a container beside those of the configuration, with the program of a neighbour in it.
func (l lab) addNeighbour(t *testing.T) {
	t.Helper()
	l.inside(t, "pct", "clone", base, neighbour, "--snapname", "final-form", "--hostname", "Neighbour")
	t.Cleanup(func() {
		l.try(t, "scripts/lab", "run", "pct", "stop", neighbour)
		l.inside(t, "pct", "destroy", neighbour)
	})
	l.inside(t, "pct", "set", neighbour, "--net0", neighbourNet)
	l.inside(t, "pct", "start", neighbour)
	l.pushNeighbour(t, neighbour)
}

// pushNeighbour brings the program of a neighbour into a container.
func (l lab) pushNeighbour(t *testing.T, ctid string) {
	t.Helper()
	built := l.path("neighbour")
	cmd := exec.Command("go", "build", "-o", built, "./neighbour")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l.inside(t, "pct", "push", ctid, built, program, "--perms", "0755")
}

// filterNeighbour has the lab enforce a firewall file for the neighbour; "" takes the filter away.
func (l lab) filterNeighbour(t *testing.T, text string) {
	t.Helper()
	path := l.path("pve", "firewall", neighbour+".fw")
	if text == "" {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		l.inside(t, "pct", "set", neighbour, "--net0", neighbourNet)
		return
	}
	write(t, path, text, 0o640)
	l.inside(t, "pct", "set", neighbour, "--net0", neighbourNet+",firewall=1")
}

// testFirewall has the lab enforce rules, and sees what passes and what does not.
func (l lab) testFirewall(t *testing.T) {
	l.addNeighbour(t)
	listener := l.command("scripts/lab", "run", "pct", "exec", neighbour, "--", program, "listen", "7001", "7002")
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.try(t, "scripts/lab", "run", "pct", "exec", neighbour, "--", "pkill", "-x", "neighbour")
		listener.Wait()
	})
	fromHost := func(port string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		conn, err := l.dial(ctx, "tcp", net.JoinHostPort(neighbourIP, port))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	from := func(ctid, protocol, ip, port, script string) bool {
		line := fmt.Sprintf("exec 3<>/dev/%s/%s/%s && %s", protocol, ip, port, script)
		return l.try(t, "scripts/lab", "run", "pct", "exec", ctid, "--", "timeout", "1", "bash", "-c", line).status == 0
	}

	// Services on the host, of TCP and UDP.
	var socket net.PacketConn
	err := l.inNamespace(func() (err error) {
		for _, port := range []string{"7004", "7005"} {
			listener, err := net.Listen("tcp4", net.JoinHostPort(hostIP, port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { listener.Close() }) // the kernel takes connections without us
		}
		socket, err = net.ListenPacket("udp4", hostIP+":7003")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	go func() {
		buffer := make([]byte, 64)
		for {
			n, from, err := socket.ReadFrom(buffer)
			if err != nil {
				return
			}
			socket.WriteTo(buffer[:n], from)
		}
	}()

	flows := []struct {
		name string
		try  func() bool
	}{
		{"host to port 7001", func() bool { return fromHost("7001") }},
		{"host to port 7002", func() bool { return fromHost("7002") }},
		{"proxy to port 7001", func() bool { return from(proxy, "tcp", neighbourIP, "7001", "read -r line <&3") }},
		{"neighbour to port 7004 of the host", func() bool { return from(neighbour, "tcp", hostIP, "7004", "true") }},
		{"neighbour to the host, UDP", func() bool {
			return from(neighbour, "udp", hostIP, "7003",
				"echo hi >&3 && read -r -N 1 line <&3")
		}},
		{"neighbour to port 7005 of the host", func() bool { return from(neighbour, "tcp", hostIP, "7005", "true") }},
	}
	check := func(stage string, want ...bool) {
		t.Helper()
		for i, flow := range flows {
			if got := flow.try(); got != want[i] {
				t.Errorf("%s: %s passes: %v, want %v", stage, flow.name, got, want[i])
			}
		}
	}
	if !within(10*time.Second, func() bool { return fromHost("7001") && fromHost("7002") }) {
		t.Fatal("nothing listens in the neighbour's container")
	}
	check("no firewall", true, true, true, true, true, true)
	const rules = "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\nIN ACCEPT -source 10.0.0.1 -p tcp -dport 7001\n" +
		"OUT DROP -dest 10.0.0.1 -p tcp -dport 7005\n"
	l.filterNeighbour(t, rules)
	check("with rules", true, false, false, true, true, false)
	// Who writes the file tells nobody: the daemon takes it, or the next call of pct, whichever it is.
	inForce := l.read(t, "lock", "firewall.nft")
	write(t, l.path("pve", "firewall", neighbour+".fw"), strings.ReplaceAll(rules, "7001", "7002"), 0o640)
	if !within(10*time.Second, func() bool { return l.read(t, "lock", "firewall.nft") != inForce }) {
		t.Error("the daemon has not taken the file")
	}
	check("with changed rules", false, true, false, true, true, false)
	write(t, l.path("pve", "firewall", neighbour+".fw"), strings.ReplaceAll(rules, "enable: 1", "enable: 0"), 0o640)
	l.inside(t, "pct", "list")
	check("switched off", true, true, true, true, true, true)
}

// The MAC addresses of the configuration, and who of the three talks to whom.
var (
	macs  = map[string]string{ca: "52:54:00:67:89:c3", proxy: "52:54:00:67:89:c2", gateway: "52:54:00:67:89:b3"}
	ips   = map[string]string{ca: caIP, proxy: proxyIP, gateway: gatewayIP}
	peers = map[string][]string{ca: {proxy, gateway}, proxy: {ca, gateway}, gateway: {proxy, ca}}
)

// forget has the three believe in ARP, as every container does by default.
func (l lab) forget(t *testing.T) {
	t.Helper()
	for ctid := range peers {
		l.in(t, ctid, "sh", "-c",
			"systemctl stop phx-neighbours 2>/dev/null; ip neigh flush nud permanent; ip neigh flush all")
	}
}

// remember has the unit of each of the three enter the addresses of the others.
func (l lab) remember(t *testing.T) {
	t.Helper()
	for ctid, others := range peers {
		l.try(t, "scripts/lab", "run", "pct", "exec", ctid, "--", "systemctl", "restart", "phx-neighbours")
		entries := l.in(t, ctid, "ip", "neigh", "show", "nud", "permanent")
		for _, other := range others {
			if want := ips[other] + " dev eth0 lladdr " + macs[other]; !strings.Contains(entries, want) {
				t.Errorf("container %s has no permanent entry %q: %q", ctid, want, entries)
				l.in(t, ctid, "ip", "neigh", "replace", ips[other], "lladdr", macs[other], "dev",
					"eth0", "nud", "permanent")
			}
		}
	}
}

// testNeighbour has a container beside the three take the proxy's address, order a certificate in its name, and
// serve clients with it.
func (l lab) testNeighbour(t *testing.T) {
	l.addNeighbour(t)
	// heal has every frame find its container again: ARP, and what the bridge has learned.
	heal := func(t *testing.T) {
		t.Helper()
		for ctid := range peers {
			l.in(t, ctid, "ip", "neigh", "flush", "all")
		}
		l.try(t, "scripts/lab", "run", "pct", "exec", proxy, "--", "curl", "--silent", "--insecure",
			"--max-time", "5", caURL+"/health")
	}
	t.Cleanup(func() {
		for ctid := range peers {
			l.try(t, "scripts/lab", "run", "pct", "exec", ctid, "--", "systemctl", "restart", "phx-neighbours")
		}
		heal(t)
		if !within(30*time.Second, func() bool { return l.ask(t) == health }) {
			t.Error("no answer through the gateway after the neighbour is gone")
		}
	})
	name := "ca." + domain
	// attack runs for some seconds, or until a certificate is issued and what then ends well.
	attack := func(t *testing.T, seconds int, options []string, then func() bool) (issued bool, text string) {
		t.Helper()
		words := append([]string{"run", "pct", "exec", neighbour, "--", program, "take"}, options...)
		cmd := l.command("scripts/lab", append(words, name, proxyIP, caURL, fmt.Sprint(seconds))...)
		said := &syncWriter{}
		cmd.Stdout, cmd.Stderr = said, said
		start := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		var served bool
		for done := false; !done; {
			select {
			case <-ended:
				done = true
			case <-time.After(50 * time.Millisecond):
				if strings.Contains(said.String(), "issued") {
					issued = true
					if served = then == nil || then(); served {
						t.Logf("issued and served after %.1f s", time.Since(start).Seconds())
						l.in(t, neighbour, "pkill", "-x", "neighbour")
						<-ended
						done = true
					}
				}
			}
		}
		text = said.String()
		// What was taken is given back.
		l.in(t, neighbour, "sh", "-c", "ip address delete "+proxyIP+
			"/32 dev eth0; ip link set eth0 address 52:54:00:00:06:66")
		heal(t)
		if then != nil && issued && !served {
			t.Errorf("a certificate was issued, and clients were not served with it: %s", text)
		}
		return issued || strings.Contains(text, "issued"), text
	}
	forged := []string{"-mac", macs[proxy]}

	l.forget(t)
	t.Run("undefended", func(t *testing.T) { // the control: without any defence it works
		for _, options := range [][]string{nil, forged} {
			if issued, text := attack(t, 20, options, func() bool { return l.ask(t) == "neighbour" }); !issued {
				t.Errorf("the attack %q of these tests does not work, so they prove nothing: %s", options, text)
			}
		}
	})
	t.Run("filtered", func(t *testing.T) {
		l.forget(t)
		l.filterNeighbour(t, "[OPTIONS]\n\nenable: 1\nipfilter: 1\npolicy_in: ACCEPT\n")
		defer l.filterNeighbour(t, "")
		// With its own address it reaches what everybody reaches.
		l.in(t, neighbour, "timeout", "5", "bash", "-c", "exec 3<>/dev/tcp/"+gatewayIP+"/443")
		for _, options := range [][]string{nil, forged} {
			if issued, text := attack(t, 5, options, nil); issued {
				t.Errorf("with %q a filtered neighbour got a certificate for %s: %s", options, name, text)
			}
		}
	})
	// Against forged sources only a filter of the neighbour helps, or a bridge that does not learn.
	t.Run("permanent entries", func(t *testing.T) {
		l.remember(t)
		if issued, text := attack(t, 5, nil, nil); issued {
			t.Errorf("by ARP a neighbour got a certificate for %s: %s", name, text)
		}
	})
}

// testPolicy orders what the CA has no reason to certify.
func (l lab) testPolicy(t *testing.T) {
	l.pushNeighbour(t, proxy)
	defer l.in(t, proxy, "rm", program)
	good := "gateway." + domain
	out := l.in(t, proxy, program, "order", caURL, good, "example.com", "evil"+domain, domain+".example.com",
		"*."+domain, neighbourIP, proxyIP)
	t.Logf("%s", out)
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		if name := strings.TrimSuffix(words[1], ":"); (words[0] == "accepted") != (name == good) {
			t.Errorf("the CA has %s an order for %s", words[0], name)
		}
	}
	if n := strings.Count(out, "\n"); n != 7 {
		t.Errorf("%d answers to 7 orders:\n%s", n, out)
	}
}

// ask returns what a client gets from the CA's name through the gateway.
func (l lab) ask(t *testing.T) string {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second) // also in a cleanup
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://ca."+domain+"/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := l.request(&http.Client{Transport: l.transport(false)}, request)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(text)
}
