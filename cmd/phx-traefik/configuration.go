package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cmdline"
)

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
func (p proxy) acmeFile() string { return storagePath(p.Fingerprint) }

// storagePath returns the storage that belongs to a root, by its fingerprint.
func storagePath(pin string) string { return fmt.Sprintf("%s/acme-%.12s.json", stateDir, pin) }

const header = "# Written by phx-traefik. Changes made here are lost at its next run.\n"

// Hours for which Traefik thinks that the CA's certificates are valid. It only
// schedules renewal: of 24 hours 6 before their end, and of 90 days, Traefik's
// default, a month before: all at its start.
const (
	usualHours = 24
	renewAll   = 90 * 24
)

// static is Traefik's static configuration, which it reads when it starts.
func (p proxy) static(hours int) []byte {
	config := map[string]any{
		"global": map[string]any{"checkNewVersion": false, "sendAnonymousUsage": false},
		"log":    map[string]any{"level": "INFO", "noColor": true},
		"ping":   map[string]any{},
		"entryPoints": map[string]any{
			plain:     map[string]any{"address": ":80", "transport": map[string]any{"lifeCycle": lifeCycle}},
			encrypted: p.encryptedEntryPoint(),
			"traefik": map[string]any{"address": "127.0.0.1:8080"}, // ping
		},
		"providers": map[string]any{"file": map[string]any{"directory": dynamicDir, "watch": true}},
		"certificatesResolvers": map[string]any{resolver: map[string]any{"acme": map[string]any{
			"caServer":             ca.ACMEDirectory(p.CAURL),
			"caCertificates":       []string{rootFile},
			"storage":              p.acmeFile(),
			"keyType":              "EC256",
			"certificatesDuration": hours,
			"tlsChallenge":         map[string]any{},
		}}},
	}
	if p.Dashboard != nil {
		config["api"] = map[string]any{"disableDashboardAd": true}
	}
	return render(config)
}

// lifeCycle is how Traefik stops. First it takes those who have come before
// the gate was shut. Then it waits for requests under way, and for the
// connections on which the CA has made sure of a name, for Traefik never
// closes these: each stop takes all the time that it may.
var lifeCycle = map[string]any{"requestAcceptGraceTimeout": "300ms", "graceTimeOut": "2s"}

// encryptedEntryPoint takes as long for a request as the gateway does, and
// believes the gateway, and nobody else, who the client is.
func (p proxy) encryptedEntryPoint() map[string]any {
	entryPoint := map[string]any{
		"address": ":443",
		"transport": map[string]any{
			"lifeCycle":          lifeCycle,
			"respondingTimeouts": map[string]any{"readTimeout": "1h"},
		},
	}
	if trusted := p.gateways(); len(trusted) > 0 {
		entryPoint["forwardedHeaders"] = map[string]any{"trustedIPs": trusted}
	}
	return entryPoint
}

// caRequests are those that the CA gets through the proxy: what clients need
// to trust it. Certificates are for those who reach the CA itself.
const caRequests = " && (Method(`GET`) || Method(`HEAD`)) && " +
	"PathRegexp(`^/(1\\.0/)?(health|roots|roots\\.pem|root/[0-9a-fA-F]{64}|crl)$`)"

// Middlewares, by the names that routers use.
const (
	toHTTPS   = "phx-https"
	patiently = "phx-patiently"
	allowed   = "phx-allowed"
)

// dashboard returns the router of the dashboard and the middleware that says who
// gets it. The client is whom the gateway names, and without a gateway whoever
// comes: a request that does not come through the gateway names nobody, and is
// refused.
func (p proxy) dashboard() (router, allow map[string]any) {
	list := map[string]any{"sourceRange": p.Dashboard.Allow}
	if len(p.gateways()) > 0 {
		list["ipStrategy"] = map[string]any{"depth": 1}
	}
	return map[string]any{
		"rule":        hostRule(p.Dashboard.Host),
		"entryPoints": []string{encrypted},
		"middlewares": []string{allowed},
		"service":     "api@internal",
		"tls":         map[string]any{"certResolver": resolver},
	}, map[string]any{"ipAllowList": list}
}

func hostRule(host string) string { return "Host(`" + host + "`)" }

// transport is how Traefik speaks HTTPS with a service.
func (r route) transport() map[string]any {
	transport := map[string]any{"serverName": r.serverName()}
	if r.Insecure {
		transport["insecureSkipVerify"] = true
	} else {
		transport["rootCAs"] = []string{rootFile}
	}
	if r.CA {
		// Of an HTTP/2 connection that breaks off, the retry takes the
		// header for an answer, and the client gets it without a body.
		transport["disableHTTP2"] = true
		// A request that was written to an idle connection is not tried again, even
		// if the CA has just closed it to restart: each gets a connection of its own.
		transport["maxIdleConnsPerHost"] = -1
	}
	return transport
}

// dynamic is Traefik's dynamic configuration, of which it sees every change.
func (p proxy) dynamic() []byte {
	routers, services, transports := map[string]any{}, map[string]any{}, map[string]any{}
	middlewares := map[string]any{}
	var known []string
	for _, s := range p.Services {
		rule := hostRule(s.Host)
		known = append(known, rule)
		router := map[string]any{
			"entryPoints": []string{encrypted},
			"service":     s.Name,
			"tls":         map[string]any{"certResolver": resolver},
		}
		if s.CA {
			rule += caRequests
			router["middlewares"] = []string{patiently}
			// Tried again for some 5 s, while the CA restarts.
			middlewares[patiently] = map[string]any{"retry": map[string]any{"attempts": 12, "initialInterval": "300ms"}}
		}
		router["rule"] = rule
		routers[s.Name] = router
		balancer := map[string]any{"servers": []any{map[string]any{"url": s.URL}}}
		if strings.HasPrefix(s.URL, "https:") {
			balancer["serversTransport"] = s.Name
			transports[s.Name] = s.transport()
		}
		services[s.Name] = map[string]any{"loadBalancer": balancer}
	}
	if p.Dashboard != nil {
		known = append(known, hostRule(p.Dashboard.Host))
		routers["phx:dashboard"], middlewares[allowed] = p.dashboard()
	}
	// A host that is not served gets 404, and is led nowhere.
	if len(known) > 0 {
		middlewares[toHTTPS] = map[string]any{"redirectScheme": map[string]any{"scheme": "https", "permanent": true}}
		routers["phx:plain"] = map[string]any{
			"rule":        strings.Join(known, " || "),
			"entryPoints": []string{plain},
			"middlewares": []string{toHTTPS},
			"service":     "noop@internal",
		}
	}
	config := map[string]any{"tls": map[string]any{"options": map[string]any{"default": map[string]any{
		"minVersion": "VersionTLS12",
		// Of TLS 1.2; those of TLS 1.3 are all good. The keys are all ECDSA.
		"cipherSuites": []string{
			"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
			"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
			"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
		},
		"alpnProtocols": []string{"h2", "http/1.1", "acme-tls/1"},
		"sniStrict":     true,
	}}}}
	http := map[string]any{}
	for key, value := range map[string]map[string]any{
		"routers": routers, "services": services, "serversTransports": transports, "middlewares": middlewares,
	} {
		if len(value) > 0 {
			http[key] = value
		}
	}
	if len(http) > 0 {
		config["http"] = http
	}
	return render(config)
}

func render(v any) []byte {
	text, err := yaml.Marshal(v)
	if err != nil {
		panic(err) // maps and strings can always be marshalled
	}
	return append([]byte(header), text...)
}

// renderCommand prints both files, here as in the container.
func renderCommand(c *cli.Context) error {
	p, err := proxyOf(c, proxy{})
	if err != nil {
		return err
	}
	return cmdline.ReadOnly(c.Context, func() error {
		return cmdline.Print(fmt.Sprintf("# %s\n%s\n# %s\n%s",
			staticFile, p.static(usualHours), dynamicFile, p.dynamic()))
	})
}
