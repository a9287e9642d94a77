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

// script is a feature or application script whose recorded hash is not the
// one that it would have now.
type script struct {
	name string // under which it is recorded and reported
	hash string
	run  func(context.Context) error
}

// checkScripts checks that all scripts are there, before anything is changed.
func (j *job) checkScripts(context.Context) error {
	var all []error
	look := func(what, path string) {
		if _, err := os.Stat(path); err != nil {
			all = append(all, fmt.Errorf("%s: %w: name the directory of the scripts with --scripts or PHX_SCRIPTS", what, err))
		}
	}
	for _, feature := range j.c.Features {
		look("feature "+feature, pve.FeatureScript(j.scripts, feature))
	}
	if j.runsApplication() {
		look("application script", filepath.Join(j.scripts, j.c.ApplicationScript))
	}
	for _, probe := range j.c.HealthChecks {
		look("health check "+probe.Name, j.healthScript(probe))
	}
	return errors.Join(all...)
}

// runsApplication reports whether phx-lxc runs the container's application
// script: phx-nginx and phx-traefik stand in for two of them.
func (j *job) runsApplication() bool {
	name := j.c.ApplicationScript
	return name != "" && name != config.GatewayScript && name != config.ProxyScript
}

func (j *job) healthScript(probe config.HealthProbe) string {
	return filepath.Join(j.scripts, "health_checks", probe.Script)
}

// dueScripts returns the scripts that have to run, in order.
func (j *job) dueScripts() ([]script, error) {
	var due []script
	need := func(name string, hash string, run func(context.Context) error) {
		if j.record[name] != hash {
			due = append(due, script{name, hash, run})
		}
	}
	common, err := j.featureInputs()
	if err != nil {
		return nil, err
	}
	for _, feature := range j.c.Features {
		text, err := os.ReadFile(pve.FeatureScript(j.scripts, feature))
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
		hash := pve.Hash(inputs...)
		need(feature, hash, func(ctx context.Context) error { return j.runFeature(ctx, feature) })
	}
	if !j.runsApplication() {
		return due, nil
	}
	name := j.c.ApplicationScript
	text, err := os.ReadFile(filepath.Join(j.scripts, name))
	if err != nil {
		return nil, fmt.Errorf("application script: %w", err)
	}
	object, err := j.scriptInput()
	if err != nil {
		return nil, err
	}
	// With the features' inputs: a service has to take a program that they have
	// replaced.
	inputs := append(slices.Clone(common), text, object)
	for _, variable := range j.scriptEnv() {
		inputs = append(inputs, []byte(variable))
	}
	need(name, pve.Hash(inputs...), func(ctx context.Context) error { return j.runApplication(ctx, name, text) })
	return due, nil
}

// scriptInput is what an application script reads of the container's object,
// in a fixed order.
func (j *job) scriptInput() ([]byte, error) { return j.c.ScriptInput() }

// featureInputs are files that feature scripts read beside their own text:
// the library that they share, the pinned releases, and the checksums of the
// programs that were provided.
func (j *job) featureInputs() ([][]byte, error) {
	paths := []string{
		filepath.Join(j.scripts, "phoenix_assets.sh"),
		filepath.Join(j.scripts, "phoenix_assets.tsv"),
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

// runScripts runs the scripts that are due, and records what has succeeded,
// even when a later one fails.
func (j *job) runScripts(ctx context.Context) error {
	applied := pve.Record{}
	for _, s := range j.due {
		start := time.Now()
		j.stage = s.name
		if err := s.run(ctx); err != nil {
			return errors.Join(err, j.note(context.WithoutCancel(ctx), applied))
		}
		applied[s.name] = s.hash
		j.changed(start, "%s", s.name)
	}
	return nil
}

// recordScripts records the scripts that have run, at once.
func (j *job) recordScripts(ctx context.Context) error {
	applied := pve.Record{}
	for _, s := range j.due {
		applied[s.name] = s.hash
	}
	return j.note(ctx, applied)
}

// note adds what has been applied to the record in the container's notes.
func (j *job) note(ctx context.Context, applied pve.Record) error {
	if len(applied) == 0 {
		return nil
	}
	after := maps.Clone(j.record)
	maps.Copy(after, applied)
	return j.writeRecord(ctx, after)
}

// log passes on what a script prints, which may be what the container says.
func (j *job) log(name string) *cmdline.LineWriter {
	return &cmdline.LineWriter{Line: func(line string) {
		for _, known := range []string{"| ", name + ": ", j.id() + ": "} {
			line = strings.TrimPrefix(line, known)
		}
		j.logf("%s: %s", name, cmdline.Quoted(line))
	}}
}

// runFeature runs a feature script on the host.
func (j *job) runFeature(ctx context.Context, feature string) error {
	log := j.log(feature)
	defer log.Close()
	return j.host.RunFeature(ctx, j.scripts, feature, j.ctid, j.c.BootstrapCAURL, log, j.scriptEnv()...)
}

// scriptEnv is what a feature or an application script finds in its
// environment.
func (j *job) scriptEnv() []string {
	name, port := "", ""
	if s := j.c.TraefikService; s != nil {
		name, port = s.Name, strconv.Itoa(s.Port)
	}
	return []string{
		"PHX_CTID=" + j.id(),
		"PHX_DOMAIN=" + j.plan.Domain,
		"PHX_IP=" + address(j.c),
		"PHX_NAME=" + j.c.Name,
		"PHX_SERVICE_NAME=" + name,
		"PHX_SERVICE_PORT=" + port,
	}
}

// runInside puts a script and the container's own part of the configuration
// into a private directory of the container, and runs the script there.
// Its arguments: script name, CTID, the script's size, the configuration's
// size, then the environment.
const runInside = `set -eu
umask 077
dir=$(mktemp -d /run/phx.XXXXXX)
trap 'rm -rf "$dir"' EXIT
trap 'exit 143' TERM
cd "$dir"
name=$1 ctid=$2 script_size=$3 config_size=$4
shift 4
head -c "$script_size" >"$name"
head -c "$config_size" >phoenix_lxc_configs.json
[ "$(wc -c <phoenix_lxc_configs.json)" -eq "$config_size" ] || { echo "the transfer of $name broke off" >&2; exit 1; }
chmod 0700 "$name"
umask 022
env HOME=/root "$@" "./$name" "$ctid" </dev/null`

// runApplication runs an application script inside the container.
func (j *job) runApplication(ctx context.Context, name string, text []byte) error {
	object, err := json.Marshal(map[string]any{"lxc_configs": map[string]any{j.id(): json.RawMessage(j.c.Raw)}})
	if err != nil {
		return err
	}
	argv := []string{"/bin/sh", "-c", runInside, "sh", name, j.id(), strconv.Itoa(len(text)), strconv.Itoa(len(object))}
	log := j.log(name)
	defer log.Close()
	cmd := j.host.Exec(j.ctid, append(argv, j.scriptEnv()...)...)
	cmd.Label = fmt.Sprintf("pct exec %d (%s)", j.ctid, name)
	cmd.Stdin = bytes.NewReader(slices.Concat(text, object))
	cmd.Stdout, cmd.Stderr = log, log
	_, err = j.host.Run(ctx, cmd)
	return err
}

// checkHealth runs the configured health checks until they succeed. What an
// application script has started may have ended since: where the checks fail,
// the script gets another try. A dry run leaves them out: they are commands of
// the configuration's author, and may do anything.
func (j *job) checkHealth(ctx context.Context) error {
	if !j.running || j.dryRun {
		return nil
	}
	err := j.probe(ctx)
	ran := slices.ContainsFunc(j.due, func(s script) bool { return s.name == j.c.ApplicationScript })
	if err == nil || !j.runsApplication() || ran || context.Cause(ctx) != nil {
		return err
	}
	j.logf("%v\nso %s runs again", err, j.c.ApplicationScript)
	start := time.Now()
	text, readErr := os.ReadFile(filepath.Join(j.scripts, j.c.ApplicationScript))
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	if err := j.runApplication(ctx, j.c.ApplicationScript, text); err != nil {
		return err
	}
	j.changed(start, "%s again", j.c.ApplicationScript)
	return j.probe(ctx)
}

// probe runs the health checks.
func (j *job) probe(ctx context.Context) error {
	if check := j.c.HealthCheck; check != nil {
		err := j.retry(ctx, check.Retries, check.Interval, j.host.Exec(j.ctid, strings.Fields(check.Command)...))
		if err != nil {
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
		if err := sleep(ctx, time.Duration(seconds)*time.Second); err != nil {
			return err
		}
	}
}
