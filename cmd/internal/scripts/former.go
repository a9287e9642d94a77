package scripts

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// Needs is what a script of before needs beside its own text.
type Needs struct {
	Files   []File   // that it sources, and that lie beside it in the container; none for a script of the host
	Missing []string // the paths of files that it sources in any case, and that are not there

	// Configs are the places on the host where it looks for
	// phoenix_lxc_configs.json, as far as that can be told; none for a script of a
	// container.
	Configs []string

	functions map[string]*function // that the files which it sources define
	text      []byte
	calls     map[string]bool // names of commands in text
}

// File is a file that is put beside a script in a container.
type File struct {
	Name string // below [RunDir]
	Text []byte
}

// function is a function of a sourced file.
type function struct {
	text  string
	calls map[string]bool
}

// OnHost returns what a script of before needs where it runs on the host, by its
// own path.
func (s *Script) OnHost() *Needs {
	return s.needs(s.Path, func(path string) string { return path })
}

// InContainer returns what a script of before needs where it runs in a
// container, in [RunDir]. What lies beside it there lies beside it on the host,
// or in the directory above.
func (s *Script) InContainer() *Needs {
	dir := filepath.Dir(s.Path)
	n := s.needs(RunDir+"/"+s.Name, func(path string) string {
		name, ok := strings.CutPrefix(path, RunDir+"/")
		switch {
		case !ok:
			return "" // the container's own
		case strings.Contains(name, "/"):
			return path // nothing is put there
		}
		for _, place := range []string{dir, filepath.Dir(dir)} {
			if _, err := os.Stat(filepath.Join(place, name)); err == nil {
				return filepath.Join(place, name)
			}
		}
		return filepath.Join(dir, name)
	})
	n.Configs = nil // it looks in the container
	return n
}

// Reads reports whether the script reads a file of which these are names: its
// own text has one of them, or that of a function which it calls.
func (n *Needs) Reads(names ...string) bool {
	has := func(text string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(text, name) })
	}
	if has(string(n.text)) {
		return true
	}
	seen := map[string]bool{}
	var reached func(calls map[string]bool) bool
	reached = func(calls map[string]bool) bool {
		for name := range calls {
			f := n.functions[name]
			if f == nil || seen[name] {
				continue
			}
			seen[name] = true
			if has(f.text) || reached(f.calls) {
				return true
			}
		}
		return false
	}
	return reached(n.calls)
}

// needs reads the script as a shell would, as far as the place of what it
// sources depends on it. place is where the script is when it runs; onHost
// returns the path on the host of a file that it names, "" for one that is no
// concern of the host.
func (s *Script) needs(place string, onHost func(string) string) *Needs {
	r := &reader{
		Needs:  &Needs{text: s.Text, functions: map[string]*function{}, calls: map[string]bool{}},
		onHost: onHost, script: place, isHost: place == s.Path, values: map[string]string{}, seen: map[string]bool{},
	}
	if file, err := parse(s.Text); err == nil { // it may be another language
		r.calls = callsOf(file)
		r.file(place, file)
	}
	return r.Needs
}

// Limits of what is followed. Parsing recurses, mostly at parentheses: deeper
// nesting than fits into these would overflow the stack. Longer values are no
// places.
const (
	maxParsed      = 256 << 10
	maxParentheses = 16 << 10
	maxValue       = 4 << 10
)

func parse(text []byte) (*syntax.File, error) {
	if len(text) > maxParsed || bytes.Count(text, []byte("(")) > maxParentheses {
		return nil, errUnknown
	}
	return syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(bytes.NewReader(text), "")
}

// callsOf returns the names of the commands below a node.
func callsOf(node syntax.Node) map[string]bool {
	calls := map[string]bool{}
	syntax.Walk(node, func(n syntax.Node) bool {
		if c, ok := n.(*syntax.CallExpr); ok && len(c.Args) > 0 {
			if name := c.Args[0].Lit(); name != "" {
				calls[name] = true
			}
		}
		return true
	})
	return calls
}

// reader follows the assignments and the source commands of a script.
type reader struct {
	*Needs
	onHost func(string) string
	script string            // $0
	isHost bool              // the script runs on the host, whose links lead it where they lead phx
	source string            // BASH_SOURCE[0]
	values map[string]string // of variables, where they are known
	seen   map[string]bool   // sourced files
}

func (r *reader) file(source string, file *syntax.File) {
	before := r.source
	r.source = source
	r.statements(file.Stmts, true)
	r.source = before
}

// statements follows statements that are executed in any case, if certain.
func (r *reader) statements(stmts []*syntax.Stmt, certain bool) {
	for _, s := range stmts {
		r.command(s.Cmd, certain)
	}
}

func (r *reader) command(cmd syntax.Command, certain bool) {
	switch c := cmd.(type) {
	case *syntax.CallExpr:
		if len(c.Args) == 0 {
			r.assign(c.Assigns)
		} else if name := c.Args[0].Lit(); (name == "source" || name == ".") && len(c.Args) > 1 {
			r.include(c.Args[1], certain)
		}
	case *syntax.DeclClause: // export, local, readonly, declare
		r.assign(c.Args)
	case *syntax.BinaryCmd:
		r.command(c.X.Cmd, certain && !(c.Op == syntax.OrStmt && succeeds(c.Y.Cmd)))
		r.command(c.Y.Cmd, false)
	case *syntax.Block:
		r.statements(c.Stmts, certain)
	case *syntax.Subshell:
		r.statements(c.Stmts, certain)
	case *syntax.IfClause:
		for ; c != nil; c = c.Else {
			r.statements(c.Cond, false)
			r.statements(c.Then, false)
		}
	case *syntax.WhileClause:
		r.statements(c.Do, false)
	case *syntax.ForClause:
		r.statements(c.Do, false)
	case *syntax.CaseClause:
		for _, item := range c.Items {
			r.statements(item.Stmts, false)
		}
	case *syntax.FuncDecl:
		if r.source != r.script { // of a sourced file
			r.functions[c.Name.Value] = &function{printed(c.Body), callsOf(c.Body)}
		}
		r.command(c.Body.Cmd, false)
	}
}

// succeeds reports whether a command does nothing, so that what comes before it
// with "||" may fail.
func succeeds(cmd syntax.Command) bool {
	c, ok := cmd.(*syntax.CallExpr)
	return ok && len(c.Args) > 0 && (c.Args[0].Lit() == "true" || c.Args[0].Lit() == ":")
}

func printed(node syntax.Node) string {
	var b strings.Builder
	syntax.NewPrinter().Print(&b, node)
	return b.String()
}

// assign notes the values of variables.
func (r *reader) assign(assigns []*syntax.Assign) {
	for _, a := range assigns {
		if a.Name == nil || a.Naked {
			continue
		}
		name := a.Name.Value
		value, err := "", error(nil)
		if a.Append || a.Index != nil || a.Array != nil {
			err = errUnknown
		} else if a.Value != nil {
			value, err = r.expand(a.Value)
		}
		if err != nil || len(value) > maxValue {
			delete(r.values, name)
			continue
		}
		r.values[name] = value
		if name == "LXC_CONFIG_FILE" && filepath.IsAbs(value) && !strings.HasPrefix(value, RunDir+"/") &&
			!slices.Contains(r.Configs, value) {
			r.Configs = append(r.Configs, value)
		}
	}
}

// include follows a source command.
func (r *reader) include(word *syntax.Word, certain bool) {
	named, err := r.expand(word)
	if err != nil || !filepath.IsAbs(named) {
		return // it depends on what only the shell knows
	}
	named = filepath.Clean(named)
	path := r.onHost(named)
	if path == "" || r.seen[path] {
		return
	}
	r.seen[path] = true
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return // such as /dev/stdin: what it holds is for the shell alone
	}
	text, err := os.ReadFile(path)
	if err != nil {
		if certain {
			r.Missing = append(r.Missing, path)
		}
		return
	}
	if name, ok := strings.CutPrefix(named, RunDir+"/"); ok && path != named {
		r.Files = append(r.Files, File{name, text})
	}
	if file, err := parse(text); err == nil {
		r.file(named, file)
	}
}

// errUnknown is the error for a word whose value only the shell knows.
var errUnknown = errors.New("unknown")

// expand returns the value of a word.
func (r *reader) expand(word *syntax.Word) (string, error) {
	return expand.Literal(&expand.Config{
		Env: r, NoUnset: true, CmdSubst: r.substitute,
		ProcSubst: func(*syntax.ProcSubst) (string, error) { return "", errUnknown },
	}, word)
}

// Get returns a variable; it makes r an [expand.Environ].
func (r *reader) Get(name string) expand.Variable {
	switch name {
	case "0":
		return expand.Variable{Set: true, Kind: expand.String, Str: r.script}
	case "BASH_SOURCE":
		return expand.Variable{Set: true, Kind: expand.Indexed, List: []string{r.source}}
	}
	value, known := r.values[name]
	return expand.Variable{Set: known, Kind: expand.String, Str: value}
}

// Each calls f for each variable.
func (r *reader) Each(f func(string, expand.Variable) bool) {
	for _, name := range slices.Sorted(maps.Keys(r.values)) {
		if !f(name, r.Get(name)) {
			return
		}
	}
}

// substitute prints what a command prints of which a place is made: dirname,
// basename, readlink -f, realpath, and cd && pwd.
func (r *reader) substitute(w io.Writer, c *syntax.CmdSubst) error {
	if len(c.Stmts) != 1 {
		return errUnknown
	}
	dir := ""
	var run func(cmd syntax.Command) error
	run = func(cmd syntax.Command) error {
		switch c := cmd.(type) {
		case *syntax.BinaryCmd:
			if c.Op != syntax.AndStmt {
				return errUnknown
			}
			if err := run(c.X.Cmd); err != nil {
				return err
			}
			return run(c.Y.Cmd)
		case *syntax.CallExpr:
			return r.call(w, c, &dir)
		}
		return errUnknown
	}
	return run(c.Stmts[0].Cmd)
}

// call prints what one of these commands prints; dir is the directory in which
// cd has left the shell, "" before.
func (r *reader) call(w io.Writer, c *syntax.CallExpr, dir *string) error {
	var words []string
	for _, arg := range c.Args {
		word, err := r.expand(arg)
		if err != nil {
			return err
		}
		words = append(words, word)
	}
	var operands []string
	for _, word := range words[min(1, len(words)):] {
		if !strings.HasPrefix(word, "-") {
			operands = append(operands, word)
		}
	}
	printed := ""
	switch {
	case len(words) == 0:
		return errUnknown
	case words[0] == "pwd" && *dir != "":
		printed = *dir
	case len(operands) != 1:
		return errUnknown
	default:
		operand := operands[0]
		switch words[0] {
		case "cd":
			if *dir = filepath.Clean(operand); !filepath.IsAbs(*dir) {
				return errUnknown
			}
			return nil
		case "dirname":
			operand = strings.TrimRight(operand, "/")
			switch i := strings.LastIndexByte(operand, '/'); { // no .. is resolved, as filepath.Dir would
			case i < 0:
				return errUnknown
			case i == 0:
				printed = "/"
			default:
				printed = operand[:i]
			}
		case "basename":
			printed = filepath.Base(operand)
		case "readlink", "realpath":
			printed = filepath.Clean(operand)
			if real, err := filepath.EvalSymlinks(printed); err == nil && r.isHost {
				printed = real
			}
		default:
			return errUnknown
		}
	}
	_, err := io.WriteString(w, printed+"\n")
	return err
}
