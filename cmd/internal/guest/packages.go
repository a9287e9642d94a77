package guest

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// RequireFeature has a program installed that only the host can bring, by the
// feature with this name. program is its path.
func (s *Setup) RequireFeature(program, feature string, ask Ask) error {
	if exists(program) {
		return nil
	}
	s.Begins("")
	if err := ask(feature, new(bool)); err != nil {
		return err
	}
	s.Changed("installed %s", program)
	return nil
}

// Whoever else installs packages holds one of these: dpkg and apt fail at once
// then, and apt's own option waits for one of its locks alone.
var packagesLocked = regexp.MustCompile(`Could not get lock|Unable to lock|(frontend|database) lock`)

// Install installs a Debian package unless it is installed completely: an
// interrupted dpkg leaves programs without their configuration. It waits for
// others to end: a fresh system updates itself for a while.
func (s *Setup) Install(ctx context.Context, pkg string) error {
	status, err := Run(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", pkg)
	if err == nil && status == "installed" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, packageLimit, fmt.Errorf("not done after %s", packageLimit))
	defer cancel()
	s.Begins("")
	for {
		err := s.install(ctx, pkg)
		if err == nil {
			s.Changed("installed %s", pkg)
			return nil
		}
		locked := packagesLocked.MatchString(err.Error())
		if locked {
			s.Begins("waiting for other installations")
		}
		if !locked || wait(ctx, time.Second) != nil {
			return fmt.Errorf("install %s: %w", pkg, err)
		}
	}
}

func (s *Setup) install(ctx context.Context, pkg string) error {
	apt := []string{"apt-get", "-q"}
	if s.AptProxy != "" { // for this call alone: nothing of it stays in the container
		apt = append(apt, "-o", "Acquire::http::Proxy="+s.AptProxy)
	}
	for _, argv := range [][]string{
		// Without these, dpkg asks about a file that was edited.
		{"dpkg", "--force-confdef", "--force-confold", "--configure", "-a"},
		slices.Concat(apt, []string{"update", "-o", "APT::Update::Error-Mode=any"}),
		slices.Concat(apt, []string{"install", "-y", "--no-install-recommends", pkg}),
	} {
		if _, err := Run(ctx, argv...); err != nil {
			return err
		}
		s.Begins("") // again, after a wait
	}
	return nil
}
