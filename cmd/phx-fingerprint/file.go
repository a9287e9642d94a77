package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
)

// verify returns an error unless the root certificate in a file has this fingerprint.
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

// printAll prints the fingerprint of the root certificate in each file.
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

// limit is how many bytes a file may have. No certificate comes near it, and a
// bundle of many, as a system has, is far beyond that of [cert.ReadFile]; a device
// could be without end.
const limit = 16 << 20

// read returns the root certificate in a file, - being stdin.
func read(name string) (*x509.Certificate, error) {
	if name == "-" {
		return parse("stdin", os.Stdin)
	}
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

// parse returns the root certificate in what comes from in. name is for messages.
func parse(name string, in io.Reader) (*x509.Certificate, error) {
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
