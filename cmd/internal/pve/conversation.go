package pve

import (
	"bufio"
	"context"
	"os"
	"time"
)

// Conversation is a command under way with which the caller talks over its stdin and
// stdout: a pct exec, and what it has started in a container.
type Conversation struct {
	To   *os.File      // its stdin
	From *bufio.Reader // its stdout

	// Ended gets the command's error once, nil for success, when it has ended.
	Ended chan error

	// Stop has the command ended, for a reason that its error tells.
	Stop context.CancelCauseFunc

	from *os.File
	undo func() bool
}

// Linger is how long what a command has left in a container may hold the pipes of a
// conversation when the command itself has ended.
const Linger = 2 * time.Second

// Converse starts a command to talk with. Lines that are read from it with
// ReadSlice may have up to line bytes. The command's Stdin and Stdout are those of
// the conversation, which has to be closed.
func (h *Host) Converse(ctx context.Context, cmd Command, line int) (*Conversation, error) {
	// Pipes of the system, not of Go: each side then sees the other one end.
	stdin, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	from, stdout, err := os.Pipe()
	if err != nil {
		stdin.Close()
		to.Close()
		return nil, err
	}
	cmd.Stdin, cmd.Stdout = stdin, stdout
	ctx, stop := context.WithCancelCause(ctx)
	c := &Conversation{
		To: to, From: bufio.NewReaderSize(from, line), Ended: make(chan error, 1), Stop: stop, from: from,
	}
	// What runs in the container may outlive its pct exec, and hold the pipes.
	c.undo = context.AfterFunc(ctx, func() { c.limit(0) })
	go func() {
		_, err := h.Run(ctx, cmd)
		stdin.Close()
		stdout.Close()
		c.limit(Linger)
		c.Ended <- err
	}()
	return c, nil
}

// limit ends what the caller reads and writes after a time.
func (c *Conversation) limit(d time.Duration) {
	c.from.SetDeadline(time.Now().Add(d))
	c.To.SetDeadline(time.Now().Add(d))
}

// HangUp closes the pipes: whoever is at the other end sees that nothing follows.
func (c *Conversation) HangUp() {
	c.To.Close()
	c.from.Close()
}

// Close ends the conversation, and the command if it still runs.
func (c *Conversation) Close() {
	c.undo()
	c.Stop(nil)
	c.HangUp()
}
