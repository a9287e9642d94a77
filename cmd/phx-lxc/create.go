package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// define makes sure that the container exists, and that it can be brought
// into the desired state.
func (j *job) define(ctx context.Context) error {
	if err := j.ct.AwaitDefined(ctx); err != nil {
		return err
	}
	switch {
	case j.ct.Conf == nil && j.source != nil:
		return j.clone(ctx)
	case j.ct.Conf == nil:
		return j.create(ctx)
	}
	j.cloned() // by an earlier run, or others
	switch {
	case j.ct.IsTemplate():
		return j.leaveTemplate(ctx)
	case j.c.IsTemplate && j.ct.Conf.HasBaseVolumes(): // an interrupted conversion
		j.complete = true
		return j.convert(ctx)
	}
	err := j.refusals()
	if err != nil && !j.ct.Running && !j.c.IsOnlyCloned() {
		err = fmt.Errorf("%w\nthe container is stopped, and stays so until that is settled", err)
	}
	return err
}

// create makes the container from a template, with all its settings.
func (j *job) create(ctx context.Context) error {
	if err := j.download(ctx); err != nil {
		return err
	}
	start := time.Now()
	j.doing = "create"
	if err := j.makeHostPaths(); err != nil {
		return err
	}
	j.created = true
	// pct create makes privileged containers on some versions and
	// unprivileged ones on others: it is always told.
	privileges := pve.FormatBool(unprivileged(j.c))
	rootfs := newDisk(j.c.StoragePool, j.c.StorageSizeGB, mountOptions(j.c.RootOptions, nil)...)
	wanted := j.settings(&pve.Conf{})
	args := []string{"create", j.ct.ID(), j.c.Template, "--rootfs", rootfs, "--unprivileged", privileges}
	args = append(args, wanted.Args()...)
	first, line, err := j.firstRecord()
	if err != nil {
		return err
	}
	if line != "" {
		args = append(args, "--description", line)
	}
	keys, remove, err := j.publicKeys()
	if err != nil {
		return err
	}
	defer remove()
	if keys != "" {
		args = append(args, "--ssh-public-keys", keys)
	}
	expected := &pve.Conf{Section: pve.Section{Description: line, Values: map[string]string{
		"unprivileged": privileges,
		"rootfs":       fmt.Sprintf("%s,size=%dG", rootfs, j.c.StorageSizeGB),
	}}}
	wanted.Apply(expected, false)
	made, err := j.ct.Make(ctx, first, expected, args...)
	if made {
		j.changed(start, "created from %s", j.c.Template)
	}
	return err
}

// publicKeys returns the file with the SSH keys that the container is made with,
// "" for none, and what removes it when it is not needed any more.
func (j *job) publicKeys() (path string, remove func(), err error) {
	remove = func() {}
	if len(j.c.SSHKeys) == 0 {
		return j.c.SSHKeysFile, remove, j.checkKeysFile()
	}
	path = j.host.ScratchFile(j.c.CTID, "keys.pub")
	if j.options.dryRun {
		return path, remove, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", remove, fmt.Errorf("ssh_public_keys: %w", err)
	}
	if err := atomicfile.Write(path, []byte(strings.Join(j.c.SSHKeys, "\n")+"\n"), 0o600); err != nil {
		return "", remove, fmt.Errorf("ssh_public_keys: %w", err)
	}
	return path, func() { os.Remove(path) }, nil
}

// maxKeysFile is how many bytes a file of SSH keys may have.
const maxKeysFile = 256 << 10

// checkKeysFile refuses a file of SSH keys that pct would not take, or would wait
// for.
func (j *job) checkKeysFile() error {
	path := j.c.SSHKeysFile
	if path == "" {
		return nil
	}
	text, err := atomicfile.Read(path, maxKeysFile)
	if err != nil {
		return remedy.Errorf("put it there, or correct the configuration", "ssh_public_keys: %w", err)
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if line = strings.TrimSpace(line); line != "" && !config.IsPublicKey(line) {
			return remedy.Errorf("a line such as: ssh-ed25519 AAAA… NAME; pct takes nothing else, and no comments",
				"ssh_public_keys: %s:%d: no public key of OpenSSH", path, number)
		}
	}
	return nil
}

// download fetches the archive of the template, if it is missing and that is
// wanted: once for all containers.
func (j *job) download(ctx context.Context) error {
	if !j.options.download || !j.host.LacksArchive(j.c.Template) {
		return nil
	}
	j.doing = "download"
	defer func() { j.doing = "" }()
	waits := func() { j.begins("waiting for the download of " + j.c.Template) }
	return j.once("download "+j.c.Template, waits, func() error {
		start := time.Now()
		err := j.host.Download(ctx, j.c.Template)
		if err == nil {
			j.changed(start, "downloaded %s", j.c.Template)
		}
		return err
	})
}

// firstRecord returns the record of a container that is about to be made, and
// its line: made with it, a container is known as phx's own even when the run
// ends in the middle.
func (j *job) firstRecord() (first pve.Record, line string, err error) {
	records, err := j.records()
	if err != nil {
		return nil, "", err
	}
	first = j.desiredRecord()
	for _, word := range append([]string{pve.RawWord}, recordedFirst...) {
		first.Unite(word, j.ct.Before[word])
	}
	return first, records.Line(j.c.CTID, first), nil
}

// linked reports whether a clone shares the disks of its source, as that of a
// template does where it can, or else why not: "" where it was asked for.
func (j *job) linked(from *pve.Snapshot) (why string, linked bool) {
	if !from.IsTemplate() {
		return "", false
	}
	if j.c.FullClone != nil && *j.c.FullClone {
		return "", false
	}
	if have := pve.Storage(from.Values["rootfs"]); have != j.c.StoragePool {
		return fmt.Sprintf("its root disk is on %s, and the clone's is to be on %s", have, j.c.StoragePool), false
	}
	for _, option := range append(pve.MountPoints(from.Values), "rootfs") {
		if name := pve.Storage(from.Values[option]); !j.host.LinksClones(name) {
			return fmt.Sprintf("the storage %s makes no linked clones of containers", name), false
		}
	}
	return "", true
}

// chooseSource returns what the container is cloned from, a snapshot or, without a
// name, all of its source, and what it is expected to be then.
func (j *job) chooseSource(ctx context.Context) (from *pve.Snapshot, expected *pve.Conf, err error) {
	id := j.c.CloneFrom
	conf := j.source.conf // in a dry run the source may not exist yet
	if !j.options.dryRun {
		if conf, _, err = j.host.AwaitLock(ctx, id, j.options.lockWait, j.logf); err != nil {
			return nil, nil, fmt.Errorf("clone source %d: %w", id, err)
		}
	}
	if j.source.container == nil || conf == nil {
		return nil, nil, fmt.Errorf("clone source %d is not in the plan", id)
	}
	records, err := j.records()
	if err != nil {
		return nil, nil, err
	}
	if from, err = records.SnapshotToClone(id, conf, j.source.container.TemplateSnapshot); err != nil {
		return nil, nil, fmt.Errorf("clone source %d: %w", id, err)
	}
	if have, differs := wrongPrivilege(j.c, &from.Section); differs {
		return nil, nil, fmt.Errorf("clone source %d has unprivileged %s, and %d wants %s: "+
			"a clone keeps its source's value, which is fixed when a container is created: "+
			"clone from another container, or create this one from a template",
			id, pve.FormatBool(have), j.c.CTID, pve.FormatBool(!have))
	}
	pool := j.c.StoragePool
	if _, linked := j.linked(from); linked {
		pool = ""
	}
	expected = from.Clone(j.c.Name, pool)
	if err := refusals(j.c, expected, nil); err != nil {
		return nil, nil, fmt.Errorf("as a clone of %d: %w", id, err)
	}
	return from, expected, nil
}

// lockSource waits until no other clone of the source is being made.
func (j *job) lockSource() {
	wait := j.turn()
	if wait == nil && j.source.copying.TryLock() {
		return
	}
	j.begins(fmt.Sprintf("waiting for another clone of %d", j.c.CloneFrom))
	j.pause(func() {
		if wait != nil {
			wait()
		}
		j.source.copying.Lock()
	})
	j.begins("")
}

// unlockSource lets others clone the source.
func (j *job) unlockSource() {
	j.source.copying.Unlock()
	j.cloned()
}

// clone makes the container from a template, or from another one's snapshot.
func (j *job) clone(ctx context.Context) error {
	j.doing = "clone"
	if !j.options.dryRun {
		j.lockSource()
		defer j.unlockSource()
	}

	start := time.Now()
	id := j.c.CloneFrom
	from, expected, err := j.chooseSource(ctx)
	if err != nil {
		return err
	}
	records, err := j.records()
	if err != nil {
		return err
	}
	args := []string{"clone", strconv.Itoa(id), j.ct.ID(), "--hostname", j.c.Name}
	origin := strconv.Itoa(id)
	why, linked := j.linked(from)
	switch {
	case linked, from.IsTemplate() && why == "":
	case from.IsTemplate():
		j.warnf("a full clone of the template %d: %s", id, why)
	case from.Name != "":
		origin += "@" + from.Name
	default:
		j.warnf("container %d has no snapshot %s, because its storage takes none: the container itself is cloned",
			id, j.source.container.TemplateSnapshot)
	}
	if !linked {
		args = append(args, "--storage", j.c.StoragePool)
	}
	if from.Name != "" {
		args = append(args, "--snapname", from.Name)
	}
	if !linked {
		args = append(args, "--full", "1") // the boolean last: pct takes a word after it for its value
	}
	// The source's record comes along, signed for the source.
	if err := j.ct.Inherit(records, id, from); err != nil {
		j.warnf("%s: %v", origin, err)
	}
	// So do all its interfaces, and with them the addresses of the source.
	j.ct.Before.Unite(pve.NetsWord, strings.Join(unmentioned(j.c, from.Values), ","))
	if j.keepsMounts(expected) {
		j.ct.Before[pve.LiftedWord] = "1"
	}
	j.created = true
	first, line, err := j.firstRecord()
	if err != nil {
		return err
	}
	// Notes of a person do not belong on a command line.
	if line != "" && pve.Notes(from.Description) == "" {
		args = slices.Insert(args, 3, "--description", line)
		expected.Description = line
	}
	made, err := j.ct.Make(ctx, first, expected, args...)
	if made {
		j.changed(start, "cloned from %s", origin)
	}
	return err
}
