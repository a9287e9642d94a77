package cahost

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/pve"
)

//go:embed container.sh
var containerScript string

// containerNames are what the script calls the places and names of package ca.
const containerNames = "default=" + ca.Home + " provisioner=" + ca.Provisioner +
	" settings=" + ca.AdoptedFile + " stale=" + ca.RestartFile + "\n"

// container is a conversation with the CA's container: one pct exec, however
// much is to be done. What the container says is data: bounded, and checked by
// whoever uses it.
type container struct {
	*pve.Conversation
	ctid     int
	begins   func(stage string) // see Options; may be nil
	readOnly bool               // commands that may change something are refused with [ErrEarly]
}

// maxAnswer is how long an answer may be: a file of 64 KiB in base64.
const maxAnswer = 96 << 10

const (
	// convergeLimit is how long a conversation may take: the container may have to
	// wait for another one, and step-ca to start.
	convergeLimit = 10 * time.Minute

	// lookLimit is for one that only looks.
	lookLimit = 30 * time.Second
)

// endLimit is how long a conversation may take to end when all is done.
const endLimit = 10 * time.Second

func open(ctx context.Context, host *pve.Host, ctid int, timeout time.Duration) (*container, error) {
	cmd := host.Exec(ctid, "/bin/sh", "-c", containerNames+containerScript, "phx-ca-export")
	cmd.Label = fmt.Sprintf("pct exec %d (phx-ca-export)", ctid)
	cmd.Timeout = timeout
	talk, err := host.Converse(ctx, cmd, maxAnswer)
	return &container{Conversation: talk, ctid: ctid}, err
}

// end ends the conversation. err is why, nil when all is done.
func (c *container) end(err error) {
	if err != nil {
		c.Stop(err)
	}
	c.To.Close()
	select {
	case <-c.Ended:
	case <-time.After(endLimit):
		c.Stop(errors.New("all is done, and it does not end"))
		<-c.Ended
	}
	c.Close()
}

var word = regexp.MustCompile(`^[A-Za-z0-9+/=.,:_\[\]-]+$`)

// stages are what begins in the container with the commands of a run that changes a
// CA. The others are fast, or belong to the command before.
var stages = map[string]string{"csr": "certificate", "changing": "configuration", "reload": "service"}

// call has the container carry out a command, and returns the words of its
// answer.
func (c *container) call(command string, args ...string) ([]string, error) {
	if c.readOnly && command != "peek" && command != "read" && command != "health" {
		return nil, ErrEarly
	}
	for _, arg := range args {
		if !word.MatchString(arg) {
			return nil, fmt.Errorf("container %d: %q: not a name that phx-ca-export works with", c.ctid, short(arg))
		}
	}
	if stage := stages[command]; stage != "" && c.begins != nil {
		c.begins(stage)
	}
	if _, err := io.WriteString(c.To, strings.Join(append([]string{command}, args...), " ")+"\n"); err != nil {
		return nil, c.broken(err)
	}
	line, err := c.From.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		err = fmt.Errorf("container %d: %s: an answer of more than %d KiB", c.ctid, command, maxAnswer>>10)
		c.Stop(err)
		return nil, err
	}
	if err != nil {
		return nil, c.broken(errors.New("it ended without an answer"))
	}
	kind, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
	switch kind {
	case "ok":
		return strings.Fields(rest), nil
	case "error":
		return nil, fmt.Errorf("container %d: %s failed\n%s", c.ctid, command,
			cmdline.Quoted(cmdline.Escape(short(rest))))
	}
	return nil, fmt.Errorf("container %d: %s: not an answer: %q", c.ctid, command, short(string(line)))
}

// broken returns why the conversation broke off: what pct says, if it said
// anything.
func (c *container) broken(err error) error {
	select {
	case ended := <-c.Ended:
		c.Ended <- ended
		if ended != nil {
			return ended
		}
	case <-time.After(6 * time.Second):
	}
	return fmt.Errorf("pct exec %d (phx-ca-export): %w", c.ctid, err)
}

// short returns a text of a container as it can be shown.
func short(s string) string {
	if len(s) > 2000 {
		s = s[:2000] + " (cut)"
	}
	return strings.ReplaceAll(cmdline.Escape(s), "\n", `\n`)
}

// read returns a file of the container, nil when there is none.
func (c *container) read(path string) ([]byte, error) { return c.file("read", path) }

// file is call for an answer that is a file.
func (c *container) file(command string, args ...string) ([]byte, error) {
	answer, err := c.call(command, args...)
	switch {
	case err != nil:
		return nil, err
	case len(answer) == 0:
		return []byte{}, nil
	case answer[0] == "-":
		return nil, nil
	}
	data, err := base64.StdEncoding.DecodeString(answer[0])
	if err != nil {
		return nil, fmt.Errorf("container %d: %s: not an answer: %w", c.ctid, command, err)
	}
	return data, nil
}

func (c *container) put(path string, data []byte) error {
	_, err := c.call("put", path, base64.StdEncoding.EncodeToString(data))
	return err
}

// Kinds of CA that a container may have.
const (
	kindNone    = "none"    // no trace of one
	kindOwn     = "own"     // made by phx
	kindAdopted = "adopted" // taken over by phx
	kindFound   = "found"   // there before phx
	kindSeveral = "several" // more than one was there
	kindLost    = "lost"    // parts of one
)

// pathForm are the paths that a container may name: no word that could be
// read as one of phx's own. There are several where several CAs were found.
var pathForm = regexp.MustCompile(`^/[A-Za-z0-9+=.,:_/-]{1,1000}$`)

// maxIntermediates is how many files of intermediates and their keys may be
// left of rotations.
const maxIntermediates = 100

// state is what a container has of a CA.
type state struct {
	kind, home, config string
	rootKey            bool     // the root's key lies there
	finished           bool     // what an interrupted run had made was put in place
	stale              bool     // an interrupted run has not had the service take what it changed
	intermediates      []string // files of intermediates and their keys
}

// look has the container say what it has of a CA. command is look, or peek where
// nothing may be changed: an interrupted run stays unfinished.
func (c *container) look(command string) (state, error) {
	answer, err := c.call(command)
	if err != nil {
		return state{}, err
	}
	good := len(answer) >= 5 && len(answer) <= 5+maxIntermediates
	for i := 1; good && i < len(answer); i++ {
		good = i == 3 || i == 4 || pathForm.MatchString(answer[i])
	}
	if !good {
		return state{}, fmt.Errorf("container %d: not an answer: %q", c.ctid, short(strings.Join(answer, " ")))
	}
	return state{
		kind: answer[0], home: answer[1], config: answer[2],
		rootKey:  answer[3] == "yes",
		finished: answer[4] == "yes", stale: answer[4] == "stale",
		intermediates: answer[5:],
	}, nil
}
