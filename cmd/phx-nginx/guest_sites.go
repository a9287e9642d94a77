// nginx's configuration, in the container: phx's site beside those of others.

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/guest"
)

const (
	siteFile    = "/etc/nginx/conf.d/phoenix.conf"
	stockSite   = "/etc/nginx/sites-enabled/default" // listens on port 80 as well
	replacedDir = stateDir + "/replaced"
)

// oldFiles are where the scripts before phx have put the gateway's configuration.
var oldFiles = []string{"/etc/nginx/sites-enabled/gateway", "/etc/nginx/stream.d/stream-gateway.conf"}

// oldSites are the SHA-256 of the sites that the scripts before phx have
// installed, with DOMAIN in the place of the domain.
//
//go:embed old_sites.sha256
var oldSites string

// isOld reports whether a file in the place of one of [oldFiles] can give way to
// phx's site: the scripts before phx have installed it as it is, or it does nothing
// that phx's site does not do.
func isOld(content []byte, g gateway) bool {
	sum := sha256.Sum256(bytes.ReplaceAll(content, []byte(g.Domain), []byte("DOMAIN")))
	if slices.Contains(strings.Fields(oldSites), hex.EncodeToString(sum[:])) {
		return true
	}
	directives, ok := parse(string(content))
	return ok && leadsToProxy(directives, g)
}

// configure writes nginx's configuration, and takes away sites in its place
// that nobody has written by hand. When nginx refuses it, or would serve our
// names from elsewhere as well, what was there before is put back.
func configure(ctx context.Context, s *guest.Setup, g gateway) error {
	said := len(s.Changes)
	var undo []func() error
	err := func() error {
		if target, err := os.Readlink(stockSite); err == nil {
			if err := errors.Join(forgetLoaded(), os.Remove(stockSite)); err != nil {
				return err
			}
			undo = append(undo, func() error { return os.Symlink(target, stockSite) })
			s.Changed("removed %s", stockSite)
		}
		for _, path := range oldFiles {
			content, err := os.ReadFile(path)
			if err != nil || !isOld(content, g) {
				continue
			}
			if err := forgetLoaded(); err != nil {
				return err
			}
			kept, back, err := moveAway(path, content)
			if err != nil {
				return err
			}
			undo = append(undo, back)
			s.Changed("moved %s of the scripts before phx to %s", path, kept)
		}
		before, err := os.ReadFile(siteFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		changed, err := s.WriteFile(siteFile, g.site(), 0o644)
		if err != nil {
			return err
		}
		if changed {
			undo = append(undo, func() error {
				if before == nil {
					return os.Remove(siteFile)
				}
				return atomicfile.Write(siteFile, before, 0o644)
			})
		}
		return checkConfiguration(ctx, s, g)
	}()
	if err == nil || len(undo) == 0 {
		return err
	}
	s.Changes = s.Changes[:said]
	err = fmt.Errorf("the old configuration is back: %w", err)
	for _, back := range slices.Backward(undo) {
		err = errors.Join(err, back())
	}
	return err
}

// forgetLoaded has [serve] reload nginx, in this run or, if it does not get there,
// in a later one.
func forgetLoaded() error {
	if err := os.Remove(loadedFile); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// moveAway keeps a file's content in replacedDir and removes the file, which
// may be a link.
func moveAway(path string, content []byte) (kept string, back func() error, err error) {
	if err := os.MkdirAll(replacedDir, 0o755); err != nil {
		return "", nil, err
	}
	kept = filepath.Join(replacedDir, filepath.Base(path))
	if have, err := os.ReadFile(kept); err == nil && !bytes.Equal(have, content) {
		kept = fmt.Sprintf("%s.%.4x", kept, sha256.Sum256(content))
	}
	if err := atomicfile.Write(kept, content, 0o644); err != nil {
		return "", nil, err
	}
	target, linkErr := os.Readlink(path)
	return kept, func() error {
		if linkErr == nil {
			return os.Symlink(target, path)
		}
		return atomicfile.Write(path, content, 0o644)
	}, os.Remove(path)
}

// checkConfiguration returns an error when nginx refuses its configuration,
// does not read our site, or reads another one that would be asked in its place.
func checkConfiguration(ctx context.Context, s *guest.Setup, g gateway) error {
	dump, err := guest.Run(ctx, "nginx", "-T", "-q")
	if err != nil {
		if strings.Contains(err.Error(), "duplicate default server") {
			err = fmt.Errorf("%w: unknown hosts are for phx to refuse: "+
				"take default_server out of that file, or disable that site", err)
		}
		return fmt.Errorf("nginx refuses its configuration: %w", err)
	}
	others, found := parseSites(dump)
	if !found {
		return fmt.Errorf("/etc/nginx/nginx.conf does not include %s: "+
			"add \"include /etc/nginx/conf.d/*.conf;\" to its http block, or bring back the package's own "+
			"(apt-get install --reinstall -o Dpkg::Options::=--force-confnew nginx-common)", siteFile)
	}
	var all []error
	for _, other := range others {
		all = append(all, other.conflict(g, s.Warnf))
	}
	return errors.Join(all...)
}

// A site is a server block of nginx's configuration.
type site struct {
	file    string
	stream  bool     // it passes on connections, and no requests
	listens []string // the address of each listen
	names   []string
}

// conflict returns an error when a site of somebody else keeps ours from being
// asked. What it takes from ours, or loses to it, is said.
func (s site) conflict(g gateway, warnf func(format string, args ...any)) error {
	const wayOut = "or disable it (nginx reads all of /etc/nginx/sites-enabled, conf.d, and what else its nginx.conf " +
		"includes)"
	ours := false
	for _, listen := range s.listens {
		host, port := splitListen(listen)
		switch {
		case port != "80" && port != "443":
		case s.stream:
			return fmt.Errorf("%s has a stream server at port %s, which is the gateway's: "+
				"give it another port, %s", s.file, port, wayOut)
		case host != "" && host != "*" && host != "0.0.0.0" && host != "[::]" &&
			(port == "443" || host != "127.0.0.1" && host != "[::1]"):
			return fmt.Errorf("%s listens at %s, where all requests would go to it, whatever their host: "+
				"let it listen at port %s of all addresses, %s", s.file, listen, port, wayOut)
		default:
			ours = true
		}
	}
	if s.stream || !ours && len(s.listens) > 0 { // without a listen it is at port 80
		return nil
	}
	for _, name := range s.names {
		switch {
		case name == g.Domain || name == "*."+g.Domain || name == "."+g.Domain:
			return fmt.Errorf("%s serves %s as well, at the same port: give that site other names or another port, %s",
				s.file, name, wayOut)
		case strings.HasSuffix(name, "."+g.Domain):
			warnf("%s serves %s itself: its requests do not go to the proxy", s.file, name)
		case losesTo(name, g):
			warnf("%s serves %s: of the names below %s it gets none, they go to the proxy",
				s.file, name, g.Domain)
		}
	}
	return nil
}

// losesTo reports whether a pattern of server_name that counts less than ours has
// names that are ours.
func losesTo(pattern string, g gateway) bool {
	if expr, ok := strings.CutPrefix(pattern, "~"); ok {
		re, err := regexp.Compile("(?i)" + expr)
		return err == nil && slices.ContainsFunc(append(g.names(), "phx-check."+g.Domain), re.MatchString)
	}
	prefix, ok := strings.CutSuffix(pattern, ".*")
	return ok && strings.HasPrefix(g.Domain, prefix+".")
}

// splitListen splits the address of a listen; the host is "" for one that has
// none, and the port of a socket in the file system is "".
func splitListen(address string) (host, port string) {
	if strings.HasPrefix(address, "unix:") {
		return address, ""
	}
	colon := strings.LastIndexByte(address, ':')
	switch {
	case colon < 0 && !strings.ContainsFunc(address, func(r rune) bool { return r < '0' || r > '9' }):
		return "", address
	case colon < strings.LastIndexByte(address, ']') || colon < 0:
		return address, "80"
	}
	return address[:colon], address[colon+1:]
}

// parseSites returns the server blocks in the output of nginx -T, without
// those of our site, and reports whether that was among the files.
func parseSites(dump string) (sites []site, found bool) {
	var streams []string // patterns of the files that stream blocks include
	for _, part := range strings.Split("\n"+dump, "\n# configuration file ")[1:] {
		name, text, _ := strings.Cut(part, "\n")
		file := strings.TrimSuffix(strings.TrimSpace(name), ":")
		if file == siteFile {
			found = true
			continue
		}
		directives, _ := parse(text)
		stream := slices.ContainsFunc(streams, func(pattern string) bool {
			ok, _ := filepath.Match(pattern, file)
			return ok
		})
		var walk func(directives []directive, stream bool)
		walk = func(directives []directive, stream bool) {
			for _, d := range directives {
				switch {
				case d.name() == "include" && stream && len(d.words) == 2:
					pattern := d.words[1]
					if !filepath.IsAbs(pattern) {
						pattern = filepath.Join("/etc/nginx", pattern)
					}
					streams = append(streams, pattern)
				case d.name() == "server" && d.isBlock:
					sites = append(sites, siteOf(file, stream, d.block))
				}
				walk(d.block, stream || d.name() == "stream")
			}
		}
		walk(directives, stream)
	}
	return sites, found
}

func siteOf(file string, stream bool, block []directive) site {
	s := site{file: file, stream: stream}
	for _, d := range block {
		switch {
		case len(d.words) < 2:
		case d.name() == "listen":
			s.listens = append(s.listens, d.words[1])
		case d.name() == "server_name":
			s.names = append(s.names, d.words[1:]...)
		}
	}
	return s
}
