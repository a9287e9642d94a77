package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"text/template"

	"thinkheads.ai/phx/cmd/internal/guest"
)

// gateway is what is to be set up: the request from the host's half to the
// container's.
type gateway struct {
	guest.Trust
	Domain     string            `json:"domain"`      // served as itself and as *.Domain
	Proxy      string            `json:"proxy"`       // IP address of the proxy, which serves HTTPS at port 443
	StatusPort int               `json:"status_port"` // of the status page; 0 for none
	StatusHost string            `json:"status_host"` // by which the page is served as well; "" for none
	Interface  string            `json:"interface"`   // through which its neighbours are reached
	Neighbours []guest.Neighbour `json:"neighbours,omitempty"`
}

var domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// check refuses what would mean something else in nginx's configuration or on
// step's command line.
func (g gateway) check() error {
	switch {
	case !domainForm.MatchString(g.Domain):
		return fmt.Errorf("domain %q: not a host name in lower case", g.Domain)
	case g.StatusPort < 0 || g.StatusPort > 65535 || g.StatusPort == 80 || g.StatusPort == 443:
		return fmt.Errorf("status port %d: not a free TCP port", g.StatusPort)
	case g.StatusHost != "" && (!domainForm.MatchString(g.StatusHost) || !strings.HasSuffix(g.StatusHost, "."+g.Domain)):
		return fmt.Errorf("status host %q: not a host name below %s", g.StatusHost, g.Domain)
	case g.Root == "":
		return errors.New("root certificate: no place is given")
	}
	if ip, err := netip.ParseAddr(g.Proxy); err != nil || ip.Zone() != "" {
		return fmt.Errorf("proxy %q: not an IP address", g.Proxy)
	}
	return g.Trust.Check()
}

// names are the names of the gateway's certificate.
func (g gateway) names() []string { return []string{g.Domain, "*." + g.Domain} }

//go:embed site.conf.tmpl
var siteText string

// blanked are headers that a client must not send to a service, which would
// take them for the word of the proxy before it.
var blanked = []string{
	"Forwarded", "X-Forwarded", "X-Forwarded-By", "X-Forwarded-Method", "X-Forwarded-Prefix", "X-Forwarded-Protocol",
	"X-Forwarded-Scheme", "X-Forwarded-Server", "X-Forwarded-Ssl", "X-Forwarded-Uri", "X-Forwarded-Url", "X-Forwarded-Path",
	"X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info", "X-Forwarded-Client-Cert",
	"X-Forwarded-User", "X-Forwarded-Groups", "X-Forwarded-Email", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
	"X-Original-Forwarded-For", "X-Original-Host", "X-Original-Method", "X-Original-Remote-Addr", "X-Original-Uri", "X-Original-Url",
	"X-Rewrite-Url", "X-Host", "X-Http-Host-Override", "X-Scheme", "X-Url-Scheme", "Front-End-Https",
	"Client-Ip", "True-Client-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Originating-Ip", "X-Remote-Addr", "X-Remote-Ip",
	"X-ProxyUser-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "X-Real-Host", "X-Real-Port",
	"Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email", "X-Remote-User", "X-Remote-Group", "X-Webauth-User",
	"X-Ssl-Client-Cert", "X-Ssl-Client-Verify", "X-Ssl-Client-Dn", "X-Ssl-Client-S-Dn", "Ssl-Client-Cert", "Ssl-Client-Verify", "X-Client-Cert",
	"Proxy", "Http2-Settings",
}

var siteTemplate = template.Must(template.New("site").Parse(siteText))

// site is nginx's configuration of the gateway.
func (g gateway) site() []byte {
	proxy := g.Proxy
	if strings.Contains(proxy, ":") {
		proxy = "[" + proxy + "]"
	}
	var b bytes.Buffer
	err := siteTemplate.Execute(&b, map[string]any{
		"Names": strings.Join(g.names(), " "), "Domain": g.Domain, "Blanked": blanked, "Proxy": proxy, "Root": g.Root, "StatusPort": g.StatusPort, "StatusHost": g.StatusHost,
		"Certificate": certificateFile, "Key": keyFile,
	})
	if err != nil {
		panic(err) // the template and its data are constants of this program
	}
	return b.Bytes()
}
