package cmdline

import (
	"os"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestAnEmptyVariableIsUnset(t *testing.T) {
	t.Setenv("PHX_NAME", "")
	t.Setenv("PHX_JOBS", "")
	t.Setenv("PHX_DRY_RUN", "")
	t.Setenv("PHX_SET", "set")
	t.Setenv("OTHER", "")
	defer func(args []string) { os.Args = args }(os.Args)
	os.Args = []string{"test"}
	status := run(&cli.App{
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Value: "default", EnvVars: []string{"PHX_NAME"}},
			&cli.IntFlag{Name: "jobs", Value: 4, EnvVars: []string{"PHX_JOBS"}},
			&cli.BoolFlag{Name: "dry-run", Value: true, EnvVars: []string{"PHX_DRY_RUN"}},
			&cli.StringFlag{Name: "set", EnvVars: []string{"PHX_SET"}},
		},
		Action: func(c *cli.Context) error {
			if c.String("name") != "default" || c.Int("jobs") != 4 || !c.Bool("dry-run") || c.String("set") != "set" {
				t.Errorf("name %q, jobs %d, dry-run %t, set %q", c.String("name"), c.Int("jobs"), c.Bool("dry-run"), c.String("set"))
			}
			if _, ok := os.LookupEnv("OTHER"); !ok {
				t.Error("OTHER is unset")
			}
			return nil
		},
	})
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
}
