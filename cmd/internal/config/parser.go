package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tidwall/gjson"
	"thinkheads.ai/phx/cmd/internal/hostdir"
)

// maxDepth bounds the nesting of the file: reading it recurses, and gjson
// looks at a value once for each level around it.
const maxDepth = 100

// A parser reads JSON with gjson, which by itself neither validates, nor
// minds keys that are given twice, nor types. Every value has its offset.
type parser struct {
	text       string
	checkOwner func(dir string) error // returns an error for a directory that no container may own
	pct        string                 // the host's version of pve-container, "" for one that knows all

	spare    *entry  // for containers that are not kept
	path     []step  // of the current value
	keys     []keyAt // of the objects around it
	mistakes notes
	warnings notes
	others   map[int][]int // by a mistake's offset: containers that it concerns beside the one of its path

	served     served // the keys services and dashboard
	planLength int    // as in [File]
}

// newParser returns a parser for a file's text. host is nil for one that is not
// known.
func newParser(text string, host *Host) *parser {
	if host == nil {
		host = &Host{}
	}
	return &parser{text: text, checkOwner: hostdir.OwnerCheck(host.Guarded), pct: host.PCT}
}

// A keyAt is a key and its offset.
type keyAt struct {
	name string
	at   int
}

// A step of a path is a key, or an index of a list where key is "".
type step struct {
	key   string
	index int // -1 for a key
}

// A note is a Mistake whose place is still an offset.
type note struct {
	at        int
	path, msg string
	first     int // an offset whose line ends the message; -1 for none
}

// notes are the first [MaxMistakes] notes by position, and the number of all.
type notes struct {
	first []note
	count int
}

// more returns how many notes there are beside the first.
func (n *notes) more() int { return n.count - len(n.first) }

// add counts a note, and calls write for it when it is among the first.
func (n *notes) add(at int, write func() note) {
	n.count++
	i := sort.Search(len(n.first), func(i int) bool { return n.first[i].at > at })
	if i == MaxMistakes {
		return
	}
	if len(n.first) == MaxMistakes {
		n.first = n.first[:MaxMistakes-1]
	}
	n.first = slices.Insert(n.first, i, write())
}

// failAt adds a mistake at an offset of the current value.
func (p *parser) failAt(at int, format string, args ...any) {
	p.mistakes.add(at, func() note { return note{at, p.pathText(), message(format, args), -1} })
}

// fail adds a mistake at the current value v.
func (p *parser) fail(v gjson.Result, format string, args ...any) {
	p.failAt(v.Index, format, args...)
}

// failUnder adds a mistake at an offset of a value below the current one: keys
// are those on the way to it, joined by dots.
func (p *parser) failUnder(at int, keys, format string, args ...any) {
	p.mistakes.add(at, func() note {
		return note{at, p.pathTo(keys), message(format, args), -1}
	})
}

// warn adds a warning at the current value v.
func (p *parser) warn(v gjson.Result, format string, args ...any) {
	p.warnings.add(v.Index, func() note { return note{v.Index, p.pathText(), message(format, args), -1} })
}

// full reports whether there are more mistakes than are shown. From then on they
// are only counted, and what is read is not kept.
func (p *parser) full() bool { return p.mistakes.count > MaxMistakes }

// maxShown is how much of a value a message shows, in bytes.
const maxShown = 200

// message formats args, of which long strings are cut.
func message(format string, args []any) string {
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = clip(s, maxShown)
		}
	}
	return clip(fmt.Sprintf(format, args...), 10*maxShown)
}

// clip returns s, or if that is longer than n bytes its beginning and "…".
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// pathText returns the path as in [Mistake].
func (p *parser) pathText() string {
	var b strings.Builder
	for i, s := range p.path {
		if i > 0 {
			b.WriteByte('.')
		}
		key := clip(s.key, maxShown)
		switch {
		case s.index >= 0:
			b.WriteString(strconv.Itoa(s.index))
		case isPlainKey(s.key):
			b.WriteString(key)
		default:
			b.WriteString(strconv.Quote(key))
		}
	}
	return b.String()
}

// pathTo returns the path of a value below the current one.
func (p *parser) pathTo(keys string) string { return strings.TrimPrefix(p.pathText()+"."+keys, ".") }

// isPlainKey reports whether key is unmistakable in a path without quotes.
func isPlainKey(key string) bool {
	for _, r := range key {
		if r <= ' ' || r == '.' || r == ':' || r == '"' || r > unicode.MaxASCII || r == 0x7f {
			return false
		}
	}
	return key != ""
}

// report turns notes into mistakes with lines and columns.
func (p *parser) report(notes notes) []Mistake {
	if notes.count == 0 {
		return nil
	}
	mistakes := make([]Mistake, len(notes.first))
	line, start, end := 1, 0, 0 // the line that has the byte before end
	for i, n := range notes.first {
		between := p.text[end:n.at]
		line += strings.Count(between, "\n")
		if last := strings.LastIndexByte(between, '\n'); last >= 0 {
			start = end + last + 1
		}
		end = n.at
		mistakes[i] = Mistake{line, n.at - start + 1, n.path, n.msg}
		if n.first >= 0 {
			mistakes[i].Msg += strconv.Itoa(line - strings.Count(p.text[n.first:n.at], "\n"))
		}
	}
	return mistakes
}

// document checks the syntax and returns the outermost value.
func (p *parser) document() (gjson.Result, bool) {
	at, msg := syntax(p.text)
	if msg != "" {
		p.failAt(at, "%s", msg)
		return gjson.Result{}, false
	}
	return gjson.Parse(p.text), true
}

// syntax returns the offset of the first thing that is not JSON and what is wrong
// with it, or "".
func syntax(text string) (int, string) {
	switch {
	case len(text) > MaxFile:
		return 0, fmt.Sprintf("the file is longer than %d MiB", MaxFile>>20)
	case strings.TrimSpace(text) == "":
		return 0, "the file is empty"
	case strings.HasPrefix(text, "\ufeff"):
		return 0, "the file begins with a byte order mark: save it as UTF-8 without one"
	case strings.HasPrefix(text, "\xff\xfe"), strings.HasPrefix(text, "\xfe\xff"):
		return 0, "the file is UTF-16: save it as UTF-8"
	}
	if !utf8.ValidString(text) {
		for at := 0; ; {
			r, n := utf8.DecodeRuneInString(text[at:])
			if r == utf8.RuneError && n == 1 {
				return at, "not UTF-8"
			}
			at += n
		}
	}
	if at := tooDeep(text); at >= 0 {
		return at, fmt.Sprintf("nested deeper than %d levels", maxDepth)
	}
	if gjson.Valid(text) {
		return 0, ""
	}
	var raw json.RawMessage
	var wrong *json.SyntaxError
	if !errors.As(json.Unmarshal([]byte(text), &raw), &wrong) {
		return 0, "not JSON"
	}
	if wrong.Error() == "unexpected end of JSON input" {
		return len(text), "not JSON: the file ends too early"
	}
	at := int(wrong.Offset) - 1
	before := strings.TrimRight(text[:at], " \t\r\n")
	if strings.HasSuffix(before, ",") && (text[at] == '}' || text[at] == ']') {
		return len(before) - 1, fmt.Sprintf("not JSON: no comma may stand before %q", text[at])
	}
	return at, "not JSON: " + wrong.Error()
}

// tooDeep returns the offset of the first bracket beyond maxDepth, or -1.
func tooDeep(text string) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			if depth++; depth > maxDepth {
				return i
			}
		case '}', ']':
			depth--
		}
	}
	return -1
}

// kind returns what v is, for messages.
func kind(v gjson.Result) string {
	switch {
	case v.IsObject():
		return "an object"
	case v.IsArray():
		return "a list"
	}
	switch v.Type {
	case gjson.String:
		return "a string"
	case gjson.Number:
		return "a number"
	case gjson.True, gjson.False:
		return "a boolean"
	}
	return "null"
}

// A need is a key that an object must have, and why.
type need struct{ key, why string }

// ignore warns of the value of an unknown key.
func (p *parser) ignore(v gjson.Result) {
	p.passOver(v)
	p.warn(v, "unknown key, ignored")
}

// refuse is for the value of an unknown key where ignoring it would open more
// than was meant.
func (p *parser) refuse(v gjson.Result) { p.fail(v, "unknown key") }

// object calls each for the keys of an object, but only for the first of keys
// of the same name.
func (p *parser) object(v gjson.Result, needs []need, each func(key string, v gjson.Result)) {
	if !v.IsObject() {
		p.fail(v, "must be an object, not %s", kind(v))
		return
	}
	base := len(p.keys)
	var many map[string]int // for objects with too many keys to look through
	v.ForEach(func(k, v gjson.Result) bool {
		key := k.String()
		p.path = append(p.path, step{key, -1})
		first, twice := -1, false
		if many == nil {
			for _, old := range p.keys[base:] {
				if old.name == key {
					first, twice = old.at, true
				}
			}
			if len(p.keys)-base > 64 {
				many = make(map[string]int)
				for _, old := range p.keys[base:] {
					many[old.name] = old.at
				}
			}
		} else {
			first, twice = many[key]
		}
		switch {
		case twice:
			p.mistakes.add(k.Index, func() note {
				return note{k.Index, p.pathText(), "key given twice, first on line ", first}
			})
		case many == nil:
			p.keys = append(p.keys, keyAt{key, k.Index})
			each(key, v)
		default:
			many[key] = k.Index
			each(key, v)
		}
		p.path = p.path[:len(p.path)-1]
		return true
	})
	for _, n := range needs {
		has := slices.ContainsFunc(p.keys[base:], func(k keyAt) bool { return k.name == n.key })
		if _, ok := many[n.key]; !ok && !has {
			p.mistakes.add(v.Index, func() note { return note{v.Index, p.pathTo(n.key), "missing: " + n.why, -1} })
		}
	}
	p.keys = p.keys[:base]
}

// list calls each for the elements of a list.
func (p *parser) list(v gjson.Result, each func(v gjson.Result)) {
	if !v.IsArray() {
		p.fail(v, "must be a list, not %s", kind(v))
		return
	}
	i := 0
	v.ForEach(func(_, v gjson.Result) bool {
		p.path = append(p.path, step{"", i})
		each(v)
		p.path = p.path[:len(p.path)-1]
		i++
		return true
	})
}

// passOver checks a value that phx does not read for keys given twice: other
// programs take the last of them, gjson the first.
func (p *parser) passOver(v gjson.Result) {
	switch {
	case v.IsObject():
		p.object(v, nil, func(_ string, v gjson.Result) { p.passOver(v) })
	case v.IsArray():
		p.list(v, p.passOver)
	}
}

// maxString is the greatest length of a string in bytes. Most become arguments
// of a program, where Linux has a limit of 128 KiB for each.
const maxString = 64 << 10

// str returns a string that is not empty, not longer than maxString, and has
// no control characters.
func (p *parser) str(v gjson.Result) (string, bool) {
	if v.Type != gjson.String {
		p.fail(v, "must be a string, not %s", kind(v))
		return "", false
	}
	if v.Str == "" {
		p.fail(v, "must not be empty")
		return "", false
	}
	if len(v.Str) > maxString {
		p.fail(v, "is %d bytes long; at most %d are allowed", len(v.Str), maxString)
		return "", false
	}
	if i := strings.IndexFunc(v.Str, unicode.IsControl); i >= 0 {
		r, _ := utf8.DecodeRuneInString(v.Str[i:])
		p.fail(v, "must not contain control characters such as %U", r)
		return "", false
	}
	return v.Str, true
}

// formatted returns a string of a format, "" for anything else.
func (p *parser) formatted(v gjson.Result, f format) string {
	s, ok := p.str(v)
	if !ok || !p.is(v, s, f) {
		return ""
	}
	return s
}

// is reports whether s, which is v or a part of it, has a format. If not, that
// is a mistake.
func (p *parser) is(v gjson.Result, s string, f format) bool {
	if f.is(s) {
		return true
	}
	p.fail(v, "%q is not %s", s, f.what)
	return false
}

// boolean returns a boolean, false for anything else.
func (p *parser) boolean(v gjson.Result) bool {
	if !v.IsBool() {
		p.fail(v, "must be true or false, not %s", kind(v))
		return false
	}
	return v.Bool()
}

// integer returns a whole number from low to high, or low for anything else.
func (p *parser) integer(v gjson.Result, low, high int) int {
	if v.Type != gjson.Number {
		p.fail(v, "must be a number, not %s", kind(v))
		return low
	}
	n, err := strconv.Atoi(v.Raw)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		p.fail(v, "must be a whole number, not %s", v.Raw)
		return low
	case err == nil && low <= n && n <= high:
		return n
	case high == math.MaxInt32 && err == nil && n < low:
		p.fail(v, "must be at least %d, not %d", low, n)
	default:
		p.fail(v, "must be from %d to %d, not %s", low, high, v.Raw)
	}
	return low
}

// decimal returns a number from low to high, or low for anything else.
func (p *parser) decimal(v gjson.Result, low, high float64) float64 {
	switch {
	case v.Type != gjson.Number:
		p.fail(v, "must be a number, not %s", kind(v))
	case !(low <= v.Num && v.Num <= high):
		p.fail(v, "must be from %s to %s, not %s", plain(low), plain(high), v.Raw)
	case v.Num != 0: // which is not -0 either
		return v.Num
	}
	return low
}

// ctid returns the container id that a string or a number holds, or 0.
func (p *parser) ctid(v gjson.Result) int {
	s := v.Raw
	switch v.Type {
	case gjson.String:
		s = v.Str
	case gjson.Number:
	default:
		p.fail(v, "must be a container id, not %s", kind(v))
		return 0
	}
	id, err := ParseCTID(s)
	if err != nil {
		p.fail(v, "%v", err)
	}
	return id
}

// A listSet finds what a list has twice, by looking through the list while that
// is short.
type listSet[K comparable] struct{ long map[K]struct{} }

// has reports whether k is in list. If it is not, it must be appended.
func (s *listSet[K]) has(list []K, k K) bool {
	if s.long == nil {
		if len(list) < 32 {
			return slices.Contains(list, k)
		}
		s.long = make(map[K]struct{}, 2*len(list))
		for _, old := range list {
			s.long[old] = struct{}{}
		}
	}
	_, twice := s.long[k]
	s.long[k] = struct{}{}
	return twice
}

// warnUnder adds a warning at an offset of a value below the current one, as
// [parser.failUnder] does for mistakes.
func (p *parser) warnUnder(at int, keys, format string, args ...any) {
	p.warnings.add(at, func() note { return note{at, p.pathTo(keys), message(format, args), -1} })
}

// maxWords is how many words an option of pct may have: many more would not fit
// into an argument.
const maxWords = 100

// words calls read for the strings of a list, or for the words of a string, which
// blanks, commas and semicolons separate.
func (p *parser) words(v gjson.Result, read func(v gjson.Result, word string)) {
	count := 0
	each := func(v gjson.Result, word string) {
		if count++; count <= maxWords {
			read(v, word)
		} else {
			p.fail(v, "at most %d are allowed", maxWords)
		}
	}
	if v.IsArray() {
		p.list(v, func(v gjson.Result) {
			if s, ok := p.str(v); ok {
				each(v, s)
			}
		})
	} else if s, ok := p.str(v); ok {
		for _, s := range strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' || r == ';' }) {
			each(v, s)
		}
	}
}

// under calls read with the path of a member of the current value.
func (p *parser) under(key string, read func()) {
	p.path = append(p.path, step{key, -1})
	read()
	p.path = p.path[:len(p.path)-1]
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
