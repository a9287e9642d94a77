package pve

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
)

// recordPrefix starts the line of a container's description in which phx
// keeps what it has applied: "phx: base_setup=0123456789ab … +mac=…". Reading
// it costs no call, and it travels with backups as the container's contents
// do. A clone of a snapshot gets the snapshot's own description; a rollback
// keeps the container's (PVE::AbstractConfig of Proxmox VE 9), which is why
// there is an [appliedMark] as well.
//
// Whoever may edit notes can write such a line, which is why it is signed.
const recordPrefix = "phx:"

// macWord is the word of a record that signs the others.
const macWord = "+mac"

// appliedWord is the word of a record which says that the scripts in it are
// in the [appliedMark] as well.
const appliedWord = "+applied"

// Words of a record for what phx has written beside scripts. No feature and no
// script can have such a name.
const (
	RawWord       = "+lxc"       // hashes of raw lines
	FirewallWord  = "+firewall"  // hashes of rules, "none" for a file without: phx manages the firewall
	MountsWord    = "+mounts"    // hashes of the paths of bind mounts
	DevicesWord   = "+devices"   // hashes of the paths of devices
	NetsWord      = "+nets"      // interfaces and their sub-keys that phx has set: net1,net1.tag
	VolumesWord   = "+volumes"   // hashes of the paths of volumes that have been there
	ProfileWord   = "+apparmor"  // hash of the AppArmor profile's file; of two, one is about to be written
	snapshotsWord = "+snapshots" // hash of the volumes of which Proxmox makes no snapshot

	// KnownWord is in the record of a container of which there would be none
	// otherwise: see [Container.Unknown].
	KnownWord = "+known"

	// LiftedWord is in the record of a clone until it has its mount points, for which
	// the protection that it has of its source is lifted, and comes back.
	LiftedWord = "+lifted"

	// FormerRestartWord is what the [restartMark] says now.
	FormerRestartWord = "+restart"
)

// Record is what phx has applied to a container: a hash by name. Names that
// begin with "+" are not those of scripts.
type Record map[string]string

// scripts are the words of the scripts that have been applied.
func (r Record) scripts() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if !strings.HasPrefix(name, "+") {
			words = append(words, name+"="+r[name])
		}
	}
	return strings.Join(words, " ")
}

// without returns a copy of the record that lacks these words.
func (r Record) without(words ...string) Record {
	less := maps.Clone(r)
	for _, word := range words {
		delete(less, word)
	}
	return less
}

// Unite adds the elements of a list to a word that is a list, too.
func (r Record) Unite(word, list string) {
	have := strings.FieldsFunc(r[word], isComma)
	for _, e := range strings.FieldsFunc(list, isComma) {
		if !slices.Contains(have, e) {
			have = append(have, e)
		}
	}
	if len(have) > 0 {
		r[word] = strings.Join(have, ",")
	}
}

func isComma(r rune) bool { return r == ',' }

// Records signs the records of containers and checks them. A record is signed
// for a CTID with a key that only root can read.
type Records struct {
	host *Host
	path string
	key  []byte

	mu      sync.Mutex
	unkeyed []int // containers whose record is of the time before there was a key
}

// recordFile is the key's file. Unkeyed are the containers that had a record
// without a signature when the key was made: each is signed once, and no
// other record without a signature is ever believed.
type recordFile struct {
	Key     string `json:"key"`
	Unkeyed []int  `json:"unkeyed,omitempty"`
}

// Records returns the records of a host, and removes what killed runs have left
// beside the files with them. Where there is no key yet it makes one. A preview
// removes nothing, and what it signs without a key is of no use later.
func (h *Host) Records(ctx context.Context) (*Records, error) {
	if h.Preview == nil {
		h.removeLeftovers()
	}
	r := &Records{host: h, path: filepath.Join(h.stateDir(), "record.json")}
	err := r.load()
	switch {
	case !errors.Is(err, os.ErrNotExist):
		return r, err
	case h.Preview != nil:
		return r, r.draw()
	}
	release, err := h.lockCluster(ctx, "phx-record")
	if err != nil {
		return nil, fmt.Errorf("make the key of the records: %w", err)
	}
	defer release()
	if err := r.load(); !errors.Is(err, os.ErrNotExist) { // somebody else was quicker
		return r, err
	}
	if err := r.draw(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(h.stateDir(), 0o700); err != nil {
		return nil, fmt.Errorf("make the key of the records: %w", err)
	}
	return r, r.save()
}

func (r *Records) load() error {
	info, err := os.Lstat(r.path)
	if err != nil {
		return fmt.Errorf("read the key of the records: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("the key of the records, %s, is %v: others than root may have read or written it: remove "+
			"it: phx then makes a new one and goes on as without any record", r.path, info.Mode())
	}
	text, err := os.ReadFile(r.path)
	if err != nil {
		return fmt.Errorf("read the key of the records: %w", err)
	}
	var file recordFile
	if err := json.Unmarshal(text, &file); err != nil {
		return fmt.Errorf("read the key of the records, %s: %w", r.path, err)
	}
	key, err := hex.DecodeString(file.Key)
	if err != nil || len(key) != sha256.Size {
		return fmt.Errorf("the key of the records, %s, is not %d bytes in hexadecimal digits: bring it back from a "+
			"backup, or remove it: phx then makes a new one and goes on as without any record", r.path, sha256.Size)
	}
	r.key, r.unkeyed = key, file.Unkeyed
	return nil
}

// draw makes a new key, and finds the containers whose records are of the time
// before it.
func (r *Records) draw() error {
	r.key = make([]byte, sha256.Size)
	rand.Read(r.key)
	paths, err := r.host.confPaths()
	if err != nil {
		return fmt.Errorf("look for records: %w", err)
	}
	for ctid, path := range paths {
		text, err := readIfThere(path)
		if err != nil {
			return fmt.Errorf("look for records: %w", err)
		}
		conf := ParseConf(text)
		descriptions := []string{conf.Description}
		for _, s := range conf.Snapshots {
			descriptions = append(descriptions, s.Description)
		}
		if slices.ContainsFunc(descriptions, hasUnkeyed) {
			r.unkeyed = append(r.unkeyed, ctid)
		}
	}
	slices.Sort(r.unkeyed)
	return nil
}

func hasUnkeyed(description string) bool {
	_, lines := recordLines(description)
	return slices.ContainsFunc(lines, func(l string) bool { return parseRecord(l)[macWord] == "" })
}

func (r *Records) save() error {
	text, err := json.Marshal(recordFile{hex.EncodeToString(r.key), r.unkeyed})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(r.path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the key of the records: %w", err)
	}
	return nil
}

// foreignRecord is the error for a record that phx has not written, or not for
// this container.
type foreignRecord struct {
	CTID   int
	Reason string
	path   string
}

func (e *foreignRecord) Error() string {
	return fmt.Sprintf("the record in the notes of container %d is not phx's own: %s; either let it be: phx then "+
		"works as if it had never worked on the container, removes nothing because of the record, and writes one of "+
		"its own; or bring back %s as it was when the record was written, from a backup or from the host that the "+
		"container comes from",
		e.CTID, e.Reason, e.path)
}

// rolledBack is the error for a container that has been rolled back: what its
// record says of scripts is not so any more. The record that comes with it is
// right.
type rolledBack struct {
	Lost []string // the scripts whose work is not there any more
}

func (e *rolledBack) Error() string {
	if e.Lost == nil {
		return "it has been rolled back"
	}
	return "it has been rolled back: this is applied again: " + strings.Join(e.Lost, " ")
}

// rolledBackWords are the words of what is written into the configuration
// file: a rollback brings all of it back.
var rolledBackWords = []string{RawWord, MountsWord, DevicesWord, NetsWord, VolumesWord}

// readConf returns the record of container ctid as [Records.read] does. The
// error is a [*rolledBack] where it differs from what the notes say.
func (r *Records) readConf(ctid int, conf *Conf) (Record, error) {
	record, reason := r.check(ctid, conf.Description)
	if reason != "" {
		return r.read(ctid, conf.Description)
	}
	marked := record[appliedWord] != ""
	delete(record, appliedWord)
	mark, parent := conf.mark(appliedMark), conf.Values["parent"]
	// Without a snapshot there was nothing to roll back to: the mark is still
	// to be written, or was lost with other raw lines in a restore.
	if !marked || mark == record.scripts() || mark == "" && parent == "" {
		return record, nil
	}
	applied := parseRecord(mark)
	back := &rolledBack{}
	for _, name := range slices.Sorted(maps.Keys(record)) {
		if !strings.HasPrefix(name, "+") && applied[name] != record[name] {
			back.Lost = append(back.Lost, name)
			delete(record, name)
		}
	}
	maps.Copy(record, applied)
	// What was written into the file at that time is known again.
	for range conf.Snapshots { // no more steps, should they form a cycle
		s := conf.Snapshot(parent)
		if s == nil {
			break
		}
		if then, reason := r.check(ctid, s.Description); reason == "" && len(then) > 0 {
			for _, word := range rolledBackWords {
				record.Unite(word, then[word])
			}
			break
		}
		parent = s.Values["parent"]
	}
	return record, back
}

// read returns the record in a description of container ctid, an empty one
// when there is none. The error is a [*foreignRecord] for one that does not
// count; the record is empty then, too.
func (r *Records) read(ctid int, description string) (Record, error) {
	record, reason := r.check(ctid, description)
	if reason != "" {
		return Record{}, &foreignRecord{ctid, reason, r.path}
	}
	delete(record, appliedWord)
	return record, nil
}

// check returns the record in a description, or why it is none of phx's.
func (r *Records) check(ctid int, description string) (record Record, reason string) {
	_, lines := recordLines(description)
	switch len(lines) {
	case 0:
		return Record{}, ""
	case 1:
	default:
		if !slices.ContainsFunc(lines, func(l string) bool { return parseRecord(l)[macWord] != "" }) &&
			r.isUnkeyed(ctid) {
			break // as the old form had it, all of them count
		}
		return nil, "there are several"
	}
	record = Record{}
	for _, l := range lines {
		maps.Copy(record, parseRecord(l))
	}
	mac := record[macWord]
	delete(record, macWord)
	switch {
	case mac == "" && r.isUnkeyed(ctid):
		return record, ""
	case mac == "":
		return nil, "it has no signature"
	case !hmac.Equal([]byte(r.sign(ctid, record)), []byte(strings.TrimSpace(lines[0]))):
		return nil, "its signature is not that of this host's key for this container, as after an edit of the notes, " +
			"or in a copy of another container"
	}
	return record, ""
}

func (r *Records) isUnkeyed(ctid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.unkeyed, ctid)
}

// isUnsigned reports whether the record of container ctid is still to be signed
// for the first time.
func (r *Records) isUnsigned(ctid int, description string) bool {
	return r.isUnkeyed(ctid) && hasUnkeyed(description)
}

// Line returns the line of a description that holds record, signed for
// container ctid; "" for an empty one.
func (r *Records) Line(ctid int, record Record) string {
	if record.scripts() != "" {
		record = maps.Clone(record)
		record[appliedWord] = "1"
	}
	return r.sign(ctid, record)
}

func (r *Records) sign(ctid int, record Record) string {
	if len(record) == 0 {
		return ""
	}
	words := []string{recordPrefix}
	for _, name := range slices.Sorted(maps.Keys(record)) {
		words = append(words, name+"="+record[name])
	}
	line := strings.Join(words, " ")
	mac := hmac.New(sha256.New, r.key)
	fmt.Fprintf(mac, "record of %d\n%s", ctid, line)
	return line + " " + macWord + "=" + hex.EncodeToString(mac.Sum(nil)[:16])
}

// rewrite returns the text of container ctid's configuration file with its
// record as change leaves it, and signed, and the [appliedMark] with it. change
// gets an empty record for one that does not count. All other notes stay byte
// for byte. Of a container whose record is signed for the first time, the
// records of its snapshots are signed as well.
func (r *Records) rewrite(ctid int, text []byte, change func(Record)) []byte {
	record, _ := r.readConf(ctid, ParseConf(text))
	change(record)
	line := r.Line(ctid, record)
	head, rest := firstSection(text)

	// In place of the first line of a record, or below the other notes.
	var lines []string
	place, notes := -1, 0
	for l := range strings.Lines(string(head)) {
		note, isNote := noteOf(l)
		switch {
		case !isNote || !isRecordLine(note):
			if isNote && notes == len(lines) {
				notes++
			}
			lines = append(lines, l)
		case place < 0 && note == line:
			place = len(lines)
			lines = append(lines, l) // unchanged
			line = ""
		case place < 0:
			place = len(lines)
		}
	}
	if place < 0 {
		place = notes
	}
	if line != "" {
		if place > 0 && !strings.HasSuffix(lines[place-1], "\n") {
			lines[place-1] += "\n"
		}
		lines = slices.Insert(lines, place, "#"+encode(line)+"\n")
	}
	if r.isUnkeyed(ctid) {
		for l := range strings.Lines(string(rest)) {
			if note, ok := noteOf(l); ok && isRecordLine(note) && parseRecord(note)[macWord] == "" {
				l = "#" + encode(r.sign(ctid, parseRecord(note))) + "\n"
			}
			lines = append(lines, l)
		}
		rest = nil
	}
	return setMark(append([]byte(strings.Join(lines, "")), rest...), appliedMark, record.scripts())
}

// rewriteNotes returns the text of a configuration file with these notes, beside
// the record, which stays as it is. One that has them already is returned byte
// for byte.
func rewriteNotes(text []byte, notes string) []byte {
	if Notes(ParseConf(text).Description) == notes {
		return text
	}
	head, rest := firstSection(text)
	lines := []string{string(encodeNotes(notes))}
	for l := range strings.Lines(string(head)) {
		if note, isNote := noteOf(l); !isNote || isRecordLine(note) {
			lines = append(lines, l)
		}
	}
	return append([]byte(strings.Join(lines, "")), rest...)
}

// noteOf returns the text of a line of notes.
func noteOf(line string) (note string, ok bool) {
	note, ok = strings.CutPrefix(strings.TrimRight(line, "\r\n"), "#")
	if !ok {
		return "", false
	}
	return decode(note), true
}

// signed notes that the record of container ctid has been signed.
func (r *Records) signed(ctx context.Context, ctid int) error {
	if !r.isUnkeyed(ctid) {
		return nil
	}
	release, err := r.host.lockCluster(ctx, "phx-record")
	if err != nil {
		return err
	}
	defer release()
	now := &Records{host: r.host, path: r.path}
	if err := now.load(); err != nil {
		return err
	}
	now.unkeyed = slices.DeleteFunc(now.unkeyed, func(id int) bool { return id == ctid })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unkeyed = now.unkeyed
	return now.save()
}

// recordLines splits a description into the user's own lines and those of a
// record.
func recordLines(description string) (notes, record []string) {
	for line := range strings.Lines(description) {
		line = strings.TrimRight(line, "\n")
		if isRecordLine(line) {
			record = append(record, line)
		} else {
			notes = append(notes, line)
		}
	}
	return notes, record
}

// Notes returns a description without the record.
func Notes(description string) string {
	notes, _ := recordLines(description)
	return strings.Join(notes, "\n")
}

// encodeNotes returns a description as the lines of a configuration file.
func encodeNotes(description string) []byte {
	var b strings.Builder
	for line := range strings.Lines(description) {
		b.WriteString("#" + encode(strings.TrimRight(line, "\n")) + "\n")
	}
	return []byte(b.String())
}

// hasRecordLine reports whether notes have a line that would be taken for that of
// a record.
func hasRecordLine(notes string) bool {
	_, record := recordLines(notes)
	return len(record) > 0
}

func isRecordLine(line string) bool {
	return strings.HasPrefix(strings.TrimSpace(line), recordPrefix)
}

func parseRecord(line string) Record {
	r := Record{}
	for _, word := range strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), recordPrefix)) {
		if name, hash, ok := strings.Cut(word, "="); ok {
			r[name] = hash
		}
	}
	return r
}

// Hash returns the hash of parts that a record holds, in 12 hexadecimal digits.
// It changes with any part and with their order.
func Hash(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		sum := sha256.Sum256(p)
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// HashList returns the hashes of texts as a word of a record that is a list.
func HashList(texts []string) string {
	hashes := make([]string, len(texts))
	for i, t := range texts {
		hashes[i] = Hash([]byte(t))
	}
	return strings.Join(hashes, ",")
}

// Hashes are the elements of a word of a record that is a list, mostly of hashes.
type Hashes map[string]bool

// Hashes returns the elements of a word.
func (r Record) Hashes(word string) Hashes {
	hashes := Hashes{}
	for _, h := range strings.FieldsFunc(r[word], isComma) {
		hashes[h] = true
	}
	return hashes
}

// Has reports whether the hash of a text is among h.
//
// Lists used to have the first 6 digits of another hash, which still count:
// with unknown ones, a volume that was lost would be allocated again, and what
// phx has written and is not wanted any more would stay.
func (h Hashes) Has(text string) bool {
	former := sha256.Sum256([]byte(text))
	return h[Hash([]byte(text))] || h[hex.EncodeToString(former[:3])]
}
