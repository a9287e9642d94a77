package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

// checkScripts checks, before anything is changed, that all scripts are there,
// and what those of before need.
func (j *job) checkScripts(context.Context) error {
	var all []error
	j.lookForScripts(func(what string, _ *scripts.Script, err error) {
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", what, err))
		}
	})
	return errors.Join(all...)
}

// lookForScripts tells found of each script that is configured, and why it cannot
// be run, nil where it can; s is nil for one that is not there.
func (j *job) lookForScripts(found func(what string, s *scripts.Script, err error)) {
	check := func(what string, s *scripts.Script, err error, needs func(*scripts.Script) *scripts.Needs) {
		if err == nil && s.Former {
			err = j.checkFormer(s, needs)
		}
		found(what, s, err)
	}
	onHost := func(what string, s *scripts.Script, err error) {
		if err == nil {
			err = s.Executable()
		}
		check(what, s, err, (*scripts.Script).OnHost)
	}
	for _, feature := range j.c.Features {
		s, err := j.options.scripts.Feature(feature)
		onHost("feature "+feature, s, err)
	}
	if j.runsApplication() {
		s, err := j.options.scripts.Application(j.c.ApplicationScript)
		check("application script", s, err, (*scripts.Script).InContainer)
	}
	for _, probe := range j.c.HealthChecks {
		s, err := j.options.scripts.Health(probe.Script)
		onHost("health check "+probe.Name, s, err)
	}
}

// checkFormer checks that what a script of before reads is where it looks for
// it.
func (j *job) checkFormer(s *scripts.Script, needs func(*scripts.Script) *scripts.Needs) error {
	var all []error
	need := needs(s)
	for _, path := range need.Missing {
		all = append(all, remedy.Errorf("put it there, from the installation that the script comes from",
			"%s sources %s, which is not there", s.Path, path))
	}
	if _, err := j.config(); err != nil {
		all = append(all, fmt.Errorf("%s reads the configuration: %w", s.Path, err))
	} else if path := j.missingConfig(need); path != "" {
		link := remedy.Quote([]string{"ln", "-s", j.configPath(), path})
		all = append(all, remedy.Errorf("make it a link, with: "+link,
			"%s reads the configuration as %s, which is not there", s.Path, path))
	}
	return errors.Join(all...)
}

// configPath is the absolute path of the configuration.
func (j *job) configPath() string {
	path, err := filepath.Abs(j.plan.Config)
	if err != nil {
		return j.plan.Config
	}
	return path
}

// missingConfig returns the place where a script of before looks for the
// configuration on the host, if nothing is there; "" otherwise.
func (j *job) missingConfig(need *scripts.Needs) string {
	if len(need.Configs) == 0 || !need.Reads("LXC_CONFIG_FILE", "phoenix_lxc_configs.json") {
		return ""
	}
	for _, path := range need.Configs {
		if _, err := os.Stat(path); err == nil {
			return ""
		}
	}
	return need.Configs[len(need.Configs)-1]
}

// findDueScripts reads the scripts, in order, and finds those that have to run:
// whose recorded hash is not the one that they have now.
//
// On a container that phx has never worked on, a script may have run before,
// and may not stand a second time: it is recorded as it is, and not run. Those
// that lie beside phx's own do: a second run changes nothing.
//
// What is recorded is written with the first change of the record: a run that
// ends after that must not leave a container that is known, with scripts that
// are not.
func (j *job) findDueScripts(context.Context) (err error) {
	if j.scripts, err = j.readScripts(); err != nil {
		return err
	}
	adopt := !j.created && (j.ct.Unknown() || j.options.adopt.has(j.c.CTID))
	rerun := j.options.rerun.has(j.c.CTID) && !j.complete
	for _, s := range j.scripts {
		recorded := j.ct.Record[s.name]
		switch {
		case rerun:
			j.due = append(j.due, s)
		case recorded == s.hash:
			continue
		case recorded != "" && recorded == s.formerHash:
			j.ct.Record[s.name] = s.hash
			continue
		case adopt && j.complete: // a template that is there: nothing is run in it, and nothing written
			continue
		case adopt && !s.Own:
			j.ct.Record[s.name] = s.hash
			j.adopted = append(j.adopted, s.name)
		default:
			j.due = append(j.due, s)
		}
		if s.Passed != "" {
			j.warnf("%s: %s is phx's own, and %s, which is of before, is not used", s.name, s.Path, s.Passed)
		}
	}
	if !j.options.dryRun && !j.complete {
		for _, s := range j.due {
			if s.feature {
				j.fetch(s.Script)
			}
		}
	}
	if len(j.adopted) > 0 {
		what := strings.Join(j.adopted, ", ")
		j.warnf("not run, because the container was there before: %s: what is there is taken for their work; "+
			"to run them, use --rerun %d", what, j.c.CTID)
		j.changes = append(j.changes, "adopted: "+what)
	}
	return nil
}

// readyForScripts makes sure, before scripts run, that nothing else is at work on
// the container, and that it still runs then.
func (j *job) readyForScripts(ctx context.Context) error {
	if len(j.due) == 0 {
		return nil
	}
	if err := j.ct.AwaitUnlocked(ctx); err != nil {
		return err
	}
	return j.start(ctx)
}

// runDueScripts runs the scripts that are due. When one fails, those before it
// are recorded.
func (j *job) runDueScripts(ctx context.Context) error {
	for i, s := range j.due {
		start := time.Now()
		j.stage = s.name
		if err := j.runScript(ctx, s); err != nil {
			return errors.Join(err, j.recordApplied(context.WithoutCancel(ctx), j.due[:i]))
		}
		j.changed(start, "%s", s.name)
	}
	return nil
}

// recordScripts records the scripts that have run, at once.
func (j *job) recordScripts(ctx context.Context) error { return j.recordApplied(ctx, j.due) }

// recordApplied adds scripts to the record in the container's notes.
func (j *job) recordApplied(ctx context.Context, scripts []script) error {
	if len(scripts) == 0 {
		return nil
	}
	after := maps.Clone(j.ct.Record)
	for _, s := range scripts {
		after[s.name] = s.hash
	}
	return j.ct.WriteRecord(ctx, after)
}

// runScript runs a feature script on the host, or an application script inside
// the container. What it prints, which may be what the container says, is
// logged.
func (j *job) runScript(ctx context.Context, s script) error {
	log := &cmdline.LineWriter{Line: func(line string) {
		for _, known := range []string{"| ", s.name + ": ", j.ct.ID() + ": "} {
			line = strings.TrimPrefix(line, known)
		}
		j.logf("%s: %s", s.name, cmdline.Quoted(line))
	}}
	defer log.Close()
	env, err := j.runEnv(&s)
	if err != nil {
		return err
	}
	if !s.feature {
		application, err := j.application(s, env)
		if err != nil {
			return err
		}
		return j.host.RunApplication(ctx, j.c.CTID, *application, log)
	}
	argv := []string{s.Path, j.ct.ID()}
	if s.Former { // which are always given both
		j.warnOfOtherConfig(s)
		argv = append(argv, j.c.BootstrapCAURL)
	} else if j.c.BootstrapCAURL != "" {
		argv = append(argv, j.c.BootstrapCAURL)
	}
	// It is not among what a script depends on: packages are the same by any way.
	return j.host.RunFeature(ctx, log, append(env, "PHX_APT_PROXY="+j.options.aptProxy), argv...)
}

// warnOfOtherConfig says when a script of before reads another configuration on
// the host than this run.
func (j *job) warnOfOtherConfig(s script) {
	need := s.OnHost()
	if len(need.Configs) == 0 || !need.Reads("LXC_CONFIG_FILE", "phoenix_lxc_configs.json") {
		return
	}
	ours, err := os.Stat(j.configPath())
	for _, path := range need.Configs {
		if theirs, statErr := os.Stat(path); err == nil && statErr == nil && os.SameFile(ours, theirs) {
			return
		}
	}
	j.warnf("%s: it reads %s, not %s", s.name, strings.Join(need.Configs, " or "), j.configPath())
}

// application returns an application script with what it finds beside it: the
// container's own object, or for a script of before all that the scripts before
// phx had put there.
func (j *job) application(s script, env []string) (*pve.Application, error) {
	own := pve.File{Name: s.name, Text: s.Text}
	if !s.Former {
		containers := map[string]any{j.ct.ID(): json.RawMessage(j.c.Raw)}
		object, err := json.Marshal(map[string]any{"lxc_configs": containers})
		files := []pve.File{own, {Name: containersFile, Text: object}}
		return &pve.Application{Files: files, Env: env}, err
	}
	need := s.InContainer()
	file, err := j.config()
	if err != nil {
		return nil, err
	}
	a := &pve.Application{Dir: scripts.RunDir, Env: env}
	a.Files = []pve.File{own, {Name: containersFile, Text: file.Text}}
	for _, f := range need.Files {
		a.Files = append(a.Files, pve.File(f))
	}
	// These hold what is not the container's business, such as passwords.
	for name, variable := range map[string]string{
		"phoenix_vm_configs.json": "VM_CONFIG_FILE", "phoenix_hypervisor_config.json": "HYPERVISOR_CONFIG_FILE",
	} {
		if !need.Reads(name, variable) {
			continue
		}
		path := filepath.Join(filepath.Dir(j.configPath()), name)
		text, err := atomicfile.Read(path, config.MaxFile)
		if err != nil {
			j.warnf("%s: it reads %s, and goes without: %v", s.name, name, err)
			continue
		}
		a.Files = append(a.Files, pve.File{Name: name, Text: text})
	}
	slices.SortFunc(a.Files[1:], func(a, b pve.File) int { return strings.Compare(a.Name, b.Name) })
	return a, nil
}

// containersFile is the name of the file of containers, as scripts read it.
const containersFile = "phoenix_lxc_configs.json"
