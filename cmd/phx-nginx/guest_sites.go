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
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
)

const (
	siteFile    = "/etc/nginx/conf.d/phoenix.conf"
	stockSite   = "/etc/nginx/sites-enabled/default" // listens on port 80 as well
	oldSite     = "/etc/nginx/sites-enabled/gateway" // of the scripts that phx replaces
	replacedDir = stateDir + "/replaced"
)

// oldSites are the SHA-256 of the sites that the scripts before phx have
// installed, with DOMAIN in the place of the domain.
//
//go:embed old_sites.sha256
var oldSites string

// isOldSite reports whether a site is one that the scripts before phx have
// installed, as it was then.
func isOldSite(content []byte, domain string) bool {
	sum := sha256.Sum256(bytes.ReplaceAll(content, []byte(domain), []byte("DOMAIN")))
	return slices.Contains(strings.Fields(oldSites), hex.EncodeToString(sum[:]))
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
		if content, err := os.ReadFile(oldSite); err == nil && isOldSite(content, g.Domain) {
			if err := forgetLoaded(); err != nil {
				return err
			}
			back, err := moveAway(oldSite, content)
			if err != nil {
				return err
			}
			undo = append(undo, back)
			s.Changed("moved %s of the scripts before phx to %s", oldSite, replacedDir)
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
		return checkConfiguration(ctx, g)
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
func moveAway(path string, content []byte) (back func() error, err error) {
	if err := os.MkdirAll(replacedDir, 0o755); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(filepath.Join(replacedDir, filepath.Base(path)), content, 0o644); err != nil {
		return nil, err
	}
	target, linkErr := os.Readlink(path)
	return func() error {
		if linkErr == nil {
			return os.Symlink(target, path)
		}
		return atomicfile.Write(path, content, 0o644)
	}, os.Remove(path)
}

// checkConfiguration returns an error when nginx refuses its configuration,
// does not read our site, or reads another one for our names.
func checkConfiguration(ctx context.Context, g gateway) error {
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
	for _, other := range others {
		if !other.isOnOurPorts() {
			continue
		}
		for _, name := range other.names {
			switch {
			case name == g.Domain || name == "*."+g.Domain || name == "."+g.Domain:
				return fmt.Errorf("%s serves %s as well, at the same port: "+
					"give that site other names or another port, or disable it "+
					"(nginx reads all of /etc/nginx/sites-enabled and conf.d)", other.file, name)
			case strings.HasSuffix(name, "."+g.Domain):
				cmdline.Logf("%s serves %s itself: its requests do not go to the proxy", other.file, name)
			}
		}
	}
	return nil
}

// site is a server block of nginx's configuration.
type site struct {
	file    string
	listens []string // the address of each listen
	names   []string
}

func (s site) isOnOurPorts() bool {
	return len(s.listens) == 0 || slices.ContainsFunc(s.listens, func(address string) bool {
		if strings.HasPrefix(address, "unix:") {
			return false
		}
		port := address[strings.LastIndexAny(address, ":]")+1:]
		return port == "80" || port == "443" || port == "" || strings.Contains(port, ".") // no port is port 80
	})
}

// parseSites returns the server blocks in the output of nginx -T, without
// those of our site, and reports whether that was among the files.
func parseSites(dump string) (sites []site, found bool) {
	var file string
	var blocks []string // that are open
	var words []string  // of a directive that is not complete
	var server site
	for line := range strings.Lines(dump) {
		if name, ok := strings.CutPrefix(line, "# configuration file "); ok {
			file = strings.TrimSuffix(strings.TrimSpace(name), ":")
			found = found || file == siteFile
			blocks, words = nil, nil
			continue
		}
		for _, token := range tokens(line) {
			switch token {
			case "{":
				block := ""
				if len(words) > 0 {
					block = words[0]
				}
				if block == "server" {
					server = site{file: file}
				}
				blocks, words = append(blocks, block), nil
			case "}":
				if len(blocks) > 0 {
					if blocks[len(blocks)-1] == "server" && file != siteFile {
						sites = append(sites, server)
					}
					blocks = blocks[:len(blocks)-1]
				}
				words = nil
			case ";":
				if len(blocks) > 0 && blocks[len(blocks)-1] == "server" && len(words) > 1 {
					switch words[0] {
					case "listen":
						server.listens = append(server.listens, words[1])
					case "server_name":
						server.names = append(server.names, words[1:]...)
					}
				}
				words = nil
			default:
				words = append(words, token)
			}
		}
	}
	return sites, found
}

// tokens splits a line of nginx's configuration, without its comment.
func tokens(line string) (all []string) {
	var word []byte
	end := func() {
		if len(word) > 0 {
			all = append(all, string(word))
			word = nil
		}
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case '#':
			if len(word) == 0 {
				return all
			}
			word = append(word, c)
		case ' ', '\t', '\r', '\n':
			end()
		case ';', '{', '}':
			// ${name} is part of a word.
			if c == '{' && len(word) > 0 && word[len(word)-1] == '$' {
				if n := strings.IndexByte(line[i:], '}'); n > 0 {
					word = append(word, line[i:i+n+1]...)
					i += n
					continue
				}
			}
			end()
			all = append(all, string(c))
		case '"', '\'':
			n := strings.IndexByte(line[i+1:], c)
			if n < 0 {
				n = len(line) - i - 1
			}
			word = append(word, line[i+1:min(i+1+n, len(line))]...)
			i += n + 1
		case '\\':
			word = append(word, c)
			if i+1 < len(line) {
				i++
				word = append(word, line[i])
			}
		default:
			word = append(word, c)
		}
	}
	end()
	return all
}
