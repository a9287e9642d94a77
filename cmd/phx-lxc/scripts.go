package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// checkScripts checks that all scripts are there, before anything is changed.
func (j *job) checkScripts(context.Context) error {
	var all []error
	look := func(what, path string) {
		if _, err := os.Stat(path); err != nil {
			all = append(all, fmt.Errorf("%s: %w: name the directory of the scripts with --scripts or PHX_SCRIPTS",
				what, err))
		}
	}
	for _, feature := range j.c.Features {
		look("feature "+feature, pve.FeatureScript(j.options.scripts, feature))
	}
	if j.runsApplication() {
		look("application script", filepath.Join(j.options.scripts, j.c.ApplicationScript))
	}
	for _, probe := range j.c.HealthChecks {
		look("health check "+probe.Name, j.healthScript(probe))
	}
	return errors.Join(all...)
}

// runsApplication reports whether phx-lxc runs the container's application
// script: phx-nginx and phx-traefik replace two of them.
func (j *job) runsApplication() bool {
	name := j.c.ApplicationScript
	return name != "" && name != config.GatewayScript && name != config.ProxyScript
}

func (j *job) healthScript(probe config.HealthProbe) string {
	return filepath.Join(j.options.scripts, "health_checks", probe.Script)
}

// findDueScripts reads the scripts, in order, and finds those that have to run:
// whose recorded hash is not the one that they have now.
func (j *job) findDueScripts(context.Context) (err error) {
	if j.scripts, err = j.readScripts(); err != nil {
		return err
	}
	for _, s := range j.scripts {
		if j.ct.Record[s.name] != s.hash {
			j.due = append(j.due, s)
		}
	}
	return nil
}

func (j *job) readScripts() ([]script, error) {
	var all []script
	common, err := j.featureInputs()
	if err != nil {
		return nil, err
	}
	for _, feature := range j.c.Features {
		text, err := os.ReadFile(pve.FeatureScript(j.options.scripts, feature))
		if err != nil {
			return nil, fmt.Errorf("feature %s: %w", feature, err)
		}
		inputs := append(slices.Clone(common), text, []byte(j.c.BootstrapCAURL))
		for _, variable := range j.scriptEnv() {
			// Others must not run again, in clones above all, because of an address.
			if name, _, _ := strings.Cut(variable, "="); bytes.Contains(text, []byte(name)) {
				inputs = append(inputs, []byte(variable))
			}
		}
		all = append(all, script{name: feature, feature: true, text: text, hash: pve.Hash(inputs...)})
	}
	if !j.runsApplication() {
		return all, nil
	}
	name := j.c.ApplicationScript
	text, err := os.ReadFile(filepath.Join(j.options.scripts, name))
	if err != nil {
		return nil, fmt.Errorf("application script: %w", err)
	}
	object, err := j.c.ScriptInput()
	if err != nil {
		return nil, err
	}
	// With the features' inputs: a service has to take a program that they have
	// replaced.
	inputs := append(slices.Clone(common), text, object)
	for _, variable := range j.scriptEnv() {
		inputs = append(inputs, []byte(variable))
	}
	return append(all, script{name: name, text: text, hash: pve.Hash(inputs...)}), nil
}

// featureInputs are files that feature scripts read beside their own text:
// the library that they share, the pinned releases, and the checksums of the
// programs that were provided.
func (j *job) featureInputs() ([][]byte, error) {
	paths := []string{
		filepath.Join(j.options.scripts, "phoenix_assets.sh"),
		filepath.Join(j.options.scripts, "phoenix_assets.tsv"),
	}
	if assets := os.Getenv("PHX_ASSETS"); assets != "" {
		paths = append(paths, filepath.Join(assets, "SHA256SUMS"))
	}
	var inputs [][]byte
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		inputs = append(inputs, text)
	}
	return inputs, nil
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
	if s.feature {
		return j.host.RunFeature(ctx, j.options.scripts, s.name, j.c.CTID, j.c.BootstrapCAURL, log, j.scriptEnv()...)
	}
	containers := map[string]any{j.ct.ID(): json.RawMessage(j.c.Raw)}
	object, err := json.Marshal(map[string]any{"lxc_configs": containers})
	if err != nil {
		return err
	}
	return j.host.RunApplication(ctx, s.name, s.text, object, j.c.CTID, log, j.scriptEnv()...)
}

// scriptEnv is what a feature or an application script finds in its
// environment.
func (j *job) scriptEnv() []string {
	name, port := "", ""
	if s := j.c.TraefikService; s != nil {
		name, port = s.Name, strconv.Itoa(s.Port)
	}
	return []string{
		"PHX_CTID=" + j.ct.ID(),
		"PHX_DOMAIN=" + j.plan.Domain,
		"PHX_IP=" + address(j.c),
		"PHX_NAME=" + j.c.Name,
		"PHX_SERVICE_NAME=" + name,
		"PHX_SERVICE_PORT=" + port,
	}
}

// checkHealth runs the configured health checks until they succeed. What an
// application script has started may have ended since: where the checks fail,
// the script gets another try. A dry run leaves them out: they are commands of
// the configuration's author, and may do anything.
func (j *job) checkHealth(ctx context.Context) error {
	if !j.ct.Running || j.options.dryRun {
		return nil
	}
	isApplication := func(s script) bool { return !s.feature }
	err := j.probe(ctx)
	i := slices.IndexFunc(j.scripts, isApplication)
	ran := slices.ContainsFunc(j.due, isApplication)
	if err == nil || i < 0 || ran || context.Cause(ctx) != nil {
		return err
	}
	s := j.scripts[i]
	j.logf("%v\nso %s runs again", err, s.name)
	start := time.Now()
	if err := j.runScript(ctx, s); err != nil {
		return err
	}
	j.changed(start, "%s again", s.name)
	return j.probe(ctx)
}

// probe runs the health checks.
func (j *job) probe(ctx context.Context) error {
	if check := j.c.HealthCheck; check != nil {
		command := j.host.Exec(j.c.CTID, strings.Fields(check.Command)...)
		if err := j.retry(ctx, check.Retries, check.Interval, command); err != nil {
			return err
		}
	}
	for _, probe := range j.c.HealthChecks {
		argv := append([]string{j.healthScript(probe)}, probe.Args...)
		if err := j.retry(ctx, 3, 5, pve.Command{Argv: argv, Guest: true}); err != nil {
			return fmt.Errorf("%s: %w", probe.Name, err)
		}
	}
	return nil
}

// healthTimeout is how long one try of a health check may take.
const healthTimeout = time.Minute

func (j *job) retry(ctx context.Context, tries, seconds int, command pve.Command) error {
	command.Timeout = healthTimeout
	for try := 1; ; try++ {
		_, err := j.host.Run(ctx, command)
		if err == nil {
			return nil
		}
		if try >= tries {
			return fmt.Errorf("not healthy after %d tries: %w", try, err)
		}
		if err := pve.Sleep(ctx, time.Duration(seconds)*time.Second); err != nil {
			return err
		}
	}
}
