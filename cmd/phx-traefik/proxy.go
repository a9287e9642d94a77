package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
	"thinkheads.ai/phx/cmd/internal/guest"
)

// proxy is what is to be set up: the request from the host's half to the
// container's.
type proxy struct {
	guest.Trust
	Services   []service         `json:"services"`
	Gateway    string            `json:"gateway"`   // IP address of the gateway before it; "" for none
	Interface  string            `json:"interface"` // through which its neighbours are reached
	Neighbours []guest.Neighbour `json:"neighbours,omitempty"`
}

// service is a container's service behind the proxy.
type service struct {
	Name string `json:"name"` // of its router
	Host string `json:"host"` // the name under which it is served
	URL  string `json:"url"`  // where the container answers
}

var (
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	hostForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
)

// check refuses what would mean something else in a Traefik rule, in
// /etc/hosts or on step's command line.
func (p proxy) check() error {
	for _, s := range p.Services {
		if !nameForm.MatchString(s.Name) {
			return fmt.Errorf("service %q: not a label of a host name in lower case", s.Name)
		}
		if !hostForm.MatchString(s.Host) {
			return fmt.Errorf("service %s: host %q: not a host name in lower case", s.Name, s.Host)
		}
		if u, err := url.Parse(s.URL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("service %s: url %q: not http:// or https:// and a host", s.Name, s.URL)
		}
	}
	if p.CAURL == "" {
		return errors.New("CA URL: none is given")
	}
	if ip, err := netip.ParseAddr(p.Gateway); p.Gateway != "" && (err != nil || ip.Zone() != "") {
		return fmt.Errorf("gateway %q: not an IP address", p.Gateway)
	}
	return p.Trust.Check()
}

// hosts are the names that the proxy serves.
func (p proxy) hosts() []string {
	hosts := []string{}
	for _, s := range p.Services {
		hosts = append(hosts, s.Host)
	}
	return hosts
}

// Places in the proxy's container.
const (
	staticFile  = "/etc/traefik/traefik.yml"
	dynamicDir  = "/etc/traefik/dynamic"
	dynamicFile = dynamicDir + "/phoenix.yml"
	rootFile    = "/etc/traefik/phoenix_ca.crt" // a copy: Traefik reads it only when it starts
	stateDir    = "/var/lib/traefik"
)

// Resolver and entry points, by the names that routers use.
const (
	resolver  = "internal"
	plain     = "web"
	encrypted = "websecure"
)

// acmeFile is where Traefik keeps its ACME account and certificates. Those of
// another root are worth nothing: each root has a file of its own.
func (p proxy) acmeFile() string {
	return fmt.Sprintf("%s/acme-%.12s.json", stateDir, p.Fingerprint)
}

const header = "# Written by phx-traefik. Changes made here are lost at its next run.\n"

// static is Traefik's static configuration, which it reads when it starts.
func (p proxy) static() []byte {
	return render(map[string]any{
		"global": map[string]any{"checkNewVersion": false, "sendAnonymousUsage": false},
		"log":    map[string]any{"level": "INFO", "noColor": true},
		"ping":   map[string]any{},
		"entryPoints": map[string]any{
			plain: map[string]any{
				"address": ":80",
				"http": map[string]any{"redirections": map[string]any{
					"entryPoint": map[string]any{"to": encrypted, "scheme": "https"},
				}},
			},
			encrypted: p.encryptedEntryPoint(),
			"traefik": map[string]any{"address": "127.0.0.1:8080"}, // ping
		},
		"providers": map[string]any{"file": map[string]any{"directory": dynamicDir, "watch": true}},
		"certificatesResolvers": map[string]any{resolver: map[string]any{"acme": map[string]any{
			"caServer":       p.CAURL + "/acme/acme/directory",
			"caCertificates": []string{rootFile},
			"storage":        p.acmeFile(),
			"keyType":        "EC256",
			// In hours. It only schedules renewal: with Traefik's default of
			// 90 days, the CA's certificates of 24 hours would expire first.
			"certificatesDuration": 24,
			"tlsChallenge":         map[string]any{},
		}}},
	})
}

// encryptedEntryPoint takes as long for a request as the gateway does, and
// believes the gateway, and nobody else, who the client is.
func (p proxy) encryptedEntryPoint() map[string]any {
	entryPoint := map[string]any{
		"address":   ":443",
		"transport": map[string]any{"respondingTimeouts": map[string]any{"readTimeout": "1h"}},
	}
	if p.Gateway != "" {
		entryPoint["forwardedHeaders"] = map[string]any{"trustedIPs": []string{p.Gateway}}
	}
	return entryPoint
}

// dynamic is Traefik's dynamic configuration, of which it sees every change.
func (p proxy) dynamic() []byte {
	if len(p.Services) == 0 {
		return []byte(header)
	}
	routers, services, transports := map[string]any{}, map[string]any{}, map[string]any{}
	for _, s := range p.Services {
		routers[s.Name] = map[string]any{
			"rule":        "Host(`" + s.Host + "`)",
			"entryPoints": []string{encrypted},
			"service":     s.Name,
			"tls":         map[string]any{"certResolver": resolver},
		}
		balancer := map[string]any{"servers": []any{map[string]any{"url": s.URL}}}
		if strings.HasPrefix(s.URL, "https:") {
			balancer["serversTransport"] = s.Name
			transports[s.Name] = map[string]any{"rootCAs": []string{rootFile}, "serverName": s.Host}
		}
		services[s.Name] = map[string]any{"loadBalancer": balancer}
	}
	http := map[string]any{"routers": routers, "services": services}
	if len(transports) > 0 {
		http["serversTransports"] = transports
	}
	return render(map[string]any{"http": http})
}

func render(v any) []byte {
	text, err := yaml.Marshal(v)
	if err != nil {
		panic(err) // maps and strings can always be marshalled
	}
	return append([]byte(header), text...)
}
