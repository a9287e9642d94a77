package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tidwall/gjson"
)

// File is a configuration.
type File struct {
	Path       string
	Containers map[int]*Container // those without mistakes, by container id
	Wrong      map[int]*Wrong     // the others; there are none but in [Error.Rest]
	Others     []OtherService     // services
	Dashboard  *Dashboard         // dashboard; nil without
	VMs        []VM               // of a file of its own; see [LoadVMs]

	// ServedWrong is the first mistake, with its place, in what is served beside the
	// containers' services, which the gateway, the proxy and the CA have to know; ""
	// for none.
	ServedWrong string

	Warnings []Mistake // by position
	More     int       // warnings beside these

	planLength int // of what an event says of all containers and services, at most
}

// Limits of the file. Time and memory to read it grow with its length at most,
// whatever it holds.
const (
	// MaxFile is the greatest length of the file in bytes.
	MaxFile = 64 << 20

	// MaxContainer is the greatest length of a container's object in bytes,
	// together with the ids of what it needs and of what needs it: they have to
	// fit in one event. Blanks between tokens do not count, and characters that
	// an event has to escape count as their escapes. The ids and the services of
	// all containers together have the same limit.
	MaxContainer = 1<<20 - 64<<10

	// MaxMistakes is how many mistakes and warnings are kept: the first by
	// position. The others are counted.
	MaxMistakes = 100
)

// Load reads and checks the file at path. The error is an [*Error] when the
// file could be read but has mistakes.
func Load(path string) (*File, error) { return LoadOn(path, nil) }

// LoadOn is [Load] on the host that the file is for; nil is [Load].
func LoadOn(path string, host *Host) (*File, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return newParser(text, host).file(path, host != nil)
}

// FormerDomain returns the domain that the scripts before phx had, which is in a
// file beside the configuration at path, and the path of that file. It is "" where
// there is none that is a domain.
func FormerDomain(path string) (domain, file string) {
	file = filepath.Join(filepath.Dir(path), "phoenix_hypervisor_config.json")
	text, err := readFile(file)
	if err != nil || !gjson.Valid(text) {
		return "", file
	}
	if domain = strings.ToLower(gjson.Get(text, "domain_name").Str); !IsHostName(domain) {
		domain = ""
	}
	return domain, file
}

// readFile reads a file or a pipe into a string without a second copy of it.
// Of one that is longer than MaxFile it reads little more than that.
func readFile(path string) (string, error) {
	// With O_NONBLOCK, opening a named pipe does not wait for a writer, and
	// reading it can have a deadline.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	switch kind := info.Mode().Type(); kind {
	case 0:
		b.Grow(int(min(info.Size(), MaxFile+1)))
	case fs.ModeNamedPipe:
		f.SetReadDeadline(time.Now().Add(pipePatience))
	default:
		return "", fmt.Errorf("%s: neither a file nor a pipe", path)
	}
	_, err = io.Copy(&b, io.LimitReader(f, MaxFile+1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%s: the pipe had no end after %v", path, pipePatience)
	}
	return b.String(), err
}

// pipePatience is how long a pipe may take until its end. It is changed by
// tests.
var pipePatience = 30 * time.Second

// Parse checks the content of a file. name is the file's in errors, which are
// an [*Error].
func Parse(name string, data []byte) (*File, error) {
	return newParser(string(data), nil).file(name, false)
}

// file reads the file's text. With onHost it refuses to give away directories
// of the host's packages.
func (p *parser) file(name string, onHost bool) (*File, error) {
	var found []*entry
	if root, ok := p.document(); ok {
		if found = p.root(root); !p.full() {
			p.relations(found)
		}
	}
	if onHost && !p.full() {
		if err := p.packagedDirs(found); err != nil {
			return nil, err
		}
	}
	warnings := p.report(p.warnings)
	file := &File{
		Path: name, Containers: make(map[int]*Container, len(found)), Warnings: warnings, More: p.warnings.more(),
	}
	for _, e := range found {
		file.Containers[e.CTID] = e.Container
	}
	file.planLength = p.planLength
	file.Others, file.Dashboard = p.served.read()
	if p.mistakes.count == 0 {
		return file, nil
	}
	wrong := &Error{
		File: name, Mistakes: p.report(p.mistakes), More: p.mistakes.more(),
		Warnings: warnings, MoreWarnings: p.warnings.more(),
	}
	if p.separate(file, found, wrong.Mistakes) {
		wrong.Rest = file
	}
	return nil, wrong
}

// ParseContainer checks the object of a single container, as the event
// ct.planned carries it. Whatever concerns several containers is not checked.
// The error is an [*Error] with positions in raw.
func ParseContainer(ctid int, raw []byte) (*Container, error) {
	p := newParser(string(raw), nil)
	var e *entry
	if root, ok := p.document(); ok {
		e = p.container(ctid, root)
	}
	if p.mistakes.count > 0 {
		name := fmt.Sprintf("container %d", ctid)
		return nil, &Error{File: name, Mistakes: p.report(p.mistakes), More: p.mistakes.more()}
	}
	return e.Container, nil
}

// Mistake is something wrong in the file. Line and Col count from 1, Col in
// bytes. Path has the keys from the outermost object on, as in
// lxc_configs.102.memory_mb; elements of lists count from 0. It is "" for the
// file as a whole.
type Mistake struct {
	Line, Col int
	Path, Msg string
}

// String returns "line:column: path: message".
func (m Mistake) String() string {
	if m.Path == "" {
		return fmt.Sprintf("%d:%d: %s", m.Line, m.Col, m.Msg)
	}
	return fmt.Sprintf("%d:%d: %s: %s", m.Line, m.Col, m.Path, m.Msg)
}

// Error is all that is wrong in a file, by position. The warnings are no part of
// the error's text, and help to understand it: a misspelt key is one, and why
// another key is missing.
type Error struct {
	File         string
	Mistakes     []Mistake
	More         int // mistakes beside these
	Warnings     []Mistake
	MoreWarnings int // warnings beside these

	// Rest is what is right in the file nevertheless. It is nil when that cannot be
	// told: the file is not JSON, it has no lxc_configs or that is wrong as a whole,
	// or it has more than [MaxMistakes] mistakes.
	Rest *File
}

// Error has a line "file:line:column: path: message" for each mistake, and one
// for those that are not kept.
func (e *Error) Error() string {
	var b strings.Builder
	for i, m := range e.Mistakes {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%v", e.File, m)
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\n%s: and %d more", e.File, e.More)
	}
	return b.String()
}

// IDs returns the ids of all containers, of those with mistakes too, in ascending
// order.
func (f *File) IDs() []int {
	ids := slices.AppendSeq(make([]int, 0, len(f.Containers)+len(f.Wrong)), maps.Keys(f.Containers))
	ids = slices.AppendSeq(ids, maps.Keys(f.Wrong))
	slices.Sort(ids)
	return ids
}

// all returns all containers in the order of their ids, as [File.Container] does.
func (f *File) all() iter.Seq[*Container] {
	return func(yield func(*Container) bool) {
		for _, id := range f.IDs() {
			if !yield(f.Container(id)) {
				return
			}
		}
	}
}

// first returns the container with the lowest id for which is reports true, nil
// without one.
func (f *File) first(is func(*Container) bool) *Container {
	var first *Container
	look := func(c *Container) {
		if (first == nil || c.CTID < first.CTID) && is(c) {
			first = c
		}
	}
	for _, c := range f.Containers {
		look(c)
	}
	for _, w := range f.Wrong {
		look(w.Container)
	}
	return first
}

// Container returns a container, a wrong one as far as it could be read, or nil
// when the file has none with this id.
func (f *File) Container(id int) *Container {
	if w := f.Wrong[id]; w != nil {
		return w.Container
	}
	return f.Containers[id]
}

// Needs returns the ids that have to be there before c: its clone source and
// its dependencies, each once and in ascending order, the containers of the
// file apart from the external ones.
func (f *File) Needs(c *Container) (needs, external []int) {
	all := make([]int, 0, len(c.Dependencies)+1)
	all = append(all, c.Dependencies...)
	if c.CloneFrom != 0 {
		all = append(all, c.CloneFrom)
	}
	slices.Sort(all)
	for _, id := range slices.Compact(all) {
		if f.Containers[id] != nil || f.Wrong[id] != nil {
			needs = append(needs, id)
		} else {
			external = append(external, id)
		}
	}
	return needs, external
}

// A Text is the text of a configuration file, and what is in it beside lxc_configs
// and phx's own keys.
type Text struct {
	Text []byte
	Root map[string]json.RawMessage // by key
}

// ReadText reads a file again that has been checked: for scripts that read it
// themselves. It has to be a file, as a pipe can be read only once.
func ReadText(path string) (*Text, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a file, and scripts of before read it themselves", path)
	case info.Size() > MaxFile:
		return nil, fmt.Errorf("%s: longer than %d bytes", path, MaxFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := &Text{Text: text}
	if err := json.Unmarshal(text, &t.Root); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, key := range []string{"lxc_configs", "services", "dashboard"} {
		delete(t.Root, key)
	}
	return t, nil
}
