package config

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/tidwall/gjson"
	"golang.org/x/crypto/ssh"
)

// What there may be of these in a container.
const (
	maxTags    = 100
	maxNotes   = 4 << 10 // in bytes: pct takes 8192 characters, and phx's own line is among them
	maxKeys    = 100
	maxDevices = 256 // pct's options dev0 to dev255
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
)

var (
	osType = format{"a type of system that pct knows: debian, devuan, ubuntu, centos, fedora, opensuse, archlinux, " +
		"alpine, gentoo, nixos or unmanaged", isKeyOf(osTypes),
		anyOf("type of system that pct knows, or `unmanaged`", osTypes)}
	architecture = format{"an architecture that pct knows: amd64, i386, arm64, armhf, riscv32 or riscv64",
		isKeyOf(architectures), anyOf("architecture that pct knows", architectures)}
	timeZone = format{"a time zone: host, UTC, or one such as Europe/Vienna", isTimeZone, fixed(
		"`host`, `UTC`, or one such as `Europe/Vienna`",
		shape{"type": "string", "maxLength": 100, "pattern": `^[A-Za-z][\w+-]*(/[A-Za-z][\w+-]*)*$`},
	)}
	tag = format{"a tag: letters, digits, '_', '-', '+' and '.', the first a letter, a digit or '_'", isTag,
		like("tag", `\w[\w+.-]{0,99}`)}
	hookScript = format{"the volume id of a snippet, such as local:snippets/NAME.sh", isHookScript,
		like("volume id of a snippet, such as `local:snippets/NAME.sh`",
			storagePattern+`:snippets/`+namePattern+`{0,199}`)}
	accessMode = format{"an access mode: four octal digits, the first 0, as in 0660", isAccessMode,
		like("four octal digits, as in `0660`", `0[0-7]{3}`)}
	nodeName = format{"the name of a host: letters, digits and inner hyphens, up to 63", isHostLabel,
		like("name of a host", label)}
	idMapType = choice("uid, gid or both", "uid", "gid", "both")
)

// anyOf is the form of the keys of known.
func anyOf(words string, known map[string]string) form {
	return form{words, func() shape { return shape{"type": "string", "enum": slices.Sorted(maps.Keys(known))} }}
}

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

// tagsForm is the form of a list of tags, whose case does not count.
func tagsForm() form {
	return namesForm("list of tags", tag).with(shape{"maxItems": maxTags})
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

// recordPrefix begins the line of a container's notes in which phx keeps its
// record.
const recordPrefix = "phx:"

var notesForm = fixed(fmt.Sprintf("string of up to %d bytes, also of several lines", maxNotes),
	shape{"type": "string", "pattern": `^[^\x00-\x09\x0b-\x1f\x7f-\x9f]*$`}).
	but(`(^|\n)[^\S\n]*` + recordPrefix)

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
		if strings.HasPrefix(strings.TrimSpace(line), recordPrefix) {
			p.fail(v, "no line may begin with %q: phx keeps its record in such a line", recordPrefix)
			return
		}
	}
	e.Notes = &text
}

// A deviceObject is the object of a device of a container.
type deviceObject struct {
	Device
	e *entry
}

var deviceKeys = []key[deviceObject]{
	{name: "path", need: "the device on the host", value: special(
		pathForm("absolute path below `/dev`", `^/+dev/+[^/]`, ",="),
		func(p *parser, d *deviceObject, v gjson.Result) {
			s := p.dirPath(v, ",=")
			switch {
			case s == "":
			case !strings.HasPrefix(s, "/dev/"):
				p.fail(v, "%q is not below /dev", s)
			case slices.ContainsFunc(d.e.Devices, func(d Device) bool { return d.Path == s }):
				p.fail(v, "%s is named twice", s)
			default:
				d.Path = s
			}
		}), effect: "of the device, on the host and in the container"},
	{name: "mode", value: text(accessMode, func(d *deviceObject, s string) { d.Mode = s }), effect: "its access mode"},
	{name: "uid", value: whole(0, math.MaxInt32, func(d *deviceObject, n int) { d.UID = &n }), without: 0,
		effect: "its owner in the container; root without"},
	{name: "gid", value: whole(0, math.MaxInt32, func(d *deviceObject, n int) { d.GID = &n }), without: 0,
		effect: "its group in the container; root without"},
	{name: "deny_write", value: special(boolean, func(p *parser, d *deviceObject, v gjson.Result) {
		p.since(v, sinceDenyWrite, "deny_write")
		d.DenyWrite = p.boolean(v)
	}), without: false, effect: "the container cannot write to it"},
}

func devices(p *parser, e *entry, v gjson.Result) {
	e.Devices = []Device{}
	p.since(v, sinceDevices, "devices")
	var d deviceObject
	p.list(v, func(v gjson.Result) {
		d = deviceObject{e: e}
		readObject(p, v, &d, deviceKeys, (*parser).refuse)
		switch {
		case p.full():
		case len(e.Devices) == maxDevices:
			p.fail(v, "pct has no more than %d devices", maxDevices)
		default:
			e.Devices = append(e.Devices, d.Device)
		}
	})
}

// sshKeysForm is the form of what [sshKeys] reads.
func sshKeysForm() form {
	keys := listOf("", anyText).with(shape{"maxItems": maxKeys})
	return either("list of public keys, or the path of a file with them on the host", keys, pathForm("", `^/`, ""))
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

func gpus(p *parser, e *entry, v gjson.Result) {
	s := p.formatted(v, gpuList)
	if s == "" {
		return
	}
	e.GPUs = []int{}
	if s == "none" {
		return
	}
	for field := range strings.SplitSeq(s, ",") {
		n, _ := strconv.Atoi(strings.TrimSpace(field))
		if slices.Contains(e.GPUs, n) {
			p.fail(v, "GPU %d is named twice", n)
			return
		}
		e.GPUs = append(e.GPUs, n)
	}
}

// pctOptions reads sub-keys of pct's option features. Proxmox VE keeps a
// boolean as it was typed, so each is given as 0 or 1 here.
func pctOptions(p *parser, e *entry, v gjson.Result) {
	e.PctOptions = []string{}
	p.list(v, func(v gjson.Result) {
		s, ok := p.str(v)
		if !ok {
			return
		}
		for option := range strings.SplitSeq(s, ",") {
			if !p.is(v, option, keyValue) {
				return
			}
			key, value, _ := strings.Cut(strings.TrimSpace(option), "=")
			f, known := pctFeatures[key]
			switch {
			case !known:
				p.fail(v, "pct knows no feature %q: there are nesting, keyctl, fuse, mknod, mount and force_rw_sys",
					key)
				return
			case !f.is(value):
				p.fail(v, "%s must be %s, not %q", key, f.what, value)
				return
			case slices.ContainsFunc(e.PctOptions, func(s string) bool { return strings.HasPrefix(s, key+"=") }):
				p.fail(v, "%s is given twice", key)
				return
			case key != "mount":
				value = pveBooleans[strings.ToLower(value)]
			}
			e.PctOptions = append(e.PctOptions, key+"="+value)
		}
	})
}

// maxCapabilities is the number of bits in a set of capabilities.
const maxCapabilities = 64

func lxcOptions(p *parser, e *entry, v gjson.Result) {
	e.LXCOptions = []RawOption{}
	named := map[string]int{} // capabilities, by key
	p.list(v, func(v gjson.Result) {
		s := p.formatted(v, rawLine)
		if s == "" {
			return
		}
		key, value, _ := cutRaw(s)
		switch {
		case isKeptRawKey(key):
		case strings.HasPrefix(key, "lxc.cgroup."):
			p.warn(v, "Proxmox VE is about to refuse lxc.cgroup.*: use lxc.cgroup2.*")
		case strings.HasPrefix(key, "lxc.limit."):
			p.fail(v, "lxc.limit.* is called lxc.prlimit.* now")
			return
		case rawHints[key] != "":
			p.fail(v, "%s: %s", key, rawHints[key])
			return
		default:
			p.fail(v, "Proxmox VE does not accept %s: it would delete the line", key)
			return
		}
		if key != "lxc.cap.keep" && key != "lxc.cap.drop" {
			e.LXCOptions = append(e.LXCOptions, RawOption{key, value})
			return
		}
		if named[key] += strings.Count(value, ",") + 1; named[key] > maxCapabilities {
			p.fail(v, "%s: Linux has no more than %d capabilities", key, maxCapabilities)
			return
		}
		for capability := range strings.SplitSeq(value, ",") {
			e.LXCOptions = append(e.LXCOptions, RawOption{key, strings.TrimSpace(capability)})
		}
	})
}
