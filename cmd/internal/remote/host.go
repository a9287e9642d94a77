package remote

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"
)

// Serve is the host's end of a conversation: it supplies what the container's
// half asks for until its answer has come, and returns that answer, of which
// Error may be set. program is the program itself, which is read when it is asked
// for. names are those of the service's certificates: the host knows them, and they
// replace what the answer says. supply returns the JSON value of each other need;
// its error is told to the container's half, whose answer then follows. tell gets
// what that half says while it works. The error is [ErrEnded] when there is no other
// half any more, and else says what it did wrong.
func Serve(in io.Reader, out io.Writer, program io.Reader, names []string,
	supply func(need string) (any, error), tell func(Note),
) (*Answer, error) {
	lines := bufio.NewReader(in)
	asked := map[string]bool{}
	var said notes
	for {
		line, err := readLine(lines)
		if err != nil {
			return nil, err
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("not an answer: %.100q", line)
		}
		switch {
		case m.Answer != nil:
			if err := m.Answer.check(names); err != nil {
				return nil, err
			}
			return m.Answer, nil
		case m.Note != Note{}:
			if err := m.Note.check(); err != nil {
				return nil, err
			}
			if !said.add(m.Note) {
				return nil, fmt.Errorf("says more than %d things of a kind", maxNotes)
			}
			tell(m.Note)
			continue
		case !needForm.MatchString(m.Need):
			return nil, fmt.Errorf("not a need: %.100q", line)
		case asked[m.Need]:
			return nil, fmt.Errorf("asks for the %s a second time", m.Need)
		case len(asked) == maxNeeds:
			return nil, fmt.Errorf("asks for more than %d things", maxNeeds)
		}
		asked[m.Need] = true
		if m.Need == "program" {
			_, err = io.Copy(out, program)
		} else {
			err = send(out, m.Need, supply)
		}
		if err != nil {
			return nil, ErrEnded
		}
	}
}

func send(out io.Writer, need string, supply func(string) (any, error)) error {
	var r reply
	value, err := supply(need)
	if err == nil {
		r.Value, err = json.Marshal(value)
	}
	if err == nil && len(r.Value) > maxLine-100 {
		err = fmt.Errorf("the %s is longer than %d MiB", need, maxLine>>20)
	}
	if err != nil {
		r = reply{Error: cut(err.Error(), maxError)}
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = out.Write(append(line, '\n'))
	return err
}

var (
	needForm  = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)
	stageForm = regexp.MustCompile(`^[a-z]+( [a-z]+){0,4}$`)
	sumForm   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// possibleEnd reports whether a certificate may end then, or it is not said when.
func possibleEnd(t time.Time) bool {
	until := time.Until(t)
	return t.IsZero() || until <= maxAge && until >= -maxAge
}

func checkStage(stage string) error {
	if stage != "" && (len(stage) > 32 || !stageForm.MatchString(stage)) {
		return fmt.Errorf("not a stage: %.100q", stage)
	}
	return nil
}

// check is [Answer.check] for a note.
func (n *Note) check() error {
	n.Warning = cut(n.Warning, maxWarning)
	return checkStage(n.Stage)
}

// check makes of what the container's half has sent what the host may use: it
// refuses what cannot be, and cuts what is too long.
func (a *Answer) check(names []string) error {
	if err := checkStage(a.Stage); err != nil {
		return err
	}
	if !possibleEnd(a.NotAfter) {
		return fmt.Errorf("not the end of a certificate: %s", a.NotAfter)
	}
	known := map[string]bool{} // names that the host knows, of which each counts once
	for _, name := range names {
		known[name] = true
	}
	for _, c := range a.Certificates {
		if !possibleEnd(c.NotAfter) || c.SHA256 != "" && !sumForm.MatchString(c.SHA256) {
			return fmt.Errorf("not a certificate: %.200q", fmt.Sprint(c))
		}
	}
	a.Certificates = slices.DeleteFunc(a.Certificates, func(c Certificate) bool {
		unknown := !known[c.Name]
		known[c.Name] = false
		return unknown
	})
	a.Names = names
	a.NotAfter = a.NotAfter.UTC().Truncate(time.Second)
	a.shorten()
	return nil
}
