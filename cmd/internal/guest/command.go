package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Ask gets what only the host can supply, and stores its JSON value in value, a
// pointer. need is "token", "gateway" or the name of a feature.
type Ask func(need string, value any) error

// Tell tells the host what goes on, and reports whether it takes that.
type Tell func(remote.Note) bool

// Alone is the [Ask] of a half that was started by hand: no host is listening. It
// says what to run there for a feature.
func Alone(need string, _ any) error {
	return fmt.Errorf("%s is missing: on the host, run phoenix_hypervisor_feature_install_%s.sh for this container",
		need, need)
}

// ForHost does what the host's half of the program asks for, over stdin and
// stdout: apply is given its request, and makes the answer.
func ForHost[T any](apply func(request T, ask Ask, tell Tell) *remote.Answer) error {
	peer := remote.NewPeer(os.Stdin, os.Stdout)
	var request T
	if err := peer.Ask("request", &request); err != nil {
		return err
	}
	return peer.Answer(apply(request, peer.Ask, peer.Tell))
}

// Print prints the answer to whoever has run a program's half in the container
// by hand. The error is that of the answer.
func Print(a *remote.Answer) error {
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		return err
	}
	if a.Error != "" {
		return fmt.Errorf("%s: %s", a.Stage, a.Error)
	}
	return nil
}

// LastRequest returns what apply was asked last in this container, as it has kept
// it in a file with [Setup.WriteState]; the zero value when it has not been run.
func LastRequest[T any](file string) (T, error) {
	last, err := ReadState[T](file)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return last, err
}

// ReadOptions stores the options with these names in the fields. One that is not
// set leaves what is in its field, as from the last run; its default is for an
// empty field.
func ReadOptions(c *cli.Context, fields map[string]*string) {
	for name, field := range fields {
		if c.IsSet(name) || *field == "" {
			*field = c.String(name)
		}
	}
}

// ReadOptions reads --root, --fingerprint and --ca-url: see [ReadOptions]. A root
// that is named takes the place of one that has come with a request.
func (t *Trust) ReadOptions(c *cli.Context) {
	if c.IsSet("root") {
		t.Carried = ""
	}
	ReadOptions(c, map[string]*string{"root": &t.Root, "fingerprint": &t.Fingerprint, "ca-url": &t.CAURL})
	t.Fingerprint = strings.ToLower(t.Fingerprint)
}

// RequirePin returns a usage error unless it is known which CA to trust. file is
// where a run for the host keeps that.
func (t Trust) RequirePin(file string) error {
	if t.Fingerprint == "" || t.CAURL == "" {
		return cmdline.Usagef("--fingerprint and --ca-url are required: without the pin the CA cannot be trusted; "+
			"a run of phoenix on the host leaves both in %s", file)
	}
	return nil
}
