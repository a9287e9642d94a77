package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// converge brings the container into the desired state, stage by stage. After
// an error, j.stage is the stage that failed.
func (j *job) converge(ctx context.Context) error {
	for _, stage := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"node", j.checkNode},
		{"scripts", j.checkScripts},
		{"id maps", j.checkIDMaps},
		{"mount points", j.checkHostPaths},
		{"mount points", j.checkOwners},
		{"external", j.checkExternal},
		{"storage", j.checkStorages},
		{"apparmor", j.findProfile},
		{"define", j.define},
		{"scripts", j.findDueScripts},
		{"restart", j.ct.ClearRestartIfDone},
		{"mount points", j.prepareMounts},
		{"apparmor", j.loadProfile},
		{"firewall", j.decideFirewall},
		{"raw lines", j.writeUnsettable},
		{"firewall", j.writeFirewall},
		{"disk", j.growDisks}, // before what may wait for the next start, and has the disk's size in it
		{"configure", j.configure},
		{"record", j.pruneRecord},
		{"start", j.awaitNeeds},
		{"start", j.startIfNeeded},
		{"restart", j.restartIfAllowed},
		{"snapshot", j.snapshotBeforeScripts},
		{"features", j.readyForScripts},
		{"features", j.runDueScripts},
		{event.StageHealthCheck, j.checkHealth},
		{"stop", j.stopOnlyCloned}, // before the record: a run that ends here does all of it again
		{"record", j.recordScripts},
		{"snapshot", j.snapshotWhenDone},
		{"template", j.convert},
		{"record", j.reportRecord},
	} {
		j.stage, j.doing = stage.name, ""
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := stage.run(ctx); err != nil || j.complete {
			return err
		}
	}
	return nil
}

// checkExternal checks that the guests outside of the configuration run on
// which the container depends.
func (j *job) checkExternal(context.Context) error {
	if j.options.ignoreExternal || j.ct.IsTemplate() && !j.replaces {
		return nil
	}
	var all []error
	for _, id := range j.external {
		all = append(all, j.guest(id))
	}
	return errors.Join(all...)
}

// findProfile refuses, before a container is made, a profile that cannot be read.
func (j *job) findProfile(context.Context) error {
	name := customProfile(j.c)
	if name == "" || j.ct.Conf != nil && !j.replaces {
		return nil
	}
	_, _, _, err := profileFile(j.options.profiles, j.options.profileDir, name)
	return err
}

// loadProfile puts the container's AppArmor profile in place, and loads it.
func (j *job) loadProfile(ctx context.Context) error {
	name := customProfile(j.c)
	if name == "" {
		return nil
	}
	start := time.Now()
	path, want, have, err := profileFile(j.options.profiles, j.options.profileDir, name)
	if err != nil {
		return err
	}
	source := filepath.Join(j.options.profiles, name)
	j.profileHash = pve.Hash(want)
	if bytes.Equal(want, have) {
		return nil
	}
	if err := j.foreignProfile(name, path, want, have); err != nil {
		return err
	}
	// Loaded first: a profile that AppArmor refuses must not be taken for one
	// that is in place.
	load := pve.Command{Argv: []string{"apparmor_parser", "--replace", source}, Timeout: time.Minute}
	if _, err := j.host.Run(ctx, load); err != nil {
		return err
	}
	if j.options.dryRun {
		j.host.Preview.AddFile(path, have, want)
		j.changed(start, "AppArmor profile %s", name)
		return nil
	}
	// Recorded first: what this run writes is phx's own, wherever it ends.
	after := maps.Clone(j.ct.Record)
	after.Unite(pve.ProfileWord, j.profileHash)
	if err := j.ct.WriteRecord(ctx, after); err != nil {
		return err
	}
	if err := atomicfile.Write(path, want, 0o644); err != nil {
		return err
	}
	j.changed(start, "AppArmor profile %s", name)
	return nil
}

// foreignProfile refuses to overwrite a profile's file that phx has not written.
func (j *job) foreignProfile(name, path string, want, have []byte) error {
	hash := pve.Hash(have)
	if have == nil || bytes.Equal(want, have) || j.ownProfiles[hash] || j.ct.Before.Hashes(pve.ProfileWord)[hash] {
		return nil
	}
	return remedy.Errorf(fmt.Sprintf("copy it to %s to keep it, or move it away to have that one in its place",
		filepath.Join(j.options.profiles, name)), "%s is not as phx has written it, and is not overwritten", path)
}

// profileFile returns the place of a profile's file below dest, the content
// that it should have, which is that of the file of the same name in source,
// and the content that it has, nil if it is not there.
func profileFile(source, dest, name string) (path string, want, have []byte, err error) {
	want, err = os.ReadFile(filepath.Join(source, name))
	if err != nil {
		return "", nil, nil, remedy.Errorf("put the profile there, or name its directory by --apparmor or PHX_APPARMOR",
			"AppArmor profile %s: %w", name, err)
	}
	path = filepath.Join(dest, name)
	have, err = os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, nil, fmt.Errorf("AppArmor profile %s: %w", name, err)
	}
	return path, want, have, nil
}

// decideFirewall finds out whether the configured firewall is put in force.
//
// A firewall that was never in force can hold rules with which nothing works:
// the scripts that phx replaces wrote them for every container, and switched
// none on. So phx does not put the firewall of a container in force that it
// has not made, until it is told to.
func (j *job) decideFirewall(context.Context) error {
	fw := j.c.Firewall
	filters := func(n config.Interface) bool { return n.Firewall != nil && *n.Firewall }
	if fw == nil && !slices.ContainsFunc(j.c.Interfaces, filters) {
		return nil
	}
	text, err := j.host.ReadFirewall(j.c.CTID)
	if err != nil {
		return err
	}
	on := pve.FirewallOptions(text)["enable"] == "1"
	enabled, would := on, text // for an interface that is to obey rules made by hand
	if fw != nil {
		enabled, would = fw.Enabled, pveFirewall(fw).Rewrite(text, nil)
	}
	filtersBefore := func(word string) bool { return strings.HasSuffix(word, ".firewall") }
	own := j.created || j.ct.Before[pve.FirewallWord] != "" ||
		slices.ContainsFunc(slices.Collect(maps.Keys(j.ct.Before.Hashes(pve.NetsWord))), filtersBefore)
	if own || j.options.enforce || on && hasFirewallFlags(j.c, j.ct.Conf) || fw == nil && !on {
		_, datacenter := j.host.DatacenterFirewall()
		j.notInForce = enabled && !datacenter
		for i, n := range j.c.Interfaces {
			if enabled && n.Filtered(fw) && !j.c.HasPort(i) {
				j.notInForce = true
				j.warnf("%s is no port of a bridge, because of its raw lines: the firewall is not in force there",
					netOption(i))
			}
		}
		return nil
	}
	j.firewallWaits, j.notInForce = true, enabled
	if enabled {
		j.warnf("%s", enforcing(would, cutFlows(j.plan, j.c, would)))
	}
	return nil
}

// writeUnsettable brings the raw lines and the notes up to date, and the record
// with them.
func (j *job) writeUnsettable(ctx context.Context) error {
	start := time.Now()
	after := j.desiredRecord()
	// What is set otherwise is recorded before it is, and what is removed is
	// forgotten afterwards.
	if !j.options.dryRun {
		for _, word := range recordedFirst {
			after.Unite(word, j.ct.Before[word])
		}
	}
	mapped := pve.IDMaps(j.ct.Conf.Raw)
	raw, notes, err := j.ct.WriteUnsettable(ctx, pve.Unsettable{
		Raw: rawLines(withPrivileges(j.c, j.ct.Conf)), Notes: j.c.Notes, Record: after,
	})
	if err != nil {
		return err
	}
	if raw {
		j.changed(start, "raw lxc lines")
	}
	if now := pve.IDMaps(j.ct.Conf.Raw); !slices.Equal(mapped, now) && len(j.c.MappedIDs) > 0 {
		j.warnf("with its new maps of ids, files of the container that belong to the mapped ones belong to nobody "+
			"in it: once it has started with them, find these with: pct exec %d -- find / -xdev -nouser -o -nogroup",
			j.c.CTID)
	}
	if notes {
		j.changed(start, "notes")
	}
	return nil
}

// writeFirewall brings the container's firewall file up to date.
func (j *job) writeFirewall(ctx context.Context) error {
	fw := j.firewall()
	if fw == nil {
		return nil
	}
	start := time.Now()
	var cloned []byte // in a dry run, what pct clone would bring along
	if j.options.dryRun && j.created && j.source != nil {
		cloned, _ = j.host.ReadFirewall(j.c.CloneFrom)
	}
	var text []byte
	changed, err := j.ct.EditFirewall(ctx, cloned, func(old []byte) []byte {
		text = pveFirewall(fw).Rewrite(old, j.ct.Before.Hashes(pve.FirewallWord))
		return text
	})
	if err != nil {
		return err
	}
	if changed {
		j.changed(start, "firewall")
	}
	if fw.Enabled && (changed || !hasFirewallFlags(j.c, j.ct.Conf)) {
		for _, cut := range cutFlows(j.plan, j.c, text) {
			j.warnf("the firewall: %s", cut)
		}
		if j.notInForce && !j.quiet {
			j.datacenter.Do(func() {
				path, _ := j.host.DatacenterFirewall()
				j.warn(0, cmdline.Logf, "the datacenter's firewall is off, and with it all rules and filters of "+
					"containers: %s has no \"enable: 1\": switch it on in Datacenter, Firewall, Options "+
					"once the rules of the hosts are right", path)
			})
		}
	}
	return nil
}

// configure applies every setting that differs, in one call.
func (j *job) configure(ctx context.Context) error {
	j.reportInterfaces()
	if len(j.settings(j.ct.Conf).Args()) == 0 {
		return nil
	}
	if err := j.ct.AwaitUnlocked(ctx); err != nil {
		return err
	}
	if err := j.refusals(); err != nil { // of what others have made of it meanwhile
		return err
	}
	start := time.Now()
	if err := j.liftProtection(ctx); err != nil {
		return err
	}
	differing := j.settings(j.ct.Conf)
	if len(differing.Args()) == 0 {
		return nil
	}
	if waiting := differing.AppliedAtStart(j.ct.Conf); j.ct.Running && len(waiting) > 0 {
		if err := j.ct.MarkRestart(ctx, waiting...); err != nil {
			return err
		}
	}
	if err := j.ct.Pct(ctx, append([]string{"set", j.ct.ID()}, differing.Args()...)...); err != nil {
		return err
	}
	if err := j.ct.Reread(func(c *pve.Conf) { differing.Apply(c, j.ct.Running) }); err != nil {
		return err
	}
	// pct's exit status is no proof: what counts is what was stored.
	if again := j.settings(j.ct.Conf).Args(); len(again) > 0 && !j.options.dryRun {
		return fmt.Errorf("pct set %d exited 0, but this has not been stored: %s", j.c.CTID, remedy.Quote(again))
	}
	for _, change := range differing.Changes() {
		j.changed(start, "%s", change)
	}
	return nil
}

// liftProtection takes the protection that a clone has of its source away where
// mount points are to be changed. What changes them brings it back.
func (j *job) liftProtection(ctx context.Context) error {
	if j.ct.Before[pve.LiftedWord] == "" || !j.keepsMounts(j.ct.Conf) {
		return nil
	}
	if err := j.ct.Pct(ctx, "set", j.ct.ID(), "--protection", "0"); err != nil {
		return err
	}
	return j.ct.Reread(func(c *pve.Conf) { c.Values["protection"] = "0" })
}

// checkNode refuses a container that is for another host.
func (j *job) checkNode(context.Context) error {
	if node := j.host.Node(); j.c.NodeName != "" && !strings.EqualFold(j.c.NodeName, node) {
		return remedy.Errorf("run phx there, or correct nodename; nothing was changed",
			"the configuration has the container for the node %s (nodename), and this is %s", j.c.NodeName, node)
	}
	return nil
}

// checkIDMaps refuses maps of ids that the host does not let root use: the
// container could not start.
func (j *job) checkIDMaps(context.Context) error {
	if len(j.c.MappedIDs) == 0 {
		return nil
	}
	return pve.CheckSubordinate(j.c.IDMaps, "id_maps asks for", j.options.subUID, j.options.subGID)
}

// reportInterfaces says which interfaces stay although the configuration does not
// have them.
func (j *job) reportInterfaces() {
	written := j.ct.Before.Hashes(pve.NetsWord)
	next := j.ct.Conf.Next()
	for _, option := range unmentioned(j.c, next) {
		if !written[option] {
			j.warnf("%s (%s) is not in the configuration, and stays, because phx has not made it: to remove it, "+
				"run: pct set %d --delete %s", option, describe(next[option]), j.c.CTID, option)
		}
	}
}

// pruneRecord takes out of the record what is in no file any more.
func (j *job) pruneRecord(ctx context.Context) error { return j.ct.WriteRecord(ctx, j.desiredRecord()) }

// growDisks grows disks to their configured sizes. None is ever shrunk.
func (j *job) growDisks(ctx context.Context) error {
	for _, d := range disks(j.c, j.ct.Conf) {
		if d.have == d.want {
			continue
		}
		start := time.Now()
		if err := j.ct.Resize(ctx, d.option, d.want); err != nil {
			return err
		}
		j.changed(start, "%s %dG", d.option, d.want)
	}
	return nil
}

// unready is the error of a container that was made, and not started, because another
// one that it needs is not ready.
type unready struct {
	reason  string
	because int // the container to blame, 0 for none
}

func (e *unready) Error() string {
	return e.reason + "; this one is made by now, and the next run goes on with it"
}

// awaitNeeds waits until a container may be started that was made before all that it
// needs was ready.
func (j *job) awaitNeeds(context.Context) error {
	if j.await == nil {
		return nil
	}
	if reason, because := j.await(); reason != "" {
		return &unready{reason, because}
	}
	return nil
}

// startIfNeeded starts the container. One that is only cloned from is started for
// its scripts alone, and a template that is still to be made for its health checks,
// too: it is the last time.
func (j *job) startIfNeeded(ctx context.Context) error {
	checked := j.c.IsTemplate && (j.c.HealthCheck != nil || len(j.c.HealthChecks) > 0)
	if j.c.IsOnlyCloned() && len(j.due) == 0 && !checked {
		return nil
	}
	return j.start(ctx)
}

// restartIfAllowed restarts a running container where a change needs it, if
// the user has asked for that. A template that is still to be made is shut down
// anyway, and its clones would not have what waits.
func (j *job) restartIfAllowed(ctx context.Context) error {
	waiting := j.ct.RestartRequired()
	if len(waiting) == 0 {
		return nil
	}
	if j.options.restart || j.c.IsTemplate {
		return j.restart(ctx)
	}
	j.warnf("a restart is needed for: %s (use --restart)", strings.Join(waiting, " "))
	return nil
}

// stopOnlyCloned shuts down a container that is only cloned from and that this run
// has started, or an earlier one that was interrupted. One that others have
// started goes on, unless it is to be a template.
func (j *job) stopOnlyCloned(ctx context.Context) error {
	switch {
	case !j.c.IsOnlyCloned():
		return nil
	case j.started || len(j.due) > 0 || j.c.IsTemplate:
		return j.shutdown(ctx)
	case j.ct.Running:
		j.warnf("it is only cloned from, and runs: unless that is needed, run: pct shutdown %d", j.c.CTID)
	}
	return nil
}

// finalForm is the snapshot of a container that is complete.
const finalForm = "final-form"

// snapshotBeforeScripts takes the snapshot of a container in which nothing has
// been installed yet.
func (j *job) snapshotBeforeScripts(ctx context.Context) error {
	isNew := j.created || len(j.due) > 0 && j.ct.Conf.Snapshot(finalForm) == nil
	if !j.c.LifecycleSnapshots || !isNew {
		return nil
	}
	return j.snapshot(ctx, "pre-configured")
}

// snapshotWhenDone takes the snapshots of a container that is complete.
func (j *job) snapshotWhenDone(ctx context.Context) error {
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
	return j.ct.ForgetNoSnapshots(ctx)
}

func (j *job) snapshot(ctx context.Context, name string) error {
	start := time.Now()
	taken, err := j.ct.Snapshot(ctx, name)
	if taken {
		j.changed(j.ct.Since(start), "snapshot %s", name)
	}
	return err
}

// reportRecord reports a change of the record where nothing else has changed.
func (j *job) reportRecord(context.Context) error {
	if j.ct.Noted && len(j.changes) == 0 {
		j.changed(time.Now(), "record")
	}
	return nil
}
