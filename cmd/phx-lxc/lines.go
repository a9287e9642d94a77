package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

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

// A fileLine is a line of a file, with its line end. ours is its index among
// the lines that are to be there, or foreign.
type fileLine struct {
	text string
	ours int
}

const foreign = -1

// arrange returns lines with all the desired ones in the order of desired; no
// two of lines may have the same index, and those that are there keep their
// text. Nothing moves when these stand in the right order: each missing one is
// put behind the one before it. Otherwise they become a group at the place of
// the first. If there is none, that place is before lines[none]. Foreign lines
// keep their order.
func arrange(lines []fileLine, desired []string, none int) []fileLine {
	first, last, ordered := -1, -1, true
	group := make([]fileLine, len(desired))
	present := make([]bool, len(desired))
	for i, text := range desired {
		group[i] = fileLine{text, i}
	}
	for i, l := range lines {
		if l.ours == foreign {
			continue
		}
		if first < 0 {
			first = i
		}
		ordered = ordered && l.ours > last
		last = l.ours
		group[l.ours], present[l.ours] = l, true
	}
	if first < 0 {
		return slices.Insert(lines, none, group...)
	}

	var arranged []fileLine
	for i, l := range lines {
		if l.ours == foreign {
			arranged = append(arranged, l)
			continue
		}
		from, to := l.ours, l.ours+1
		if i == first {
			from = 0
		}
		for to < len(group) && !present[to] {
			to++
		}
		switch {
		case ordered:
			arranged = append(arranged, group[from:to]...)
		case i == first:
			arranged = append(arranged, group...)
		}
	}
	return arranged
}

// joinLines returns the text of lines. One without a line end gets it, unless
// it is the last.
func joinLines(lines []fileLine) []byte {
	var b strings.Builder
	for i, l := range lines {
		b.WriteString(l.text)
		if i < len(lines)-1 && !strings.HasSuffix(l.text, "\n") {
			b.WriteByte('\n')
		}
	}
	return []byte(b.String())
}

// shortHash is what the record keeps of a line that phx has written.
func shortHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:3])
}

func shortHashes(texts []string) string {
	hashes := make([]string, len(texts))
	for i, t := range texts {
		hashes[i] = shortHash(t)
	}
	return strings.Join(hashes, ",")
}

// parseHashes reads a list of hashes of the record.
func parseHashes(list string) map[string]bool {
	hashes := map[string]bool{}
	for h := range strings.SplitSeq(list, ",") {
		if h != "" {
			hashes[h] = true
		}
	}
	return hashes
}
