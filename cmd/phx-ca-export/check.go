package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// The action check: looks at the root's file, and from inside the containers at
// clocks and connections. Nothing is changed.

// point reports what a look has found.
func (e *exporter) point(ctid int, name, result, remedy, format string, args ...any) {
	p := event.CheckPoint{
		CTID: ctid, Program: cmdline.Name(), Point: name, Result: result, Text: fmt.Sprintf(format, args...),
		Remedy: remedy,
	}
	label := ""
	if ctid != 0 {
		label = strconv.Itoa(ctid)
	}
	cmdline.Logf("%s", p.Message(label))
	if result == event.CheckFailed {
		e.mu.Lock()
		e.failed = true
		e.mu.Unlock()
	}
	e.emit(p)
}

// check takes all looks at a plan.
func (e *exporter) check(ctx context.Context, p *config.Plan) {
	if p.CA == nil {
		return
	}
	e.checkRoot(p.CA.CTID, time.Now())
	e.checkInside(ctx, p)
}

// soon is how long before its end a root is to be replaced: clients have to get the
// next one in time.
const soon = 60 * 24 * time.Hour

// checkRoot compares the exported file with what is pinned.
func (e *exporter) checkRoot(ctid int, now time.Time) {
	const name = "root certificate"
	run := fmt.Sprintf("have it written again, with: phoenix %d", ctid)
	roots, err := cahost.PinnedRoots(e.host)
	if err != nil {
		e.point(0, name, event.CheckFailed, "see what is wrong with that file, or remove pin.json beside it to pin "+
			"the CA's root again", "%v", err)
		return
	}
	have, fileErr := cert.ReadFile(e.path)
	missing := errors.Is(fileErr, fs.ErrNotExist)
	switch {
	case roots == nil && missing:
		e.point(0, name, event.CheckOK, "", "none is pinned yet: the first run does that")
		return
	case roots == nil:
		e.point(0, name, event.CheckWarning, "see what it is: a run replaces it by the root of the CA",
			"none is pinned yet, and %s is there", e.path)
		return
	}
	sum := cert.Fingerprint(roots[0])
	switch {
	case missing:
		e.point(0, name, event.CheckWarning, run, "%s is not there", e.path)
	case fileErr != nil:
		e.point(0, name, event.CheckWarning, run, "%v", fileErr)
	case !bytes.Equal(have, cert.Encode(roots...)):
		e.point(0, name, event.CheckWarning, run, "%s does not have what is pinned: SHA-256 %s", e.path, sum)
	default:
		e.point(0, name, event.CheckOK, "", "%s is as pinned: SHA-256 %s", e.path, sum)
	}
	e.checkLife(roots[0], now)
	e.checkKey(sum)
}

// checkKey looks whether the host can use the key of its root, which a run that
// changes nothing does not need.
func (e *exporter) checkKey(sum string) {
	const name = "key of the root"
	switch has, err := cahost.CheckKey(e.host, sum); {
	case err != nil:
		e.point(0, name, event.CheckFailed, "bring back its files from a backup: without the key, the CA gets no "+
			"other intermediate", "%v", err)
	case has:
		e.point(0, name, event.CheckOK, "", "it is there, and fits")
	}
}

// checkLife compares the life of the root with the clock of the host.
func (e *exporter) checkLife(root *x509.Certificate, now time.Time) {
	const name, rotate = "life of the root", "rotate the root: PHX_ROTATE_ROOT=trust phoenix"
	end := root.NotAfter.Format("2006-01-02")
	switch {
	case now.Before(root.NotBefore):
		e.point(0, name, event.CheckFailed, "set the clock of this host: see it with: timedatectl",
			"it begins on %s, and this host has %s", root.NotBefore.UTC().Format(time.RFC3339),
			now.UTC().Format(time.RFC3339))
	case now.After(root.NotAfter):
		e.point(0, name, event.CheckFailed, rotate, "it has expired on %s", end)
	case now.After(root.NotAfter.Add(-soon)):
		e.point(0, name, event.CheckWarning, rotate, "it expires on %s", end)
	default:
		e.point(0, name, event.CheckOK, "", "until %s", end)
	}
}

// A place is a container of the plan from which connections begin.
type place struct {
	name string // in messages
	ctid int
}

// checkInside looks from inside the containers that run.
func (e *exporter) checkInside(ctx context.Context, p *config.Plan) {
	places := []place{{"CA", p.CA.CTID}}
	if p.Gateway != nil {
		places = append(places, place{"gateway", p.Gateway.CTID})
	}
	if p.Proxy != nil {
		places = append(places, place{"proxy", p.Proxy.CTID})
	}
	states := map[int]string{}
	for _, at := range places {
		if _, err := e.host.ReadConf(at.ctid); err != nil {
			continue // pct need not be asked
		}
		var err error
		if states, err = e.host.List(ctx); err != nil {
			e.point(0, "clock and ports", event.CheckLeftOut, "", "it is not known which containers run: %v", err)
			return
		}
		break
	}
	var down []string
	for _, at := range places {
		if states[at.ctid] != "running" {
			down = append(down, fmt.Sprintf("the %s (%d)", at.name, at.ctid))
		}
	}
	if len(down) > 0 {
		e.point(0, "clock and ports", event.CheckLeftOut, "", "cannot be seen where these do not run: %s",
			strings.Join(down, ", "))
	}
	type seen struct {
		at     place
		report *report
		err    error
	}
	reports := make(chan seen)
	waited := 0
	for _, at := range places {
		if states[at.ctid] == "running" {
			waited++
			go func() {
				r, err := lookFrom(ctx, e.host, at.ctid, flowsFrom(p, at.ctid, states))
				reports <- seen{at, r, err}
			}()
		}
	}
	found := map[int]seen{}
	for range waited {
		s := <-reports
		found[s.at.ctid] = s
	}
	for _, at := range places {
		s, looked := found[at.ctid]
		switch {
		case !looked:
		case s.err != nil:
			e.point(at.ctid, "inside the "+at.name, event.CheckLeftOut, "", "%v", s.err)
		default:
			if at.ctid == p.CA.CTID {
				e.checkClock(s.at, s.report)
			}
			e.checkFlows(s.at, s.report)
		}
	}
}

// flowsFrom returns the connections that begin in a container, and end outside of
// phx or in one that runs.
func flowsFrom(p *config.Plan, ctid int, states map[int]string) []ca.Flow {
	var all []ca.Flow
	for _, f := range ca.Flows(p) {
		if f.FromCTID == ctid && (f.ToCTID == 0 || states[f.ToCTID] == "running") {
			all = append(all, f)
		}
	}
	return all
}

// report is what was seen from inside a container.
type report struct {
	before, after time.Time // on the host
	clock         time.Time // in the container
	flows         []ca.Flow
	results       []string // of these: open, refused, unreachable or no answer
}

// inside tells the time, and tries connections to ADDRESS PORT…. All of them at once:
// there may be many services. What bash says of a connection is English, as the
// environment has no language.
const inside = `date +%s
n=0
while [ $# -gt 0 ]; do
	(
		said=$(timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>&1 </dev/null)
		status=$?
		case $status:$said in
		0:*) said=open ;;
		124:*) said="no answer" ;;
		*refused*) said=refused ;;
		*) said=unreachable ;;
		esac
		echo "$n $said"
	) &
	n=$((n + 1))
	shift 2
done
wait`

// insideTimeout is how long all of it may take.
const insideTimeout = 20 * time.Second

// lookFrom looks from inside a container.
func lookFrom(ctx context.Context, host *pve.Host, ctid int, flows []ca.Flow) (*report, error) {
	argv := []string{"/bin/sh", "-c", inside, "sh"}
	for _, f := range flows {
		argv = append(argv, f.Dest.String(), strconv.Itoa(f.Port))
	}
	c := host.Exec(ctid, argv...)
	c.Label = fmt.Sprintf("pct exec %d (phx-ca-export)", ctid)
	c.Timeout, c.MaxStdout, c.Reads = insideTimeout, 64<<10, true
	r := &report{before: time.Now(), flows: flows, results: make([]string, len(flows))}
	out, err := host.Run(ctx, c)
	r.after = time.Now()
	if err == nil {
		err = r.parse(string(out))
	}
	return r, err
}

// parse reads what [inside] has printed, which a container may have forged.
func (r *report) parse(out string) error {
	first, rest, _ := strings.Cut(out, "\n")
	seconds, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return fmt.Errorf("the container does not tell the time:\n%s", cmdline.Quoted(first))
	}
	r.clock = time.Unix(seconds, 0)
	for line := range strings.Lines(rest) {
		number, result, _ := strings.Cut(strings.TrimSpace(line), " ")
		i, err := strconv.Atoi(number)
		switch result {
		case "open", "refused", "unreachable", "no answer":
		default:
			err = errors.New("no result")
		}
		if err != nil || i < 0 || i >= len(r.results) {
			return fmt.Errorf("the container tells something else than asked:\n%s", cmdline.Quoted(line))
		}
		r.results[i] = result
	}
	return nil
}

// inStep is how far the clocks of host and CA may differ: the CA dates its
// certificates back by a minute.
const inStep = 30 * time.Second

// checkClock compares the clock of the CA with that of the host.
func (e *exporter) checkClock(at place, r *report) {
	const name = "clock of the CA"
	difference := time.Duration(0)
	switch {
	case r.clock.Before(r.before.Truncate(time.Second)):
		difference = r.clock.Sub(r.before.Truncate(time.Second))
	case r.clock.After(r.after):
		difference = r.clock.Sub(r.after)
	}
	if difference.Abs() > inStep {
		e.point(at.ctid, name, event.CheckFailed, "see what sets them: timedatectl; and in the container: "+
			remedy.Quote([]string{"pct", "exec", strconv.Itoa(at.ctid), "--", "timedatectl"}),
			"it differs from that of this host by %s, so that certificates are not valid yet, or not any more",
			difference.Round(time.Second))
		return
	}
	e.point(at.ctid, name, event.CheckOK, "", "in step with that of this host")
}

// checkFlows reports which connections from a container could be made.
func (e *exporter) checkFlows(at place, r *report) {
	var open []string
	for i, f := range r.flows {
		target := fmt.Sprintf("the %s at %s", f.To, net.JoinHostPort(f.Dest.String(), strconv.Itoa(f.Port)))
		name := fmt.Sprintf("%s to %s", at.name, f.To)
		ours := !strings.HasPrefix(f.To, "service ") // without the others a run goes on
		switch result := r.results[i]; result {
		case "open":
			open = append(open, target)
		case "refused":
			remedy := fmt.Sprintf("have it set up by a run: phoenix %d", f.ToCTID)
			if f.ToCTID == 0 {
				remedy = "start the service there"
			} else if !ours {
				remedy = fmt.Sprintf("start it; what phx has set up there, a run starts: phoenix %d; "+
					"what listens there: pct exec %[1]d -- ss -ltn", f.ToCTID)
			}
			e.point(at.ctid, name, event.CheckWarning, remedy, "%s can be reached, and nothing listens there", target)
		case "":
			e.point(at.ctid, name, event.CheckLeftOut, "", "%s: the container has not told", target)
		default:
			remedy := fmt.Sprintf("see the way there: pct exec %d -- ip route get %s; and what the firewall rules of "+
				"both sides let through", at.ctid, f.Dest)
			if f.ToCTID != 0 {
				remedy = fmt.Sprintf("see what a run would change, rules of the firewalls among it: phoenix --dry-run "+
					"%d %d; and the way there: pct exec %[1]d -- ip route get %[3]s", at.ctid, f.ToCTID, f.Dest)
			}
			verdict := event.CheckWarning
			if ours {
				verdict = event.CheckFailed
			}
			e.point(at.ctid, name, verdict, remedy, "%s cannot be reached: %s", target, result)
		}
	}
	if len(open) > 0 {
		e.point(at.ctid, "connections of the "+at.name, event.CheckOK, "", "open to %s", strings.Join(open, ", "))
	}
}
