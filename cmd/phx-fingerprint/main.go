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

Print the SHA-256 of a root certificate, 64 lower case hexadecimal digits, as
step certificate fingerprint does: one line for each FILE, in their order, and
nothing if one of them cannot be used. FILE is PEM or DER, - is stdin. Of
several certificates exactly one must be a self-signed CA certificate, and that
one counts.

As a filter, without arguments, see that the file which phx-ca-export has
exported holds the roots that it has named, and nothing else, and say so.

Options:
    --verify HEX    Print nothing and compare: exit status 0 if the fingerprint
                    is HEX, 1 if not. Either case, colons allowed.
    --help          Print this text.
    --version       Print the version.

Events read: ca.exported, plan.done.
Events written: ca.fingerprint.

A certificate that is not valid now has a fingerprint like any other. Exit
status: 0 all well, 1 no usable root certificate, or another one than asked
for, 2 wrong usage.

Example:
    phx-fingerprint --verify "$FINGERPRINT" phoenix_ca.crt && echo the same CA
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
