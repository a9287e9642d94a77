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

var siteTemplate = template.Must(template.New("site").Parse(siteText))

// site is nginx's configuration of the gateway.
func (g gateway) site() []byte {
	proxy := g.Proxy
	if strings.Contains(proxy, ":") {
		proxy = "[" + proxy + "]"
	}
	var b bytes.Buffer
	err := siteTemplate.Execute(&b, map[string]any{
		"Names": strings.Join(g.names(), " "), "Proxy": proxy, "Root": g.Root, "StatusPort": g.StatusPort,
		"Certificate": certificateFile, "Key": keyFile,
	})
	if err != nil {
		panic(err) // the template and its data are constants of this program
	}
	return b.Bytes()
}
