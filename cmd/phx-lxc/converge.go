package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/hostdir"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// converge brings the container into the desired state, stage by stage. After
// an error, j.stage is the stage that failed.
func (j *job) converge(ctx context.Context) error {
	for _, stage := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"scripts", j.checkScripts},
		{"mount points", j.checkHostPaths},
		{"mount points", j.checkOwners},
		{"external", j.checkExternal},
		{"define", j.define},
		{"scripts", j.findScripts},
		{"restart", j.clearRestartIfDone},
		{"mount points", j.prepareMounts},
		{"apparmor", j.loadProfile},
		{"firewall", j.judgeFirewall},
		{"raw lines", j.writeConf},
		{"firewall", j.writeFirewall},
		{"configure", j.configure},
		{"record", j.settleRecord},
		{"disk", j.growDisks},
		{"start", j.startUnlessTemplate},
		{"restart", j.restartIfAllowed},
		{"snapshot", j.preConfigured},
		{"features", j.awaitScripts},
		{"features", j.runScripts},
		{event.StageHealthCheck, j.checkHealth},
		{"stop", j.stopTemplate}, // before the record: a run that ends here does all of it again
		{"record", j.recordScripts},
		{"snapshot", j.finalSnapshots},
		{"record", j.sayRecord},
	} {
		j.stage = stage.name
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := stage.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// checkExternal checks that the guests outside of the file run on which the
// container depends.
func (j *job) checkExternal(ctx context.Context) error {
	if j.ignoreExternal {
		return nil
	}
	var all []error
	for _, id := range j.external {
		if err := j.guest(id)(); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// guest returns a function that reports whether a guest outside of the file
// runs; each guest is asked for once a round.
func (r *round) guest(id int) func() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.guests[id] == nil {
		r.guests[id] = sync.OnceValue(func() error { return r.checkGuest(id) })
	}
	return r.guests[id]
}

func (r *round) checkGuest(id int) error {
	states, err := r.states()
	if err != nil {
		return err
	}
	state, isContainer := states[id]
	if !isContainer {
		out, err := r.host.Run(r.ctx, pve.Command{Argv: []string{r.qm, "status", strconv.Itoa(id)}, Reads: true})
		if err != nil {
			return fmt.Errorf("it needs the guest %d, which is not in the configuration: %w (--ignore-external does without)", id, err)
		}
		state = strings.TrimPrefix(strings.TrimSpace(string(out)), "status: ")
	}
	if state != "running" {
		return fmt.Errorf("it needs the guest %d, which is %s: start it, or use --ignore-external", id, state)
	}
	return nil
}

// define makes sure that the container exists, and that it can be brought
// into the desired state.
func (j *job) define(ctx context.Context) error {
	if err := j.awaitDefined(ctx); err != nil {
		return err
	}
	switch {
	case j.conf == nil && j.c.CloneFrom != 0:
		return j.clone(ctx)
	case j.conf == nil:
		return j.create(ctx)
	}
	err := refusals(j.c, j.conf, parseHashes(j.record[volumesWord]))
	if err != nil && !j.running && !j.c.IsTemplate() {
		err = fmt.Errorf("%w\nthe container is stopped, and stays so until that is settled", err)
	}
	return err
}

// awaitDefined waits for a task that makes, replaces or destroys the container.
// Other locks are waited for where something has to be changed.
func (j *job) awaitDefined(ctx context.Context) error {
	if j.conf != nil && !replaces(j.lock()) {
		return nil
	}
	waited := true
	if j.conf == nil {
		var err error
		if waited, err = j.awaitCommands(ctx); err != nil || !waited {
			return err
		}
	}
	conf, _, err := j.unlocked(ctx, j.ctid)
	switch {
	case errors.Is(err, fs.ErrNotExist): // it was not finished, or destroyed
		j.conf, j.running = nil, false
		j.record, j.written, j.mark = pve.Record{}, pve.Record{}, ""
		return nil
	case err != nil:
		return err
	}
	if err := j.take(conf); err != nil {
		return err
	}
	return j.askState(ctx)
}

// create makes the container from a template, with all its settings.
func (j *job) create(ctx context.Context) error {
	start := time.Now()
	// pct create makes privileged containers on some versions and
	// unprivileged ones on others: it is always told.
	unprivileged := j.c.Unprivileged == nil || *j.c.Unprivileged
	size := fmt.Sprintf("%s:%d", j.c.StoragePool, j.c.StorageSizeGB)
	if err := j.makeHostPaths(); err != nil {
		return err
	}
	j.created = true
	wanted := j.wanted(&pve.Conf{})
	args := append([]string{"create", j.id(), j.c.Template, "--rootfs", size, "--unprivileged", boolean(unprivileged)}, wanted.args()...)
	line, err := j.firstRecord()
	if err != nil {
		return err
	}
	if line != "" {
		args = append(args, "--description", line)
	}
	if err := j.pct(ctx, args...); err != nil {
		return err
	}
	j.changed(start, "created from %s", j.c.Template)
	return j.reread(func(*pve.Conf) {
		j.conf = &pve.Conf{}
		j.conf.Values = map[string]string{
			"unprivileged": boolean(unprivileged),
			"rootfs":       fmt.Sprintf("%s,size=%dG", size, j.c.StorageSizeGB),
		}
		j.conf.Description = line
		wanted.expect(j.conf, false)
	})
}

// clone makes the container from another one's snapshot.
func (j *job) clone(ctx context.Context) error {
	source := j.c.CloneFrom
	lock := j.source(source)
	lock.Lock()
	defer lock.Unlock()

	start := time.Now()
	n := j.round.node(source)
	conf := n.conf // in a dry run the source may not exist yet
	if !j.dryRun {
		var err error
		if conf, _, err = j.unlocked(ctx, source); err != nil {
			return fmt.Errorf("clone source %d: %w", source, err)
		}
	}
	if n.container == nil || conf == nil {
		return fmt.Errorf("clone source %d is not in the plan", source)
	}
	records, err := j.records()
	if err != nil {
		return err
	}
	from, err := cloneSource(records, source, conf, n.container.TemplateSnapshot)
	if err != nil {
		return fmt.Errorf("clone source %d: %w", source, err)
	}
	if have, differs := wrongPrivilege(j.c, &from.Section); differs {
		return fmt.Errorf("clone source %d has unprivileged %s, and %d wants %s: a clone keeps its source's value, which is fixed when a container is created: clone from another container, or create this one from a template",
			source, boolean(have), j.ctid, boolean(!have))
	}
	args := []string{"clone", strconv.Itoa(source), j.id(), "--hostname", j.c.Name, "--storage", j.c.StoragePool}
	origin := strconv.Itoa(source)
	if from.Name != "" {
		args = append(args, "--snapname", from.Name)
		origin += "@" + from.Name
	} else {
		j.logf("container %d has no snapshot %s, because its storage takes none: the container itself is cloned", source, n.container.TemplateSnapshot)
	}
	args = append(args, "--full", "1") // the boolean last: pct takes a word after it for its value
	expected := cloneOf(from, j.c)
	if err := refusals(j.c, expected, nil); err != nil {
		return fmt.Errorf("as a clone of %d: %w", source, err)
	}
	// What the source's record says has come along, signed for the source.
	if j.record, err = records.Read(source, from.Description); err != nil {
		j.logf("%s: %v", origin, err)
	}
	delete(j.record, volumesWord)
	delete(j.record, snapshotsWord)
	j.written = maps.Clone(j.record)
	j.created = true
	line, err := j.firstRecord()
	if err != nil {
		return err
	}
	// Notes of a person do not belong on a command line.
	if line != "" && pve.Notes(from.Description) == "" {
		args = slices.Insert(args, 3, "--description", line)
		expected.Description = line
	}
	if err := j.pct(ctx, args...); err != nil {
		return err
	}
	j.changed(start, "cloned from %s", origin)
	if err := j.reread(func(*pve.Conf) { j.conf = expected }); err != nil {
		return err
	}
	j.mark = j.conf.Mark(pve.AppliedMark)
	return nil
}

// cloneSource returns the snapshot of a source that is cloned: one without a
// name, which is the container itself, where phx has seen that Proxmox makes
// none of it.
func cloneSource(records *pve.Records, source int, conf *pve.Conf, name string) (*pve.Snapshot, error) {
	if s := conf.Snapshot(name); s != nil {
		return s, nil
	}
	record, err := records.Read(source, conf.Description)
	if err != nil || record[snapshotsWord] != snapshotBasis(conf) {
		return nil, errors.Join(err, fmt.Errorf("it has no snapshot %s: take it with: phoenix %d", name, source))
	}
	if mount := bindMount(conf); mount != "" {
		return nil, fmt.Errorf("it has a bind mount (%s), and Proxmox clones no container that has one: take its mount_points out of the configuration, or create the container from a template", mount)
	}
	return &pve.Snapshot{Section: conf.Section}, nil
}

// cloneOf is what Proxmox makes of a snapshot: all of its configuration, with
// another name, storage, and address of the network card.
func cloneOf(from *pve.Snapshot, c *config.Container) *pve.Conf {
	conf := &pve.Conf{Section: from.Section}
	conf.Values = maps.Clone(from.Values)
	maps.DeleteFunc(conf.Values, func(option, _ string) bool {
		return option == "parent" || option == "snaptime" || option == "lock" || strings.HasPrefix(option, "unused")
	})
	conf.Values["hostname"] = c.Name
	for _, option := range append(mountOptions(conf.Values), "rootfs") {
		if _, volume, ok := strings.Cut(conf.Values[option], ":"); ok && !isBind(conf.Values[option]) {
			conf.Values[option] = c.StoragePool + ":" + volume
		}
	}
	net := pve.ParseProperties(conf.Values["net0"])
	net.Set("hwaddr", "(generated)")
	conf.Values["net0"] = net.String()
	return conf
}

// prepareMounts makes the directories of the host that the container is to
// see, and gives them to their owners. A container does not start without.
func (j *job) prepareMounts(context.Context) error {
	if err := j.makeHostPaths(); err != nil {
		return err
	}
	for _, m := range j.c.MountPoints {
		if m.OwnerUID == nil && m.OwnerGID == nil {
			continue
		}
		uid, gid, err := mappedOwner(j.asMade(), number(m.OwnerUID), number(m.OwnerGID))
		if err != nil {
			return fmt.Errorf("%s: %w", m.HostPath, err)
		}
		start := time.Now()
		differs, err := hostdir.OwnerDiffers(m.HostPath, uid, gid)
		switch {
		case j.dryRun && errors.Is(err, fs.ErrNotExist):
			j.wouldRun("chown", "-R", "-h", fmt.Sprintf("%d:%d", uid, gid), m.HostPath)
			continue
		case j.dryRun && differs:
			n, err := hostdir.CountOwners(m.HostPath, uid, gid)
			if err != nil {
				return err
			}
			j.logf("%d files and directories of %s would change their owner", n, m.HostPath)
			j.wouldRun("chown", "-R", "-h", fmt.Sprintf("%d:%d", uid, gid), m.HostPath)
			continue
		case err != nil:
			return err
		case !differs:
			continue
		}
		if err := hostdir.ChownTree(m.HostPath, uid, gid); err != nil {
			return err
		}
		j.changed(start, "owner of %s %d:%d", m.HostPath, uid, gid)
	}
	return nil
}

// asMade is the configuration with the privileges that the container has, if it
// is there.
func (j *job) asMade() *config.Container {
	if j.conf == nil {
		return j.c
	}
	c := *j.c
	unprivileged := pve.ParseBool(j.conf.Values["unprivileged"])
	c.Unprivileged = &unprivileged
	return &c
}

// checkOwners refuses to give away what holds more than the container's data.
// phx-plan has looked, too: but the stream may come from a file.
func (j *job) checkOwners(context.Context) error {
	guarded := hostdir.GuardedPlaces(j.plan.Config, j.scripts, j.host.PVERoot, j.host.Storages())
	guarded = append(guarded, hostdir.Guarded{Path: j.profileDir, What: "the AppArmor profiles", Tree: true})
	check := hostdir.OwnerCheck(guarded)
	var dirs []string
	for _, m := range j.c.MountPoints {
		if m.OwnerUID == nil && m.OwnerGID == nil {
			continue
		}
		if err := check(m.HostPath); err != nil {
			return err
		}
		dirs = append(dirs, m.HostPath)
	}
	packages, err := hostdir.Packaged(dirs)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if name := packages[dir]; name != "" {
			return hostdir.PackagedError(dir, name)
		}
	}
	return nil
}

// number is an owner's id, -1 for one that is left as it is.
func number(n *int) int {
	if n == nil {
		return -1
	}
	return *n
}

// checkHostPaths refuses to guess whether what is not there is to be a file or
// a directory, where its name is like that of a file.
func (j *job) checkHostPaths(context.Context) error {
	var all []error
	for _, m := range j.c.MountPoints {
		_, err := os.Stat(m.HostPath)
		switch {
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			all = append(all, err)
		case !m.Directory && strings.Contains(filepath.Base(m.HostPath), "."):
			all = append(all, fmt.Errorf("%s is not there: make it if it is a file; a directory is made if host_path is written with a slash at its end: %[1]s/", m.HostPath))
		}
	}
	return errors.Join(all...)
}

// makeHostPaths makes the directories of the host that are to be mounted and
// are not there.
func (j *job) makeHostPaths() error {
	for _, m := range j.c.MountPoints {
		path := m.HostPath
		if _, err := os.Stat(path); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		start := time.Now()
		if j.dryRun {
			j.wouldRun("mkdir", "-p", path)
			continue
		}
		if err := hostdir.Make(path); err != nil {
			return err
		}
		j.changed(start, "made %s", path)
	}
	return nil
}

// wouldRun previews what is done without a command, as the command that does
// the same.
func (j *job) wouldRun(argv ...string) {
	if !slices.ContainsFunc(j.preview.Commands, func(have []string) bool { return slices.Equal(have, argv) }) {
		j.preview.Commands = append(j.preview.Commands, argv)
	}
}

// configure applies every setting that differs, in one call.
func (j *job) configure(ctx context.Context) error {
	if len(j.wanted(j.conf).args()) == 0 {
		return nil
	}
	if err := j.awaitUnlocked(ctx); err != nil {
		return err
	}
	if err := refusals(j.c, j.conf, parseHashes(j.record[volumesWord])); err != nil { // of what others have made of it meanwhile
		return err
	}
	start := time.Now()
	differing := j.wanted(j.conf)
	if len(differing.args()) == 0 {
		return nil
	}
	if err := j.pct(ctx, append([]string{"set", j.id()}, differing.args()...)...); err != nil {
		return err
	}
	if err := j.reread(func(c *pve.Conf) { differing.expect(c, j.running) }); err != nil {
		return err
	}
	// pct's exit status is no proof: what counts is what was stored.
	if again := j.wanted(j.conf).args(); len(again) > 0 && !j.dryRun {
		return fmt.Errorf("pct set %d exited 0, but this has not been stored: %s", j.ctid, pve.Quote(again))
	}
	for _, change := range differing.changes() {
		j.changed(start, "%s", change)
	}
	return nil
}

// previewText is a file as it is, and as a dry run would leave it.
type previewText struct{ old, new []byte }

// previewEdit is what a dry run does in place of an edit. Of a container that
// is still to be made, old is what the file would hold.
func (j *job) previewEdit(path string, old []byte, edit func([]byte) []byte) (changed bool, err error) {
	t, known := j.texts[path]
	if !known {
		have, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			have = old
		case err != nil:
			return false, err
		}
		t = previewText{have, have}
	}
	text := edit(t.new)
	if bytes.Equal(text, t.new) {
		return false, nil
	}
	j.texts[path] = previewText{t.old, text}
	change := event.FileChange{Path: path, Diff: unifiedDiff(path, t.old, text)}
	i := slices.IndexFunc(j.preview.Files, func(f event.FileChange) bool { return f.Path == path })
	if i < 0 {
		j.preview.Files = append(j.preview.Files, change)
	} else {
		j.preview.Files[i] = change
	}
	return true, nil
}

// editConf changes the container's configuration file: raw lines, which pct
// cannot set, and the record, which no call is spent on.
func (j *job) editConf(ctx context.Context, edit func([]byte) []byte) (changed bool, err error) {
	records, err := j.records()
	if err != nil {
		return false, err
	}
	unkeyed := records.IsUnkeyed(j.ctid, j.conf.Description)
	if j.dryRun {
		old := pve.EncodeNotes(j.conf.Description)
		for _, l := range j.conf.Raw {
			old = append(old, rawText(l)+"\n"...)
		}
		changed, err = j.previewEdit(j.host.ConfPath(j.ctid), old, edit)
	} else {
		var lost error
		changed, err = j.host.EditConf(ctx, j.ctid, func(text []byte) []byte {
			if lost = j.checkMark(pve.ParseConf(text)); lost != nil {
				return text
			}
			return edit(text)
		})
		if err = cmp.Or(err, lost); err == nil {
			err = records.Signed(ctx, j.ctid)
		}
	}
	if err != nil || !changed {
		return changed, err
	}
	if unkeyed && !j.dryRun {
		j.logf("its record is taken over, and signed: whoever may edit notes cannot change it any more")
	}
	err = j.reread(func(c *pve.Conf) {
		text := pve.ParseConf(j.texts[j.host.ConfPath(j.ctid)].new)
		c.Raw, c.Description = text.Raw, text.Description
	})
	j.mark = j.conf.Mark(pve.AppliedMark)
	return true, err
}

// writeConf brings the raw lxc lines up to date, and the record with them, in
// one replace: whenever the run ends, the record knows what phx has written.
func (j *job) writeConf(ctx context.Context) error {
	start := time.Now()
	records, err := j.records()
	if err != nil {
		return err
	}
	wanted, written := wantedRaw(j.asMade()), parseHashes(j.written[rawWord])
	after := j.wantedRecord()
	// What goes into other files is recorded before it is written there, and
	// what is removed from them is forgotten afterwards.
	for _, word := range []string{firewallWord, mountsWord} {
		if !j.dryRun {
			after.Unite(word, j.written[word])
		}
	}
	if err := j.awaitEdit(ctx, j.host.ConfPath(j.ctid), func(text []byte) []byte { return editRaw(text, wanted, written) }); err != nil {
		return err
	}
	rawChanged := false
	changed, err := j.editConf(ctx, func(text []byte) []byte {
		edited := editRaw(text, wanted, written)
		rawChanged = !bytes.Equal(edited, text)
		edited = records.Rewrite(j.ctid, edited, j.merge(after))
		switch {
		case !j.running: // as may be the clone of one that ran
			return pve.SetMark(edited, pve.RestartMark, "")
		case rawChanged || j.record[formerRestartWord] != "":
			return pve.SetMark(edited, pve.RestartMark, strconv.FormatInt(time.Now().Unix()+1, 10))
		}
		return edited
	})
	if err != nil {
		return err
	}
	j.record = after
	switch {
	case rawChanged:
		j.changed(start, "raw lxc lines")
	case changed:
		j.noted = true
	}
	return nil
}

// settleRecord takes out of the record what is in no file any more.
func (j *job) settleRecord(ctx context.Context) error {
	return j.writeRecord(ctx, j.wantedRecord())
}

// writeRecord writes the record. What somebody else has added to it meanwhile
// stays.
func (j *job) writeRecord(ctx context.Context, after pve.Record) error {
	records, err := j.records()
	if err != nil {
		return err
	}
	change := j.merge(after)
	changed, err := j.editConf(ctx, func(text []byte) []byte { return records.Rewrite(j.ctid, text, change) })
	if err != nil {
		return err
	}
	j.record = after
	j.noted = j.noted || changed
	return nil
}

// merge returns what makes a record that was this one into after.
func (j *job) merge(after pve.Record) func(pve.Record) {
	before := j.record
	return func(record pve.Record) {
		for name := range before {
			delete(record, name)
		}
		maps.Copy(record, after)
	}
}

// sayRecord reports a change of the record where nothing else has changed.
func (j *job) sayRecord(context.Context) error {
	if j.noted && len(j.changes) == 0 && !j.dryRun {
		j.changed(time.Now(), "record")
	}
	return nil
}

// firstRecord sets the record of a container that is about to be made, and
// returns its line: made with it, a container is known as phx's own even when
// the run ends in the middle.
func (j *job) firstRecord() (line string, err error) {
	records, err := j.records()
	if err != nil {
		return "", err
	}
	after := j.wantedRecord()
	for _, word := range []string{rawWord, firewallWord, mountsWord} {
		after.Unite(word, j.written[word])
	}
	j.record = after
	return records.Line(j.ctid, after), nil
}

// writeFirewall brings the container's firewall file up to date.
func (j *job) writeFirewall(ctx context.Context) error {
	fw := j.firewall()
	if fw == nil {
		return nil
	}
	start := time.Now()
	written := parseHashes(j.written[firewallWord])
	var text []byte
	edit := func(old []byte) []byte {
		text = editFirewall(old, fw, written)
		return text
	}
	var changed bool
	var err error
	if j.dryRun {
		changed, err = j.previewEdit(j.host.FirewallPath(j.ctid), j.clonedFirewall(), edit)
	} else {
		if err := j.awaitEdit(ctx, j.host.FirewallPath(j.ctid), edit); err != nil {
			return err
		}
		changed, err = j.host.EditFirewall(ctx, j.ctid, edit)
	}
	if err != nil {
		return err
	}
	if changed {
		j.changed(start, "firewall")
	}
	if fw.Enabled && (changed || !hasFirewallFlag(j.conf)) {
		for _, cut := range j.cutFlows(text) {
			j.logf("the firewall: %s", cut)
		}
		if j.notInForce {
			j.sayDatacenter()
		}
	}
	return nil
}

// sayDatacenter says, once a round, why no firewall of a container works.
func (r *round) sayDatacenter() {
	r.saidDatacenter.Do(func() {
		cmdline.Logf("the datacenter's firewall is off, and with it all rules and filters of containers: %s has no \"enable: 1\": switch it on in Datacenter, Firewall, Options once the rules of the hosts are right",
			filepath.Join(r.host.PVERoot, "firewall/cluster.fw"))
	})
}

// clonedFirewall is, in a dry run, the firewall file that pct clone would
// bring along.
func (j *job) clonedFirewall() []byte {
	if !j.created || j.c.CloneFrom == 0 {
		return nil
	}
	text, _ := os.ReadFile(j.host.FirewallPath(j.c.CloneFrom))
	return text
}

// loadProfile puts the container's AppArmor profile in place, and loads it.
func (j *job) loadProfile(ctx context.Context) error {
	name := customProfile(j.c)
	if name == "" {
		return nil
	}
	start := time.Now()
	path, want, have, err := profileFile(j.profiles, j.profileDir, name)
	if err != nil {
		return err
	}
	j.profileHash = pve.Hash(want)
	if bytes.Equal(want, have) {
		return nil
	}
	if have != nil && !parseHashes(j.written[profileWord])[pve.Hash(have)] {
		return fmt.Errorf("%s is not as phx has written it, and is not overwritten: copy it to %s to keep it, or move it away to have that one in its place", path, filepath.Join(j.profiles, name))
	}
	// Loaded first: a profile that AppArmor refuses must not be taken for one
	// that is in place.
	load := pve.Command{Argv: []string{"apparmor_parser", "--replace", filepath.Join(j.profiles, name)}, Timeout: time.Minute}
	if _, err := j.host.Run(ctx, load); err != nil {
		return err
	}
	if j.dryRun {
		j.preview.Files = append(j.preview.Files, event.FileChange{Path: path, Diff: unifiedDiff(path, have, want)})
		j.changed(start, "AppArmor profile %s", name)
		return nil
	}
	// Recorded first: what this run writes is phx's own, wherever it ends.
	after := maps.Clone(j.record)
	after.Unite(profileWord, j.profileHash)
	if err := j.writeRecord(ctx, after); err != nil {
		return err
	}
	if err := atomicfile.Write(path, want, 0o644); err != nil {
		return err
	}
	j.changed(start, "AppArmor profile %s", name)
	return nil
}

// growDisks grows disks to their configured sizes. None is ever shrunk.
func (j *job) growDisks(ctx context.Context) error {
	for _, d := range disks(j.c, j.conf) {
		if d.have == d.want {
			continue
		}
		start := time.Now()
		size := fmt.Sprintf("%dG", d.want)
		// pct resize exits 0 even when it failed: the size is read again.
		if err := j.pct(ctx, "resize", j.id(), d.option, size); err != nil {
			return err
		}
		err := j.reread(func(c *pve.Conf) {
			ps := pve.ParseProperties(c.Values[d.option])
			ps.Set("size", size)
			c.Values[d.option] = ps.String()
		})
		if err != nil {
			return err
		}
		now := pve.ParseProperties(j.conf.Values[d.option]).Get("size") // 1024G is stored as 1T
		if have, err := pve.Gigabytes(now); err != nil || have != d.want {
			return fmt.Errorf("pct resize %d %s %s exited 0, but the size is still %s: see Proxmox's task log", j.ctid, d.option, size, now)
		}
		j.changed(start, "%s %s", d.option, size)
	}
	return nil
}

// findScripts determines which feature and application scripts have to run.
func (j *job) findScripts(context.Context) (err error) {
	j.due, err = j.dueScripts()
	return err
}

func (j *job) startUnlessTemplate(ctx context.Context) error {
	if j.c.IsTemplate() && len(j.due) == 0 {
		return nil
	}
	return j.start(ctx)
}

// start starts the container unless it runs.
func (j *job) start(ctx context.Context) error {
	if j.running {
		return nil
	}
	if err := j.awaitUnlocked(ctx); err != nil || j.running {
		return err
	}
	start := time.Now()
	if err := j.bring(ctx, true, "start", j.id()); err != nil {
		return err
	}
	j.running, j.started = true, true
	j.changed(start, "started")
	if err := j.reread(applyPending); err != nil {
		return err
	}
	return j.forgetRestart(ctx)
}

// applyPending is what a start does to values that waited for it.
func applyPending(c *pve.Conf) {
	c.Values = c.Next()
	c.Pending, c.Deleted = nil, nil
}

// reboot restarts the container, or starts it when it does not run.
func (j *job) reboot(ctx context.Context) error {
	// pct reboot does not look at the lock: it shuts the container down, and
	// only the start is refused then.
	if err := j.awaitUnlocked(ctx); err != nil {
		return err
	}
	if !j.running {
		return j.start(ctx)
	}
	start := time.Now()
	if err := j.pct(ctx, "reboot", j.id(), "--timeout", "60"); err != nil {
		if ctx.Err() != nil || j.askState(ctx) != nil || j.running {
			return err
		}
		j.logf("%v\nand it is down now: it is started again", err)
		if err := j.start(ctx); err != nil {
			return fmt.Errorf("it was shut down for the restart and is down now: %w", err)
		}
		return nil
	}
	j.started = true
	j.changed(start, "restarted")
	if err := j.reread(applyPending); err != nil {
		return err
	}
	return j.forgetRestart(ctx)
}

// forgetRestart forgets that a restart is needed.
func (j *job) forgetRestart(ctx context.Context) error {
	if j.conf.Mark(pve.RestartMark) == "" {
		return nil
	}
	changed, err := j.editConf(ctx, func(text []byte) []byte { return pve.SetMark(text, pve.RestartMark, "") })
	j.noted = j.noted || changed
	return err
}

// clearRestartIfDone forgets that a restart is needed if somebody has restarted
// the container since.
func (j *job) clearRestartIfDone(ctx context.Context) error {
	since, err := strconv.ParseInt(j.conf.Mark(pve.RestartMark), 10, 64)
	if err != nil || !j.running {
		return nil
	}
	out, err := j.host.Run(ctx, pve.Command{Argv: []string{j.host.PCT, "status", j.id(), "--verbose"}, Reads: true})
	if err != nil {
		return err
	}
	now := time.Now().Unix()
	for line := range strings.Lines(string(out)) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "uptime: ")
		uptime, err := strconv.ParseInt(text, 10, 64)
		// It is rounded down: the start may be a second earlier.
		if ok && err == nil && uptime > 0 && now-uptime-1 >= since {
			return j.forgetRestart(ctx)
		}
	}
	return nil
}

// shutdown stops the container if it runs: in order, or else by force.
func (j *job) shutdown(ctx context.Context) error {
	if !j.running {
		return nil
	}
	if err := j.awaitUnlocked(ctx); err != nil || !j.running {
		return err
	}
	start := time.Now()
	if err := j.bring(ctx, false, "shutdown", j.id(), "--timeout", "60", "--forceStop", "1"); err != nil {
		return err
	}
	j.running = false
	j.changed(start, "shut down")
	return j.reread(func(*pve.Conf) {})
}

// restartIfAllowed restarts a running container where a change needs it, if
// the user has asked for that.
func (j *job) restartIfAllowed(ctx context.Context) error {
	waiting := j.restartRequired()
	if len(waiting) == 0 {
		return nil
	}
	if j.restart {
		return j.reboot(ctx)
	}
	j.logf("a restart is needed for: %s (use --restart)", strings.Join(waiting, " "))
	return nil
}

// restartRequired returns the options whose values wait for a restart.
func (j *job) restartRequired() []string {
	waiting := []string{}
	if !j.running {
		return waiting
	}
	waiting = append(waiting, j.conf.Deleted...)
	waiting = append(waiting, slices.Collect(maps.Keys(j.conf.Pending))...)
	if j.conf.Mark(pve.RestartMark) != "" {
		waiting = append(waiting, "lxc")
	}
	slices.Sort(waiting)
	return waiting
}

// stopTemplate shuts down a template that this run, or one before it that did
// not come to its end, has started.
//
// One that somebody else has started is not cut off.
func (j *job) stopTemplate(ctx context.Context) error {
	if !j.c.IsTemplate() {
		return nil
	}
	if !j.started && len(j.due) == 0 {
		if j.running {
			j.logf("it is a template, and runs: when nobody needs that, run: pct shutdown %d", j.ctid)
		}
		return nil
	}
	return j.shutdown(ctx)
}

// awaitScripts makes sure, before scripts run, that nobody else is at work on
// the container, and that it still runs then.
func (j *job) awaitScripts(ctx context.Context) error {
	if len(j.due) == 0 {
		return nil
	}
	if err := j.awaitUnlocked(ctx); err != nil {
		return err
	}
	return j.start(ctx)
}

// preConfigured takes the snapshot of a container in which nothing has been
// installed yet.
func (j *job) preConfigured(ctx context.Context) error {
	isNew := j.created || len(j.due) > 0 && j.conf.Snapshot(finalForm) == nil
	if !j.c.LifecycleSnapshots || !isNew {
		return nil
	}
	return j.snapshot(ctx, "pre-configured")
}

// finalForm is the snapshot of a container that is complete.
const finalForm = "final-form"

func (j *job) finalSnapshots(ctx context.Context) error {
	var names []string
	if j.c.LifecycleSnapshots {
		names = append(names, finalForm)
	}
	if s := j.c.TemplateSnapshot; s != "" && !slices.Contains(names, s) {
		names = append(names, s)
	}
	for _, name := range names {
		if err := j.snapshot(ctx, name); err != nil {
			return err
		}
	}
	if word := j.record[snapshotsWord]; word == "" || word == snapshotBasis(j.conf) {
		return nil
	}
	after := maps.Clone(j.record) // its volumes are others now
	delete(after, snapshotsWord)
	return j.writeRecord(ctx, after)
}

// snapshotsWord of the record says that Proxmox makes no snapshot of the
// container while it has these volumes.
const snapshotsWord = "+snapshots"

// snapshotBasis is the hash of what decides whether Proxmox makes snapshots.
func snapshotBasis(conf *pve.Conf) string {
	var sources []string
	for _, option := range append(mountOptions(conf.Values), "rootfs") {
		sources = append(sources, source(conf.Values[option]))
	}
	slices.Sort(sources)
	return shortHash(strings.Join(sources, "\n"))
}

// bindMount returns the first mount point that mounts a path of the host.
func bindMount(conf *pve.Conf) string {
	for _, option := range mountOptions(conf.Values) {
		if isBind(conf.Values[option]) {
			return option
		}
	}
	return ""
}

// snapshot takes a snapshot unless there is one of that name. Proxmox makes
// none of a container with a bind mount, or on some storages: that is no error,
// and said once.
func (j *job) snapshot(ctx context.Context, name string) error {
	if j.conf.Snapshot(name) != nil || j.record[snapshotsWord] == snapshotBasis(j.conf) {
		return nil
	}
	if mount := bindMount(j.conf); mount != "" {
		return j.noSnapshots(ctx, fmt.Sprintf("Proxmox makes no snapshot of a container with a bind mount (%s)", mount))
	}
	if err := j.awaitUnlocked(ctx); err != nil {
		return err
	}
	for _, s := range j.conf.Snapshots { // others may have taken it meanwhile
		if s.Name == name && s.Unfinished() {
			return fmt.Errorf("the snapshot %s is unfinished, and of no use (snapstate %s): remove it with: %s", name, s.Values["snapstate"], removeSnapshot(j.ctid, name))
		} else if s.Name == name {
			return nil
		}
	}
	start := time.Now()
	args := []string{"snapshot", j.id(), name}
	// A clone of a snapshot gets the description of the snapshot, not that of
	// the container.
	records, err := j.records()
	if err != nil {
		return err
	}
	applied := maps.Clone(j.record)
	delete(applied, snapshotsWord) // of other volumes
	description := records.Line(j.ctid, applied)
	if description != "" {
		args = append(args, "--description", description)
	}
	err = j.pct(ctx, args...)
	var failed *pve.CommandError
	if errors.As(err, &failed) && strings.Contains(failed.Output, "snapshot feature is not available") {
		return j.noSnapshots(ctx, fmt.Sprintf("pct snapshot %d %s: snapshot feature is not available: its storage takes none", j.ctid, name))
	}
	if err != nil {
		return err
	}
	j.changed(start, "snapshot %s", name)
	return j.reread(func(c *pve.Conf) {
		s := pve.Snapshot{Name: name, Section: c.Section}
		s.Values, s.Description = maps.Clone(c.Values), description
		c.Snapshots = append(c.Snapshots, s)
	})
}

// noSnapshots says why the container gets no snapshots, and records it, so
// that the next run neither tries nor says it again.
func (j *job) noSnapshots(ctx context.Context, reason string) error {
	j.logf("it gets no snapshots: %s", reason)
	after := maps.Clone(j.record)
	after[snapshotsWord] = snapshotBasis(j.conf)
	return j.writeRecord(ctx, after)
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
