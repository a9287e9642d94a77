package config

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// A Kind is what phx does with a key.
type Kind int

// The kinds, in the order in which people want to know of them.
const (
	ActedOn    Kind = iota
	ForScripts      // passed on to scripts, and otherwise over
	PassedOver
	Unknown
)

// A Use is what phx does with a key that a file has.
type Use struct {
	Key    string // of containers; of the outermost object where CTIDs is nil
	Kind   Kind
	Does   string // for people
	CTIDs  []int  // the containers that have it, ascending
	Before string // how the scripts before phx differed, for a value that the file has; "" where they did not
	Now    string // what phx does there
}

// An Explanation is what phx does with each key of a file.
type Explanation struct {
	File     *File  // what is right; nil as in [Error.Rest]
	IDs      []int  // the containers that are explained, in ascending order; none when the file is not JSON
	Uses     []Use  // those of containers, in the order of the documentation, then the outermost ones
	Wrong    *Error // nil without mistakes
	Warnings []Mistake
	More     int // warnings beside these
}

// Explain reads the file at path as [LoadOn] does, and explains it. ids are the
// containers to explain, all without any. The error is for a file that could not
// be read, not for one with mistakes.
func Explain(path string, host *Host, ids []int) (*Explanation, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	x := &Explanation{}
	x.File, err = newParser(text, host).file(path, host != nil)
	if errors.As(err, &x.Wrong) {
		x.File, x.Warnings, x.More = x.Wrong.Rest, x.Wrong.Warnings, x.Wrong.MoreWarnings
	} else if err != nil {
		return nil, err
	} else {
		x.Warnings, x.More = x.File.Warnings, x.File.More
	}
	if _, msg := syntax(text); msg == "" {
		x.read(gjson.Parse(text), ids)
	}
	return x, nil
}

// read collects the keys of the containers with these ids, of all without any.
func (x *Explanation) read(root gjson.Result, ids []int) {
	uses := map[string]*Use{}
	var outer []Use
	root.ForEach(func(k, v gjson.Result) bool {
		key := k.String()
		if key != "lxc_configs" {
			outer = append(outer, outermost(key))
			return true
		}
		v.ForEach(func(k, v gjson.Result) bool {
			id, err := ParseCTID(k.String())
			if err != nil || len(ids) > 0 && !slices.Contains(ids, id) {
				return true
			}
			x.IDs = append(x.IDs, id)
			if !v.IsObject() {
				return true
			}
			v.ForEach(func(k, v gjson.Result) bool {
				u := uses[k.String()]
				if u == nil {
					u = useOf(k.String())
					uses[u.Key] = u
				}
				u.CTIDs = append(u.CTIDs, id)
				if f := foreign(u.Key); f != nil && f.warning != "" && asks(v) {
					u.Does = f.warning
				}
				if d := differs(u.Key, v); d != nil && u.Before == "" {
					u.Before, u.Now = d.before, d.now
				}
				return true
			})
			return true
		})
		return true
	})
	slices.Sort(x.IDs)
	x.IDs = slices.Compact(x.IDs)
	place := map[string]int{}
	for i, k := range containerKeys {
		place[k.name] = i - len(containerKeys)
	}
	for _, u := range uses {
		slices.Sort(u.CTIDs)
		u.CTIDs = slices.Compact(u.CTIDs)
		x.Uses = append(x.Uses, *u)
	}
	slices.SortFunc(x.Uses, func(a, b Use) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(place[a.Key], place[b.Key]),
			strings.Compare(a.Key, b.Key))
	})
	x.Uses = append(x.Uses, outer...)
}

// useOf returns what phx does with a key of a container.
func useOf(key string) *Use {
	if k := keyByName[key]; k != nil {
		u := &Use{Key: key, Kind: ActedOn, Does: k.does}
		if k.takes == atStart {
			u.Does += ", from the next start"
		}
		return u
	}
	switch k := foreign(key); {
	case k == nil:
		u := &Use{Key: key, Kind: Unknown, Does: "nothing is done with it"}
		if meant := meantKey(key); meant != "" {
			u.Does += ": is " + meant + " meant?"
		}
		return u
	case k.scripts:
		return &Use{Key: key, Kind: ForScripts, Does: k.why}
	default:
		return &Use{Key: key, Kind: PassedOver, Does: k.why}
	}
}

// What phx does with the keys beside lxc_configs.
const (
	servicesDo    = "what neither a container nor a virtual machine serves, to be reached through the proxy"
	dashboardDoes = "Traefik's dashboard, for the clients that it names"
)

// outermost returns what phx does with a key beside lxc_configs.
func outermost(key string) Use {
	k := foreign(key)
	switch {
	case key == "services":
		return Use{Key: key, Kind: ActedOn, Does: servicesDo}
	case key == "dashboard":
		return Use{Key: key, Kind: ActedOn, Does: dashboardDoes}
	case keyByName[key] != nil:
		return Use{Key: key, Kind: PassedOver, Does: "no default for containers: each needs it in its own object",
			Before: "a container without this key had it from here", Now: "each container has only its own keys"}
	case k != nil && k.scripts:
		return Use{Key: key, Kind: ForScripts, Does: k.why}
	case k != nil:
		return Use{Key: key, Kind: PassedOver, Does: k.why}
	}
	return Use{Key: key, Kind: PassedOver, Does: "another program's: phx does not read it"}
}

// A difference is what phx does on purpose otherwise than the shell scripts that
// it replaces, with a key of a container.
type difference struct {
	key   string
	value func(gjson.Result) bool // for which values; nil for all
	text  string                  // what these are, for people; "" for all

	before, now string // what the scripts did, and what phx does
}

var differences = []difference{
	{key: "is_template", before: "pct template at the end of its creation",
		now: "the last step, when all has been applied and is healthy; a later change of it is told, and not done"},
	{key: "swap_mb", before: "it was never read", now: "it is set"},
	{key: "storage_size_gb", before: "pct resize in every run, and a failed run with a smaller one",
		now: "pct resize where the disk is smaller; a smaller size is refused before anything is changed"},
	{key: "network_config", before: "the container was stopped, and net0 written anew",
		now: "what differs is set; what was added by hand stays"},
	{key: "secondary_network_config", before: "where it was missing, net1 was deleted",
		now: "an interface that the file does not have stays, unless phx has made it"},
	{key: "unprivileged", before: "pct set --unprivileged on clones, which pct refuses",
		now: "a clone has that of its source; another one is refused with the reason"},
	{key: "boot_order", before: "without it, an order without a number", now: "without it, the order stays"},
	{key: "lxc_options", before: "lines with blanks were torn apart, and some were added again in every run",
		now: "each is one line, once; those that were doubled are repaired"},
	{key: "apparmor_profile", value: func(v gjson.Result) bool { return v.Str == "unconfined" }, text: "unconfined",
		before: "no profile line, so that Proxmox VE's own profile stayed",
		now: "the same: AppArmor is off only where lxc_options have lxc.apparmor.profile=unconfined, too, " +
			"as such a line is there to be kept"},
	{key: "id_maps", before: "whatever it said, it was 0 100000 65536",
		now: "what it says; ids given as objects are cut out of that map, and the host must let root map them"},
	{key: "zfs_volumes", before: "known by the number of the mount point, so that one could be allocated again",
		now: "each is known by its mount point, allocated once, and never replaced by an empty one"},
	{key: "volumes", before: "known by the number of the mount point, so that one could be allocated again",
		now: "each is known by its mount point, allocated once, and never replaced by an empty one"},
	{key: "mount_points", before: "added again in every run",
		now: "each once; those that were doubled are taken away at the next start"},
	{key: "firewall", before: "rules were written, and no firewall was ever in force",
		now: "it is in force on containers that phx makes; on one that was there before only with " +
			"--enforce-firewall, and the run says what that would cut off"},
	{key: "features", before: "each script in every run, in a container that was stopped and started for it",
		now: "once, and again when the script or what it reads changes; on a container that phx has never worked " +
			"on, scripts of before are taken as done, unless --rerun is given"},
	{key: "application_script", before: "in every run, twice in 101",
		now: "once, and again when the script or what it reads changes; on a container that phx has never worked " +
			"on, one of before is taken as done, unless --rerun is given"},
	{key: "health_check", before: "the newest scripts did not read it",
		now: "it decides whether dependents go on; a program of the installation runs on the host"},
	{key: "health_checks", before: "a shell read script and args",
		now: "no shell reads them: args are words or a list"},
	{key: "enable_lifecycle_snapshots", before: "deleted and taken again in every run",
		now: "each taken once, and none is ever deleted"},
	{key: "template_snapshot_name", before: "the container was left running",
		now: "it is stopped when it is complete, unless start_at_boot is true; one that ran before goes on, " +
			"and is named"},
	{key: "dependencies", before: "one that existed counted as ready, broken or stopped",
		now: "it is brought into its state first; one that fails holds back what needs it"},
	{key: "traefik_service", before: "plain HTTP behind the proxy, and a route to nowhere with dhcp",
		now: "each name has a certificate of the CA, every hop is verified, and what has no fixed address is not " +
			"served"},
}

// differs returns how phx differs from the scripts before in a key with a value,
// or nil.
func differs(key string, v gjson.Result) *difference {
	for i := range differences {
		if d := &differences[i]; d.key == key && (d.value == nil || d.value(v)) {
			return d
		}
	}
	return nil
}
