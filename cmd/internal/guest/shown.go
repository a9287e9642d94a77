package guest

import (
	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// ShownCommand is the command of a program's half in the container that says what
// its service shows, and changes nothing.
const ShownCommand = "shown"

// Question is what the host's half asks it.
type Question struct {
	Names []string `json:"names"`
	Roots string   `json:"roots"` // against which what is shown is verified, in PEM
}

// Shown answers the question, over stdin and stdout.
func Shown(c *cli.Context) error {
	return ForHost(func(q Question, _ Ask, _ Tell) *remote.Answer {
		roots, err := cert.ParseRoots([]byte(q.Roots))
		if err != nil {
			return &remote.Answer{Stage: "trust", Error: err.Error()}
		}
		return &remote.Answer{Certificates: Certificates(c.Context, "127.0.0.1:443", q.Names, roots...)}
	})
}
