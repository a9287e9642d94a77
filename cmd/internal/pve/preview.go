package pve

import (
	"bytes"
	"os"
	"slices"

	"github.com/rogpeppe/go-internal/diff"
)

// Preview collects what would be done on a host, instead of its being done.
type Preview struct {
	Commands [][]string // in order, each with its arguments
	files    []*previewedFile
	gone     []string // paths of files that would have been removed by then
}

// previewedFile is a file as it is, and as it would be.
type previewedFile struct {
	path     string
	old, new []byte // nil: there is none
}

// AddOnce adds a command that is not there yet, and reports whether it was not:
// that of what phx does without a command, and perhaps in several stages.
func (p *Preview) AddOnce(argv ...string) (added bool) {
	if slices.ContainsFunc(p.Commands, func(have []string) bool { return slices.Equal(have, argv) }) {
		return false
	}
	p.Commands = append(p.Commands, argv)
	return true
}

// AddFile adds the change of a file from old, nil when there is none, to text.
func (p *Preview) AddFile(path string, old, text []byte) {
	p.files = append(p.files, &previewedFile{path, old, text})
}

// Diffs calls f for each file that would differ, with its path and a unified
// diff.
func (p *Preview) Diffs(f func(path, diff string)) {
	for _, file := range p.files {
		if d := unifiedDiff(file.path, file.old, file.new); d != "" {
			f(file.path, d)
		}
	}
}

// PreviewDestroy notes, in a preview, that the container's files are gone.
func (h *Host) PreviewDestroy(ctid int) {
	h.Preview.gone = append(h.Preview.gone, h.confPath(ctid), h.firewallPath(ctid))
}

// edit is what a preview does in place of an edit of the file at path. Where
// there is no such file yet, it would hold made by then.
func (p *Preview) edit(path string, made []byte, rewrite func([]byte) []byte) (text []byte, changed bool, err error) {
	for _, f := range p.files {
		if f.path == path {
			text = rewrite(f.new)
			changed = !bytes.Equal(text, f.new)
			f.new = text
			return text, changed, nil
		}
	}
	old, err := readIfThere(path)
	if err != nil {
		return nil, false, err
	}
	if slices.Contains(p.gone, path) {
		old = nil
	}
	if old == nil {
		old = made
	}
	text = rewrite(old)
	if bytes.Equal(text, old) {
		return text, false, nil
	}
	p.AddFile(path, old, text)
	return text, true, nil
}

// unifiedDiff returns how two texts of the file at path differ, "" when they
// do not. A nil text is that of a file that is not there.
func unifiedDiff(path string, old, new []byte) string {
	name := func(text []byte) string {
		if text == nil {
			return os.DevNull
		}
		return path
	}
	return string(diff.Diff(name(old), old, name(new), new))
}
