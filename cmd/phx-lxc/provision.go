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
	"thinkheads.ai/phx/cmd/internal/pct"
)

// job is the work on one container.
type job struct {
	*round
	ctid int
	c    *config.Container

	stage    string
	conf     *pct.Conf // as last read
	running  bool
	pending  []script // feature and application scripts that have to run
	recorded bool     // conf's record is what has been applied
	record   pct.Record
	changes  []string
}

// script is a feature or application script whose recorded hash is not the
// one that it would have now.
type script struct {
	name string // under which it is recorded and reported
	hash string
	run  func(context.Context) error
}

// converge brings the container into the desired state, stage by stage. After
// an error, j.stage is the stage that failed.
func (j *job) converge() error {
	for _, stage := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"define", j.define},
		{"configure", j.configure},
		{"disk", j.growDisk},
		{"scripts", j.findScripts},
		{"start", j.start},
		{"snapshot", j.preConfigured},
		{"features", j.runScripts},
		{"health check", j.checkHealth},
		{"record", j.writeRecord},
		{"stop", j.stopTemplate},
		{"snapshot", j.finalSnapshots},
	} {
		j.stage = stage.name
		if err := context.Cause(j.ctx); err != nil {
			return err
		}
		if err := stage.run(j.ctx); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) logf(format string, args ...any) {
	cmdline.Logf("%d %s: %s", j.ctid, j.c.Name, fmt.Sprintf(format, args...))
}

// changed reports something that this run has changed.
func (j *job) changed(since time.Time, format string, args ...any) {
	change := fmt.Sprintf(format, args...)
	j.changes = append(j.changes, change)
	j.logf("%s (%s)", change, cmdline.Elapsed(since))
}

func (j *job) pct(ctx context.Context, args ...string) error {
	_, err := j.host.Pct(ctx, args...)
	return err
}

func (j *job) reread() error {
	conf, err := j.host.ReadConf(j.ctid)
	if err != nil {
		return err
	}
	j.conf = conf
	return nil
}

// define makes sure that the container exists.
func (j *job) define(ctx context.Context) error {
	states, err := j.states()
	if err != nil {
		return err
	}
	j.running = states[j.ctid] == "running"
	err = j.reread()
	switch {
	case errors.Is(err, fs.ErrNotExist) && j.c.CloneFrom != 0:
		return j.clone(ctx)
	case errors.Is(err, fs.ErrNotExist):
		return j.create(ctx)
	case err != nil:
		return err
	}
	if err := j.awaitUnlocked(ctx, j.ctid); err != nil {
		return err
	}
	return j.reread()
}

// awaitUnlocked waits until Proxmox has no lock on a container: a command of
// somebody else, or of a run that was killed, may still be at work.
func (j *job) awaitUnlocked(ctx context.Context, ctid int) error {
	deadline := time.Now().Add(j.lockWait)
	for said := false; ; said = true {
		conf, err := j.host.ReadConf(ctid)
		if err != nil {
			return err
		}
		lock := conf.Values["lock"]
		if lock == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("container %d is locked (%s): wait for the task that holds the lock, or, if there is none any more, run: pct unlock %d", ctid, lock, ctid)
		}
		if !said {
			j.logf("waiting for container %d, which is locked (%s)", ctid, lock)
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// create makes the container from a template, with all its settings.
func (j *job) create(ctx context.Context) error {
	start := time.Now()
	args := []string{
		"create", strconv.Itoa(j.ctid), j.c.Template,
		"--rootfs", fmt.Sprintf("%s:%d", j.c.StoragePool, j.c.StorageSizeGB),
		"--unprivileged", boolean(j.c.Unprivileged == nil || *j.c.Unprivileged),
	}
	for _, s := range settings(j.c, &pct.Conf{}) {
		args = append(args, "--"+s.option, s.value)
	}
	if err := j.pct(ctx, args...); err != nil {
		return err
	}
	j.running = false
	j.changed(start, "created from %s", j.c.Template)
	return j.reread()
}

// clone makes the container from another one, or from its snapshot.
func (j *job) clone(ctx context.Context) error {
	source := j.c.CloneFrom
	lock := j.source(source)
	lock.Lock()
	defer lock.Unlock()

	start := time.Now()
	conf, err := j.host.ReadConf(source)
	if err != nil {
		return fmt.Errorf("clone source %d: %w", source, err)
	}
	if err := j.awaitUnlocked(ctx, source); err != nil {
		return fmt.Errorf("clone source %d: %w", source, err)
	}
	if have, differs := j.wrongPrivilege(conf); differs {
		return fmt.Errorf("clone source %d has unprivileged %s, and %d wants %s: a clone keeps its source's value, which is fixed when a container is created; clone from another container or create this one from a template",
			source, boolean(have), j.ctid, boolean(!have))
	}
	args := []string{"clone", strconv.Itoa(source), strconv.Itoa(j.ctid), "--hostname", j.c.Name, "--storage", j.c.StoragePool}
	from := strconv.Itoa(source)
	if n := j.node(source); n.container != nil && n.container.TemplateSnapshot != "" {
		snapshot := n.container.TemplateSnapshot
		if !slices.Contains(conf.Snapshots, snapshot) {
			return fmt.Errorf("clone source %d has no snapshot %s: run: pct listsnapshot %d", source, snapshot, source)
		}
		args = append(args, "--snapname", snapshot)
		from += "@" + snapshot
	}
	// The boolean stands last: pct takes a word after it for its value.
	if err := j.pct(ctx, append(args, "--full", "1")...); err != nil {
		return err
	}
	j.running = false
	j.changed(start, "cloned from %s", from)
	return j.reread()
}

// configure applies every setting that differs, in one call.
func (j *job) configure(ctx context.Context) error {
	start := time.Now()
	if have, differs := j.wrongPrivilege(j.conf); differs {
		return fmt.Errorf("unprivileged is %s and should be %s: that is fixed when a container is created; nothing was changed, and nothing will be destroyed for it: make a new container, or correct the configuration",
			boolean(have), boolean(!have))
	}
	differing := settings(j.c, j.conf)
	if len(differing) == 0 {
		return nil
	}
	args := []string{"set", strconv.Itoa(j.ctid)}
	for _, s := range differing {
		args = append(args, "--"+s.option, s.value)
	}
	if err := j.pct(ctx, args...); err != nil {
		return err
	}
	if err := j.reread(); err != nil {
		return err
	}
	// pct's exit status is no proof: what counts is what was stored.
	for _, s := range settings(j.c, j.conf) {
		return fmt.Errorf("pct set %d ended well, but %s is %q and should be %q", j.ctid, s.option, j.conf.Value(s.option), s.value)
	}
	for _, s := range differing {
		j.changed(start, "%s %s", s.option, s.value)
	}
	return nil
}

// wrongPrivilege returns whether a container is unprivileged, and whether
// that is not what the configuration asks for.
func (j *job) wrongPrivilege(conf *pct.Conf) (have, differs bool) {
	have = pct.ParseBool(conf.Values["unprivileged"])
	return have, j.c.Unprivileged != nil && *j.c.Unprivileged != have
}

// growDisk grows the root disk to the configured size. It never shrinks one.
func (j *job) growDisk(ctx context.Context) error {
	size := pct.ParseProperties(j.conf.Values["rootfs"]).Get("size")
	if size == "" {
		return nil // a directory or a device: it has no size that could be set
	}
	have, err := pct.Gigabytes(size)
	if err != nil {
		return fmt.Errorf("rootfs: %w", err)
	}
	want := j.c.StorageSizeGB
	switch {
	case have == want:
		return nil
	case have > want:
		return fmt.Errorf("rootfs has %d GiB and storage_size_gb is %d: Proxmox cannot shrink a disk; set storage_size_gb to %d", have, want, have)
	}
	start := time.Now()
	// pct resize exits 0 even when it failed: the size is read again.
	if err := j.pct(ctx, "resize", strconv.Itoa(j.ctid), "rootfs", fmt.Sprintf("%dG", want)); err != nil {
		return err
	}
	if err := j.reread(); err != nil {
		return err
	}
	if size := pct.ParseProperties(j.conf.Values["rootfs"]).Get("size"); size != fmt.Sprintf("%dG", want) {
		return fmt.Errorf("pct resize %d rootfs %dG ended well, but the size is still %s: see Proxmox's task log", j.ctid, want, size)
	}
	j.changed(start, "rootfs %dG", want)
	return nil
}

// findScripts determines which feature and application scripts have to run.
func (j *job) findScripts(context.Context) error {
	j.record = j.conf.Record()
	j.recorded = true
	common, err := j.featureInputs()
	if err != nil {
		return err
	}
	for _, feature := range j.c.Features {
		text, err := os.ReadFile(pct.FeatureScript(j.scripts, feature))
		if err != nil {
			return fmt.Errorf("feature %s: %w: name the directory of the feature scripts with --scripts or PHX_SCRIPTS", feature, err)
		}
		j.need(script{
			name: feature,
			hash: pct.Hash(append(common, text, []byte(j.c.BootstrapCAURL))...),
			run:  func(ctx context.Context) error { return j.runFeature(ctx, feature) },
		})
	}
	name := j.c.ApplicationScript
	if name == "" || name == config.GatewayScript || name == config.ProxyScript {
		return nil // phx-nginx and phx-traefik stand in for these two
	}
	text, err := os.ReadFile(filepath.Join(j.scripts, name))
	if err != nil {
		return fmt.Errorf("application script: %w: name the directory of the scripts with --scripts or PHX_SCRIPTS", err)
	}
	service, err := json.Marshal(j.c.TraefikService)
	if err != nil {
		return err
	}
	j.need(script{
		name: name,
		hash: pct.Hash(append([][]byte{text, service}, stringsToBytes(j.applicationEnv())...)...),
		run:  func(ctx context.Context) error { return j.runApplication(ctx, name, text) },
	})
	return nil
}

func (j *job) need(s script) {
	if j.record[s.name] != s.hash {
		j.pending = append(j.pending, s)
	}
}

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

// isTemplate tells whether the container is there to be cloned from, not to
// run.
func (j *job) isTemplate() bool {
	return j.c.TemplateSnapshot != "" && (j.c.StartAtBoot == nil || !*j.c.StartAtBoot)
}

func (j *job) start(ctx context.Context) error {
	if j.running || (j.isTemplate() && len(j.pending) == 0) {
		return nil
	}
	start := time.Now()
	if err := j.pct(ctx, "start", strconv.Itoa(j.ctid)); err != nil {
		return err
	}
	j.running = true
	j.changed(start, "started")
	return j.reread() // pending values have been applied
}

// runScripts runs the scripts that are due. What has succeeded is recorded
// even when a later one fails.
func (j *job) runScripts(ctx context.Context) error {
	for _, s := range j.pending {
		start := time.Now()
		j.stage = s.name
		if err := s.run(ctx); err != nil {
			return errors.Join(err, j.writeRecord(context.WithoutCancel(ctx)))
		}
		j.record[s.name] = s.hash
		j.recorded = false
		j.changed(start, "%s", s.name)
	}
	return nil
}

// runFeature runs a feature script on the host.
func (j *job) runFeature(ctx context.Context, feature string) error {
	log := j.log(feature)
	defer log.Close()
	return j.host.RunFeature(ctx, j.scripts, feature, j.ctid, j.c.BootstrapCAURL, log)
}

// log passes on what a script prints.
func (j *job) log(name string) *cmdline.LineWriter {
	return &cmdline.LineWriter{Line: func(line string) {
		j.logf("%s: %s", name, strings.TrimPrefix(line, name+": "))
	}}
}

// applicationEnv is what an application script finds in its environment.
func (j *job) applicationEnv() []string {
	return []string{
		"PHX_CTID=" + strconv.Itoa(j.ctid),
		"PHX_DOMAIN=" + j.domain,
		"PHX_IP=" + address(j.c),
		"PHX_NAME=" + j.c.Name,
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
env HOME=/root "$@" "./$name" "$ctid" </dev/null`

// runApplication runs an application script inside the container.
func (j *job) runApplication(ctx context.Context, name string, text []byte) error {
	ctid := strconv.Itoa(j.ctid)
	object, err := json.Marshal(map[string]any{"lxc_configs": map[string]any{ctid: json.RawMessage(j.c.Raw)}})
	if err != nil {
		return err
	}
	argv := []string{"/bin/sh", "-c", runInside, "sh", name, ctid, strconv.Itoa(len(text)), strconv.Itoa(len(object))}
	log := j.log(name)
	defer log.Close()
	cmd := j.host.Exec(j.ctid, append(argv, j.applicationEnv()...)...)
	cmd.Label = fmt.Sprintf("pct exec %d (%s)", j.ctid, name)
	cmd.Stdin = bytes.NewReader(slices.Concat(text, object))
	cmd.Stdout, cmd.Stderr = log, log
	_, err = j.host.Run(ctx, cmd)
	return err
}

// checkHealth runs the configured health check until it succeeds.
func (j *job) checkHealth(ctx context.Context) error {
	check := j.c.HealthCheck
	if check == nil || !j.running {
		return nil
	}
	for try := 1; ; try++ {
		_, err := j.host.Run(ctx, j.host.Exec(j.ctid, strings.Fields(check.Command)...))
		if err == nil {
			return nil
		}
		if try >= check.Retries {
			return fmt.Errorf("not healthy after %d tries: %w", try, err)
		}
		if err := sleep(ctx, time.Duration(check.Interval)*time.Second); err != nil {
			return err
		}
	}
}

// writeRecord keeps in the container's description what has been applied.
func (j *job) writeRecord(ctx context.Context) error {
	if j.recorded {
		return nil
	}
	// The description may have been edited since it was read.
	if err := j.reread(); err != nil {
		return err
	}
	record := j.conf.Record()
	maps.Copy(record, j.record)
	if err := j.pct(ctx, "set", strconv.Itoa(j.ctid), "--description", j.conf.Describe(record)); err != nil {
		return err
	}
	j.recorded = true
	return j.reread()
}

// stopTemplate shuts down a template that this run has started.
func (j *job) stopTemplate(ctx context.Context) error {
	if !j.isTemplate() || !slices.Contains(j.changes, "started") {
		return nil
	}
	start := time.Now()
	if err := j.pct(ctx, "shutdown", strconv.Itoa(j.ctid), "--timeout", "60", "--forceStop", "1"); err != nil {
		return err
	}
	j.running = false
	j.changed(start, "shut down")
	return nil
}

func (j *job) preConfigured(ctx context.Context) error {
	if !j.c.LifecycleSnapshots || !slices.Contains(j.changes, "started") {
		return nil
	}
	return j.snapshot(ctx, "pre-configured")
}

func (j *job) finalSnapshots(ctx context.Context) error {
	names := []string{}
	if j.c.LifecycleSnapshots {
		names = append(names, "final-form")
	}
	if s := j.c.TemplateSnapshot; s != "" && !slices.Contains(names, s) {
		names = append(names, s)
	}
	for _, name := range names {
		if err := j.snapshot(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// snapshot takes a snapshot unless there is one of that name. Proxmox makes
// none of a container with a bind mount: that is said, and is no error.
func (j *job) snapshot(ctx context.Context, name string) error {
	if slices.Contains(j.conf.Snapshots, name) {
		return nil
	}
	for option, value := range j.conf.Values {
		if isMountPoint(option) && strings.HasPrefix(value, "/") {
			j.logf("snapshot %s skipped: Proxmox makes no snapshot of a container with a bind mount (%s)", name, option)
			return nil
		}
	}
	start := time.Now()
	args := []string{"snapshot", strconv.Itoa(j.ctid), name}
	// A clone of a snapshot gets the description of the snapshot, not that of
	// the container.
	if len(j.record) > 0 {
		args = append(args, "--description", (&pct.Conf{}).Describe(j.record))
	}
	if err := j.pct(ctx, args...); err != nil {
		return err
	}
	j.changed(start, "snapshot %s", name)
	return j.reread()
}

// restartRequired returns the options whose values wait for a restart.
func (j *job) restartRequired() []string {
	if !j.running {
		return []string{}
	}
	return append([]string{}, slices.Sorted(maps.Keys(j.conf.Pending))...)
}

// address is the container's address without its prefix length, "" when it
// has no fixed one.
func address(c *config.Container) string {
	if !c.Network.IP.IsValid() {
		return ""
	}
	return c.Network.IP.Addr().String()
}

func boolean(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func stringsToBytes(ss []string) [][]byte {
	bs := make([][]byte, len(ss))
	for i, s := range ss {
		bs[i] = []byte(s)
	}
	return bs
}
