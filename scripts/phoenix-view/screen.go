package main

import (
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"golang.org/x/sys/unix"
)

// A style is how text looks on a terminal with colours: the parameters of its
// escape sequence.
type style string

const (
	plainText style = ""
	bold      style = "1"
	dim       style = "2"
	red       style = "31"
	green     style = "32"
	yellow    style = "33"
	cyan      style = "36"
)

// A span is text in one style. What it says may be anybody's words: it is escaped
// where it is written.
type span struct {
	style style
	text  string
}

// A line is what stands in one line.
type line []span

// text returns a line without colours.
func text(words ...string) line { return line{{plainText, strings.Join(words, "")}} }

// width is how many columns a line takes.
func (l line) width() int {
	sum := 0
	for _, part := range l {
		sum += width(escape(part.text))
	}
	return sum
}

// screen is where people read.
type screen struct {
	out     *os.File
	columns int // 0 where lines may be as long as they are
	rows    int // 0 where nothing can be redrawn
	colours bool
}

// newScreen returns what is known of out. Environment variables are looked up by
// getenv.
func newScreen(out *os.File, getenv func(string) string) *screen {
	s := &screen{out: out}
	if _, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS); err != nil {
		return s
	}
	s.measure()
	if term := getenv("TERM"); term == "" || term == "dumb" {
		s.rows = 0
		return s
	}
	s.colours = getenv("NO_COLOR") == ""
	return s
}

// measure asks the terminal for its size, and takes 80×24 where it does not know.
func (s *screen) measure() {
	s.columns, s.rows = 80, 24
	if size, err := unix.IoctlGetWinsize(int(s.out.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 0 {
		s.columns, s.rows = int(size.Col), int(size.Row)
	}
}

// format returns a line as it is written, cut to some columns unless these are 0.
func (s *screen) format(l line, columns int) string {
	over := columns > 0 && l.width() > columns
	var b strings.Builder
	for _, part := range l {
		text := escape(part.text)
		full := over && width(text) >= columns
		if full {
			text = columnsOf.Truncate(text, columns-1, "") + "…"
		}
		columns -= width(text)
		if s.colours && part.style != plainText && text != "" {
			text = "\x1b[" + string(part.style) + "m" + text + "\x1b[0m"
		}
		b.WriteString(text)
		if full {
			break
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// print writes lines as long as they are.
func (s *screen) print(lines ...line) error {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(s.format(l, 0) + "\n")
	}
	_, err := s.out.WriteString(b.String())
	return err
}

// wrapped returns words in lines of the screen: the first behind head, the others
// behind the indent. Of text of very many lines it has the first and the last.
func (s *screen) wrapped(head line, indent string, look style, words string) []line {
	var all []line
	add := func(text string) {
		all = append(all, append(head, span{look, text}))
		head = line{{plainText, indent}}
	}
	for _, row := range abridged(strings.Split(strings.TrimRight(words, "\n"), "\n")) {
		if s.columns == 0 {
			add(row)
			continue
		}
		parts := strings.Split(escape(row), " ")
		text, used := parts[0], head.width()+width(parts[0])
		for _, word := range parts[1:] {
			if used += 1 + width(word); used > s.columns {
				add(text)
				text, used = word, head.width()+width(word)
				continue
			}
			text += " " + word
		}
		add(text)
	}
	return all
}

// columnsOf counts as terminals do, whatever the locale.
var columnsOf = &runewidth.Condition{StrictEmojiNeutral: true}

// width is how many columns text takes that has been escaped.
func width(text string) int { return columnsOf.StringWidth(text) }

// cut returns text, or its beginning and "…" where it is wider than that.
func cut(text string, columns int) string { return columnsOf.Truncate(escape(text), columns, "…") }

// pad returns text with as many blanks as it lacks.
func pad(text string, columns int) string {
	return text + strings.Repeat(" ", max(0, columns-width(escape(text))))
}

// escape returns text with everything that could act on a terminal, or hide or
// reorder what stands beside it, in the form of a Go string: \x1b, \u202e. Of
// white space only blanks stay.
func escape(text string) string {
	if strings.IndexFunc(text, hidden) < 0 {
		return text
	}
	var b strings.Builder
	for rest := text; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		switch {
		case r == '\t':
			b.WriteString("    ")
		case r == '\n':
			b.WriteString(" ")
		case hidden(r):
			b.WriteString(quoted(rest[:size]))
		default:
			b.WriteString(rest[:size])
		}
		rest = rest[size:]
	}
	return b.String()
}

// quoted returns text in the form of a Go string, without the quotes.
func quoted(text string) string {
	literal := strconv.QuoteToASCII(text)
	return literal[1 : len(literal)-1]
}

// hidden reports whether r is not to be written as it is. An invalid byte, which
// reads as U+FFFD, may be one.
func hidden(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }
