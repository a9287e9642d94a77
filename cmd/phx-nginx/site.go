package main

import (
	"bytes"
	_ "embed"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
)

// The gateway's certificate and key live in a directory that only root can
// enter, behind a symbolic link: exchanging the link exchanges both at once.
const (
	stateDir        = "/etc/phx/nginx"
	pairLink        = stateDir + "/tls"
	certificateFile = pairLink + "/gateway.crt"
	keyFile         = pairLink + "/gateway.key"
)

//go:embed site.conf.tmpl
var siteText string

// blanked are headers that a client must not send to a service, which would
// take them for the word of the proxy before it.
var blanked = []string{
	"Forwarded", "X-Forwarded", "X-Forwarded-By", "X-Forwarded-Method", "X-Forwarded-Prefix", "X-Forwarded-Protocol",
	"X-Forwarded-Scheme", "X-Forwarded-Server", "X-Forwarded-Ssl", "X-Forwarded-Uri", "X-Forwarded-Url",
	"X-Forwarded-Path", "X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info", "X-Forwarded-Client-Cert",
	"X-Forwarded-User", "X-Forwarded-Groups", "X-Forwarded-Email", "X-Forwarded-Preferred-Username",
	"X-Forwarded-Access-Token", "X-Original-Forwarded-For", "X-Original-Host", "X-Original-Method",
	"X-Original-Remote-Addr", "X-Original-Uri", "X-Original-Url", "X-Rewrite-Url", "X-Host", "X-Http-Host-Override",
	"X-Scheme", "X-Url-Scheme", "Front-End-Https", "Client-Ip", "True-Client-Ip", "X-Client-Ip",
	"X-Cluster-Client-Ip", "X-Originating-Ip", "X-Remote-Addr", "X-Remote-Ip", "X-ProxyUser-Ip", "Cf-Connecting-Ip",
	"Fastly-Client-Ip", "X-Real-Host", "X-Real-Port", "Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email",
	"X-Remote-User", "X-Remote-Group", "X-Webauth-User", "X-Ssl-Client-Cert", "X-Ssl-Client-Verify",
	"X-Ssl-Client-Dn", "X-Ssl-Client-S-Dn", "Ssl-Client-Cert", "Ssl-Client-Verify", "X-Client-Cert", "Proxy",
	"Http2-Settings",
}

var siteTemplate = template.Must(template.New("site").Parse(siteText))

// site is nginx's configuration of the gateway, on this machine.
func (g gateway) site() []byte { return g.siteWith(guest.HasIPv6()) }

// siteWith is site for a machine that has IPv6, or not.
func (g gateway) siteWith(six bool) []byte {
	proxy := g.Proxy
	if strings.Contains(proxy, ":") {
		proxy = "[" + proxy + "]"
	}
	everywhere := []string{""} // what is before a port that is open at all addresses of a family
	if six {
		everywhere = append(everywhere, "[::]:")
	}
	var b bytes.Buffer
	err := siteTemplate.Execute(&b, map[string]any{
		"Names": g.Domain + " *." + g.Domain, "Domain": g.Domain, "Blanked": blanked, "Proxy": proxy, "Root": g.Root,
		"StatusPort": g.StatusPort, "StatusHost": g.StatusHost, "Certificate": certificateFile, "Key": keyFile,
		"Everywhere": everywhere,
	})
	if err != nil {
		panic(err) // the template and its data are constants of this program
	}
	return b.Bytes()
}

// renderCommand prints the site, here as in the container.
func renderCommand(c *cli.Context) error {
	g, err := gatewayOf(c, gateway{})
	if err != nil {
		return err
	}
	if err := g.check(); err != nil {
		return cmdline.Usagef("%v", err)
	}
	return cmdline.ReadOnly(c.Context, func() error { return cmdline.Print(string(g.site())) })
}
