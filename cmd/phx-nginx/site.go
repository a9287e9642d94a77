package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"text/template"
)

// gateway is what is to be set up: the request from the host's half to the
// container's.
type gateway struct {
	Domain      string `json:"domain"`      // served as itself and as *.Domain
	Proxy       string `json:"proxy"`       // IP address of the proxy, which serves HTTPS at port 443
	StatusPort  int    `json:"status_port"` // of the status page; 0 for none
	Root        string `json:"root"`        // the root certificate's place in the container
	Fingerprint string `json:"fingerprint"` // its SHA-256, lower-case hex
	CAURL       string `json:"ca_url"`      // https://HOST:PORT
}

var (
	domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	rootForm   = regexp.MustCompile(`^/[A-Za-z0-9._/-]+$`)
	hexForm    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	caURLForm  = regexp.MustCompile(`^https://[A-Za-z0-9.:\[\]-]+$`)
)

// check refuses what would mean something else in nginx's configuration or on
// step's command line.
func (g gateway) check() error {
	switch {
	case !domainForm.MatchString(g.Domain):
		return fmt.Errorf("domain %q: not a host name in lower case", g.Domain)
	case g.StatusPort < 0 || g.StatusPort > 65535 || g.StatusPort == 80 || g.StatusPort == 443:
		return fmt.Errorf("status port %d: not a free TCP port", g.StatusPort)
	case !rootForm.MatchString(g.Root):
		return fmt.Errorf("root certificate %q: not an absolute path of letters, digits, '.', '_' and '-'", g.Root)
	case g.Fingerprint != "" && !hexForm.MatchString(g.Fingerprint):
		return fmt.Errorf("fingerprint %q: not 64 hexadecimal digits", g.Fingerprint)
	case g.CAURL != "" && !caURLForm.MatchString(g.CAURL):
		return fmt.Errorf("CA URL %q: not https://HOST:PORT", g.CAURL)
	}
	if _, err := netip.ParseAddr(g.Proxy); err != nil {
		return fmt.Errorf("proxy %q: not an IP address", g.Proxy)
	}
	return nil
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
