package main

import (
	"errors"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
)

// printRoots prints the root certificates that this host has pinned, or those of
// them that are named.
func printRoots(c *cli.Context) error {
	e, err := newExporter(c)
	if err != nil {
		return err
	}
	var wanted []string
	for _, arg := range c.Args().Slice() {
		sum, err := cert.ParseFingerprint(arg)
		if err != nil {
			return cmdline.Usagef("roots: %v", err)
		}
		wanted = append(wanted, sum)
	}
	roots, err := cahost.PinnedRoots(e.host)
	switch {
	case err != nil:
		return err
	case roots == nil:
		return errors.New("no root is pinned on this host yet, because there is no CA: " +
			"name the CA's container among the dependencies of the one that is to trust it")
	}
	var text []byte
	for _, root := range roots {
		sum := cert.Fingerprint(root)
		if i := slices.Index(wanted, sum); i >= 0 {
			wanted = slices.Delete(wanted, i, i+1)
		} else if c.Args().Present() {
			continue
		}
		text = append(text, cert.Encode(root)...)
	}
	if len(wanted) > 0 {
		return cmdline.Usagef("roots: %s: not pinned on this host", wanted[0])
	}
	_, err = os.Stdout.Write(text)
	return err
}
