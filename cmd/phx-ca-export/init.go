package main

import (
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
)

// initialize makes the CA, or sees that it is there.
func initialize(c *cli.Context) error {
	e, err := newExporter(c)
	if err != nil {
		return err
	}
	settings, err := settingsOf(c)
	if err != nil {
		return err
	}
	store, closeStore, err := cahost.OpenStore(c.Context, e.host)
	if err != nil {
		return err
	}
	defer closeStore()
	result, err := cahost.Converge(c.Context, e.host, c.Int("ctid"), store, cahost.Options{
		Settings: settings,
		Create:   true,
		Accept:   e.accept,
		Log:      cmdline.Logf,
	})
	if err == nil && len(result.Changes) == 0 {
		cmdline.Logf("the CA is there: root %s", result.Pin.Primary)
	}
	return err
}

// settingsOf reads the options of init.
func settingsOf(c *cli.Context) (*ca.Settings, error) {
	domain := strings.ToLower(c.String("domain"))
	addr, addrErr := netip.ParseAddr(c.String("ip"))
	switch {
	case c.Args().Present():
		return nil, cmdline.Usagef("init: unexpected argument %q", c.Args().First())
	case !c.IsSet("ctid"):
		return nil, cmdline.Usagef("init: name the CA's container with --ctid")
	case !config.IsHostName(domain):
		return nil, cmdline.Usagef("init: --domain %q: not a domain", domain)
	case addrErr != nil || addr.Zone() != "":
		return nil, cmdline.Usagef("init: --ip %q: not an IP address: "+
			"the CA needs a fixed one, by which others reach it", c.String("ip"))
	case c.Int("port") < 1 || c.Int("port") > 65535:
		return nil, cmdline.Usagef("init: --port %d: not a port", c.Int("port"))
	case !config.IsHostName(c.String("name")):
		return nil, cmdline.Usagef("init: --name %q: not a host name", c.String("name"))
	}
	return &ca.Settings{Domain: domain, Addr: addr, Name: c.String("name"), Port: c.Int("port")}, nil
}
