package cmdline

import (
	"errors"
	"net/netip"
	"regexp"
	"strconv"

	"github.com/urfave/cli/v2"
)

var aptProxyForm = regexp.MustCompile(
	`^http://(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})$`)

// CheckAptProxy returns an error unless a URL is that of a proxy for apt, with
// nothing else in it.
func CheckAptProxy(url string) error {
	m := aptProxyForm.FindStringSubmatch(url)
	err := errors.New("must be http://HOST:PORT")
	if m == nil {
		return err
	}
	if ip, wrong := netip.ParseAddr(m[1]); m[1] != "" && (wrong != nil || !ip.Is6()) {
		return err
	}
	if port, _ := strconv.Atoi(m[2]); port < 1 || port > 65535 {
		return err
	}
	return nil
}

// AptProxy returns the value of --apt-proxy, "" for none.
func AptProxy(c *cli.Context) (string, error) {
	url := c.String("apt-proxy")
	if url != "" {
		if err := CheckAptProxy(url); err != nil {
			return "", Usagef("--apt-proxy %q: %v", url, err)
		}
	}
	return url, nil
}
