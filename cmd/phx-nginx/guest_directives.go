// nginx's configuration as what it consists of, in the container.

package main

import (
	"net"
	"slices"
	"strings"
)

// A directive is one of nginx's configuration, with its arguments.
type directive struct {
	words   []string
	isBlock bool
	block   []directive
}

// name returns the directive's name.
func (d directive) name() string {
	if len(d.words) == 0 {
		return ""
	}
	return d.words[0]
}

// parse returns the directives in a text, and reports whether it is well formed.
func parse(text string) (directives []directive, ok bool) {
	open := []*directive{{}} // the blocks that are open, from the outermost
	var words []string
	ok = true
	for line := range strings.Lines(text) {
		for _, token := range tokens(line) {
			inner := open[len(open)-1]
			switch token {
			case "{":
				inner.block = append(inner.block, directive{words: words, isBlock: true})
				open = append(open, &inner.block[len(inner.block)-1])
				words = nil
			case "}":
				if ok = ok && len(words) == 0 && len(open) > 1; len(open) > 1 {
					open = open[:len(open)-1]
				}
				words = nil
			case ";":
				inner.block = append(inner.block, directive{words: words})
				words = nil
			default:
				words = append(words, token)
			}
		}
	}
	return open[0].block, ok && len(words) == 0 && len(open) == 1
}

// Directives that change how a site passes requests on, and what it says beside
// the answer, but not where they go.
var manners = []string{
	"access_log", "add_header", "client_body_buffer_size", "client_body_timeout", "client_header_timeout",
	"client_max_body_size", "error_log", "gzip", "http2", "keepalive_timeout", "large_client_header_buffers",
	"preread_buffer_size", "preread_timeout", "send_timeout", "server_name", "server_tokens", "tcp_nodelay",
}

// usualHeaders are those that phx's site sets, too.
var usualHeaders = []string{
	"host", "x-real-ip", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto",
	"x-forwarded-ssl", "upgrade", "connection",
}

// leadsToProxy reports whether all that a configuration serves are names of the
// gateway at the gateway's ports, which it redirects to HTTPS or passes on to the
// proxy.
func leadsToProxy(directives []directive, g gateway) bool {
	toProxy := map[string]bool{} // names of upstreams, and variables
	for _, kind := range []string{"upstream", "map"} {
		for _, d := range directives {
			if d.name() == kind && d.isBlock {
				toProxy[d.words[len(d.words)-1]] = allLead(d.block, toProxy, g)
			}
		}
	}
	servers := 0
	for _, d := range directives {
		switch name := d.name(); {
		case !d.isBlock:
			return false
		case name == "server":
			if servers++; !ownServer(d.block, g) || !passesOn(d.block, toProxy, g) {
				return false
			}
		case name != "upstream" && name != "map":
			return false
		}
	}
	return servers > 0
}

// allLead reports whether every server of an upstream, or every value of a map, is
// the proxy, and there is one.
func allLead(block []directive, toProxy map[string]bool, g gateway) bool {
	found := false
	for _, d := range block {
		target := ""
		switch d.name() {
		case "keepalive", "zone", "hash", "hostnames", "":
			continue
		case "server":
			if len(d.words) > 1 {
				target = d.words[1]
			}
		default:
			target = d.words[len(d.words)-1]
		}
		if !isProxy(target, toProxy, g) {
			return false
		}
		found = true
	}
	return found
}

// ownServer reports whether a server block is for names and ports of the gateway
// alone. One without a name is for all hosts, which phx refuses.
func ownServer(block []directive, g gateway) bool {
	s := siteOf("", false, block)
	for _, listen := range s.listens {
		host, port := splitListen(listen)
		if !slices.Contains([]string{"", "*", "0.0.0.0", "[::]"}, host) || port != "80" && port != "443" {
			return false
		}
	}
	return !slices.ContainsFunc(s.names, func(name string) bool {
		return name != "_" && name != "" && name != g.Domain && !strings.HasSuffix(name, "."+g.Domain)
	})
}

// passesOn reports whether a block does nothing but redirect to HTTPS and pass on
// to the proxy.
func passesOn(block []directive, toProxy map[string]bool, g gateway) bool {
	for _, d := range block {
		name := d.name()
		switch {
		case name == "listen" && !d.isBlock, slices.Contains(manners, name):
		case name == "location" && len(d.words) == 2 && d.words[1] == "/":
			if !passesOn(d.block, toProxy, g) {
				return false
			}
		case name == "return":
			if len(d.words) != 3 || d.words[1] != "301" && d.words[1] != "308" ||
				d.words[2] != "https://$host$request_uri" && d.words[2] != "https://$server_name$request_uri" {
				return false
			}
		case name == "proxy_pass":
			if len(d.words) != 2 || !isProxy(d.words[1], toProxy, g) {
				return false
			}
		case name == "proxy_set_header":
			if len(d.words) != 3 || !slices.Contains(usualHeaders, strings.ToLower(d.words[1])) {
				return false
			}
		case strings.HasPrefix(name, "proxy_") && !d.isBlock,
			strings.HasPrefix(name, "ssl_") && name != "ssl_verify_client" && !d.isBlock:
		default:
			return false
		}
	}
	return true
}

// isProxy reports whether a target is the proxy: its address, with a port or
// without, or a name that is known to lead there.
func isProxy(target string, toProxy map[string]bool, g gateway) bool {
	_, rest, ok := strings.Cut(target, "://")
	if !ok {
		rest = target
	}
	rest = strings.TrimSuffix(rest, "/")
	if toProxy[rest] {
		return true
	}
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		host = strings.Trim(rest, "[]")
	}
	return host == g.Proxy
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
