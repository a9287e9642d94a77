// Command phx-fingerprint computes the fingerprint of a root certificate.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/event"
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

func verify(name, want string) error {
	root, err := read(name)
	if err != nil {
		return err
	}
	if got := cert.Fingerprint(root); got != want {
		return fmt.Errorf("%s: the fingerprint is %s, not %s", name, got, want)
	}
	return nil
}

func printAll(names []string) error {
	var out strings.Builder
	var failed []error
	for _, name := range names {
		root, err := read(name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		out.WriteString(cert.Fingerprint(root) + "\n")
	}
	for _, err := range failed {
		cmdline.Logf("%v", err)
	}
	if failed != nil {
		return cmdline.Status(1)
	}
	return cmdline.Print(out.String())
}

// read returns the root certificate in a file, - being stdin.
func read(name string) (*x509.Certificate, error) {
	if name == "-" {
		return parse("stdin", os.Stdin)
	}
	return readFile(name)
}

func readFile(name string) (*x509.Certificate, error) {
	// A FIFO without a writer would block the program forever.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read a root certificate: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read a root certificate: %s is not a regular file: stdin is named -", name)
	}
	return parse(name, f)
}

func parse(name string, in io.Reader) (*x509.Certificate, error) {
	// No certificate comes near this size; a device could be without end.
	const limit = 16 << 20
	data, err := io.ReadAll(io.LimitReader(in, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read a root certificate: %w", err)
	case len(data) > limit:
		return nil, fmt.Errorf("%s: larger than %d MiB, so no root certificate", name, limit>>20)
	}
	root, err := cert.ParseRoot(data)
	if err != nil {
		return nil, fmt.Errorf("%s: not usable as a root certificate: %w", name, err)
	}
	return root, nil
}

// filter answers every ca.exported with a ca.fingerprint. The fingerprint is
// that which came with the event, out of the CA's container: one that is
// computed from the file would prove nothing of it.
func filter(ctx context.Context, in io.Reader, out io.Writer) error {
	failed := false
	fail := func(err error) {
		failed = true
		cmdline.Logf("%v", err)
	}
	stream := event.NewStream(in, out, fail)
	for {
		ev, err := stream.Next(ctx, event.NameCAExported)
		switch {
		case errors.Is(err, io.EOF):
			if failed {
				return cmdline.Status(1)
			}
			return nil
		case err != nil:
			return err
		case ev.Name == event.NamePlanDone:
			if err := stream.Forward(ev); err != nil {
				return err
			}
			continue
		}
		exported := ev.Body.(event.CAExported)
		if exported.Path == "" {
			fail(fmt.Errorf("event stream: line %d: ca.exported without a path", ev.Line))
			continue
		}
		if exported.SHA256 == "" {
			fail(fmt.Errorf("event stream: line %d: ca.exported without a fingerprint", ev.Line))
			continue
		}
		pins := []string{exported.SHA256}
		if exported.Also != "" {
			pins = append(pins, exported.Also)
		}
		if _, err := cert.ReadPinned(exported.Path, pins...); err != nil {
			fail(fmt.Errorf("not what phx-ca-export has exported: %w", err))
			continue
		}
		err = stream.Emit(event.CAFingerprint{
			Path: exported.Path, SHA256: exported.SHA256, Also: exported.Also, CAURL: exported.CAURL,
		})
		if err != nil {
			return err
		}
	}
}
