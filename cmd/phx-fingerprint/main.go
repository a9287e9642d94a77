// Command phx-fingerprint computes the fingerprint of a root certificate.
//
// It reads files, and knows nothing of Proxmox VE and of containers.
package main

import (
	"os"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
)

const usage = `Usage:
    … | phx-ca-export | phx-fingerprint | …
    phx-fingerprint FILE…
    phx-fingerprint --verify HEX FILE

Print the SHA-256 of a root certificate; - is stdin. As a filter, see that the
exported file holds the roots that phx-ca-export has named.

Options:
    --verify HEX           exit status 0 if the fingerprint is HEX, 1 if not
    --help                 print this text
    --version              print the version

phx-fingerprint(1) has more: man phx-fingerprint.
`

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-fingerprint",
		CustomAppHelpTemplate: usage,
		Flags:                 []cli.Flag{&cli.StringFlag{Name: "verify"}},
		Action:                run,
	})
}

func run(c *cli.Context) error {
	if c.IsSet("verify") {
		want, err := cert.ParseFingerprint(c.String("verify"))
		if err != nil {
			return cmdline.Usagef("--verify: %v", err)
		}
		if c.NArg() != 1 {
			return cmdline.Usagef("--verify needs one file to compare with, - for stdin")
		}
		return cmdline.ReadOnly(c.Context, func() error { return verify(c.Args().First(), want) })
	}
	filterMode, err := cmdline.Filter(c)
	switch {
	case err != nil:
		return err
	case filterMode:
		return filter(c.Context, os.Stdin, os.Stdout)
	}
	return cmdline.ReadOnly(c.Context, func() error { return printAll(c.Args().Slice()) })
}
