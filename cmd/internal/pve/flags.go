package pve

import (
	"path/filepath"
	"strings"
	"unicode"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
)

// Flags are the options that say where the host's programs and files are, and how
// long a command may take.
func Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "attach", Value: "auto", EnvVars: []string{"PHX_ATTACH"}},
		&cli.StringFlag{Name: "lxc-path", Value: DefaultLXCPath, EnvVars: []string{"PHX_LXC_PATH"}},
		&cli.StringFlag{Name: "pct", Value: "pct", EnvVars: []string{"PHX_PCT"}},
		&cli.StringFlag{Name: "proc", Value: "/proc", EnvVars: []string{"PHX_PROC"}},
		&cli.StringFlag{Name: "pve-root", Value: "/etc/pve", EnvVars: []string{"PHX_PVE_ROOT"}},
		&cli.DurationFlag{Name: "timeout", Value: DefaultTimeout, EnvVars: []string{"PHX_TIMEOUT"}},
	}
}

// FromFlags returns the host that the options name; of these, --pveam, --pvesm and
// --pve-lock may be missing. The error is one of usage.
func FromFlags(c *cli.Context) (*Host, error) {
	h := &Host{
		PCT: c.String("pct"), PVEAM: c.String("pveam"), PVESM: c.String("pvesm"),
		PVERoot: c.String("pve-root"), PVELock: c.String("pve-lock"), Proc: c.String("proc"),
		LXCPath: c.String("lxc-path"), Timeout: c.Duration("timeout"),
	}
	switch way := c.String("attach"); way {
	case "auto":
		h.Direct = isProxmox("/", h.PCT)
	case "direct":
		h.Direct = true
	case "pct":
	default:
		return nil, cmdline.Usagef("--attach %s: must be auto, direct or pct", way)
	}
	// Compared with the names of sockets: by any other form, nothing would run.
	if path := h.LXCPath; !filepath.IsAbs(path) || strings.ContainsFunc(path, unicode.IsSpace) {
		return nil, cmdline.Usagef("--lxc-path %q: must be an absolute path without blanks", path)
	}
	h.LXCPath = filepath.Clean(h.LXCPath)
	if h.Timeout <= 0 {
		return nil, cmdline.Usagef("--timeout %s: must be more than 0", h.Timeout)
	}
	return h, nil
}
