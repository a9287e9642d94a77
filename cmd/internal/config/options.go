package config

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/tidwall/gjson"
	"golang.org/x/crypto/ssh"
)

// The options of pct that stand for themselves, with what a version of
// pve-container was the first to know.

// Versions of pve-container that brought what a key asks for.
const (
	sinceTags       = "3.0-12"
	sinceTimezone   = "3.1-9"
	sinceDevuan     = "3.3-4"
	sinceLazytime   = "4.1-3"
	sinceNixOS      = "4.1-5"
	sinceRISCV      = "4.4-3"
	sinceDevices    = "5.0.7"
	sinceDenyWrite  = "5.2.0"
	sinceDiscard    = "5.2.1"
	sinceKeepAttrs  = "6.1.2"
	maxTags         = 100
	maxNotes        = 4 << 10 // in bytes: pct takes 8192 characters, and phx's own line is among them
	maxKeys         = 100
	maxDevices      = 256 // pct's options dev0 to dev255
	maxIDMapExtents = 340 // Linux takes no more for a map
)

// osTypes and architectures are those of pct, with the version that brought them
// where that is not older than the rest.
var (
	osTypes = map[string]string{
		"debian": "", "devuan": sinceDevuan, "ubuntu": "", "centos": "", "fedora": "", "opensuse": "", "archlinux": "",
		"alpine": "", "gentoo": "", "nixos": sinceNixOS, "unmanaged": "",
	}
	architectures = map[string]string{
		"amd64": "", "i386": "", "arm64": "", "armhf": "", "riscv32": sinceRISCV, "riscv64": sinceRISCV,
	}
	mountFlags = map[string]string{
		"discard": sinceDiscard, "lazytime": sinceLazytime, "noatime": "", "nodev": "", "noexec": "", "nosuid": "",
	}
)

// The formats of these options.
var (
	osType = format{"a type of system that pct knows: debian, devuan, ubuntu, centos, fedora, opensuse, archlinux, " +
		"alpine, gentoo, nixos or unmanaged", isKeyOf(osTypes)}
	architecture = format{"an architecture that pct knows: amd64, i386, arm64, armhf, riscv32 or riscv64",
		isKeyOf(architectures)}
	mountFlag = format{"a mount option that pct takes: discard, lazytime, noatime, nodev, noexec or nosuid",
		isKeyOf(mountFlags)}
	timeZone   = format{"a time zone: host, UTC, or one such as Europe/Vienna", isTimeZone}
	tag        = format{"a tag: letters, digits, '_', '-', '+' and '.', the first a letter, a digit or '_'", isTag}
	hookScript = format{"the volume id of a snippet, such as local:snippets/NAME.sh", isHookScript}
	accessMode = format{"an access mode: four octal digits, the first 0, as in 0660", isAccessMode}
	nodeName   = format{"the name of a host: letters, digits and inner hyphens, up to 63", isHostLabel}
	idMapType  = format{"uid, gid or both", oneOf("uid", "gid", "both")}
)

func isKeyOf(known map[string]string) func(string) bool {
	return func(s string) bool { _, ok := known[s]; return ok }
}

func isTimeZone(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !madeOf(part, "_+-") || !isLetter(part[0]) {
			return false
		}
	}
	return len(s) <= 100
}

func isTag(s string) bool {
	return len(s) <= 100 && madeOf(s, "_-+.") && (isAlnum(s[0]) || s[0] == '_')
}

func isHookScript(s string) bool {
	name, volume, _ := strings.Cut(s, ":")
	script, ok := strings.CutPrefix(volume, "snippets/")
	return ok && isStorage(name) && isFileName(script)
}

func isAccessMode(s string) bool {
	return len(s) == 4 && s[0] == '0' && strings.Trim(s, "01234567") == ""
}

// known returns a string of a format whose words came with a version, "" for
// anything else.
func (p *parser) known(v gjson.Result, f format, versions map[string]string) string {
	s := p.formatted(v, f)
	if s != "" && !p.since(v, versions[s], strconv.Quote(s)) {
		return ""
	}
	return s
}

// decimal returns a number from low to high, or low for anything else.
func (p *parser) decimal(v gjson.Result, low, high float64) float64 {
	switch {
	case v.Type != gjson.Number:
		p.fail(v, "must be a number, not %s", kind(v))
	case !(low <= v.Num && v.Num <= high):
		p.fail(v, "must be from %v to %v, not %s", low, high, v.Raw)
	case v.Num != 0: // which is not -0 either
		return v.Num
	}
	return low
}

func tags(p *parser, e *entry, v gjson.Result) {
	e.Tags = []string{}
	p.since(v, sinceTags, "tags")
	p.list(v, func(v gjson.Result) {
		s := strings.ToLower(p.formatted(v, tag))
		switch {
		case s == "":
		case len(e.Tags) == maxTags:
			p.fail(v, "at most %d tags are allowed", maxTags)
		case slices.Contains(e.Tags, s):
			p.fail(v, "%s is named twice", s)
		default:
			e.Tags = append(e.Tags, s)
		}
	})
}

// RecordPrefix begins the line of a container's notes in which phx keeps its
// record.
const RecordPrefix = "phx:"

// descriptionText reads text of several lines. A line like that of the record would hide
// the record, or be taken for one.
func descriptionText(p *parser, e *entry, v gjson.Result) {
	if v.Type != gjson.String {
		p.fail(v, "must be a string, not %s", kind(v))
		return
	}
	text := strings.TrimRight(v.Str, "\n")
	if len(text) > maxNotes {
		p.fail(v, "is %d bytes long; at most %d are allowed", len(text), maxNotes)
		return
	}
	for line := range strings.SplitSeq(text, "\n") {
		if i := strings.IndexFunc(line, unicode.IsControl); i >= 0 {
			p.fail(v, "must not contain control characters but line feeds: there is %U", []rune(line[i:])[0])
			return
		}
		if strings.HasPrefix(strings.TrimSpace(line), RecordPrefix) {
			p.fail(v, "no line may begin with %q: phx keeps its record in such a line", RecordPrefix)
			return
		}
	}
	e.Notes = &text
}

func devices(p *parser, e *entry, v gjson.Result) {
	e.Devices = []Device{}
	p.since(v, sinceDevices, "devices")
	p.list(v, func(v gjson.Result) {
		var d Device
		p.members(v, (*parser).refuse,
			member{"path", "the device on the host", func(v gjson.Result) {
				s := p.dirPath(v, ",=")
				switch {
				case s == "":
				case !strings.HasPrefix(s, "/dev/"):
					p.fail(v, "%q is not below /dev", s)
				case slices.ContainsFunc(e.Devices, func(d Device) bool { return d.Path == s }):
					p.fail(v, "%s is named twice", s)
				default:
					d.Path = s
				}
			}},
			member{"mode", "", func(v gjson.Result) { d.Mode = p.formatted(v, accessMode) }},
			member{"uid", "", func(v gjson.Result) { d.UID = new(p.integer(v, 0, math.MaxInt32)) }},
			member{"gid", "", func(v gjson.Result) { d.GID = new(p.integer(v, 0, math.MaxInt32)) }},
			member{"deny_write", "", func(v gjson.Result) {
				p.since(v, sinceDenyWrite, "deny_write")
				d.DenyWrite = p.boolean(v)
			}},
		)
		switch {
		case p.full():
		case len(e.Devices) == maxDevices:
			p.fail(v, "pct has no more than %d devices", maxDevices)
		default:
			e.Devices = append(e.Devices, d)
		}
	})
}

// flag returns a function that reads a boolean into target.
func (p *parser) flag(target **bool) func(gjson.Result) {
	return func(v gjson.Result) { *target = new(p.boolean(v)) }
}

// mountFlags reads a list of mount options.
func (p *parser) mountFlags(v gjson.Result) []string {
	flags := []string{}
	p.list(v, func(v gjson.Result) {
		s := p.known(v, mountFlag, mountFlags)
		if slices.Contains(flags, s) {
			p.fail(v, "%s is named twice", s)
		} else if s != "" {
			flags = append(flags, s)
		}
	})
	return flags
}

func rootOptions(p *parser, e *entry, v gjson.Result) {
	o := &e.RootOptions
	p.members(v, (*parser).refuse,
		member{"acl", "", p.flag(&o.ACL)},
		member{"quota", "", p.flag(&o.Quota)},
		member{"replicate", "", p.flag(&o.Replicate)},
		member{"mountoptions", "", func(v gjson.Result) { o.Flags = p.mountFlags(v) }},
	)
}

// sshKeys reads a list of public keys, or the path of a file on the host.
func sshKeys(p *parser, e *entry, v gjson.Result) {
	e.sshKeys = v.Index
	if v.Type == gjson.String {
		e.SSHKeysFile = p.dirPath(v, "")
		return
	}
	e.SSHKeys = []string{}
	p.list(v, func(v gjson.Result) {
		s, ok := p.str(v)
		if !ok {
			return
		}
		switch {
		case !IsPublicKey(s):
			p.fail(v, "is no public key of OpenSSH, a line such as: ssh-ed25519 AAAA… NAME")
		case len(e.SSHKeys) == maxKeys:
			p.fail(v, "at most %d keys are allowed: put them into a file on the host, and its path here", maxKeys)
		default:
			e.SSHKeys = append(e.SSHKeys, s)
		}
	})
}

// IsPublicKey reports whether a line is a public key of OpenSSH, and not one in a
// comment.
func IsPublicKey(line string) bool {
	_, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	return err == nil && !strings.HasPrefix(strings.TrimSpace(line), "#")
}
