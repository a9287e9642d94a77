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
	if keyByName[key] != nil {
		return &Use{Key: key, Kind: ActedOn, Does: does[key]}
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

// outermost returns what phx does with a key beside lxc_configs.
func outermost(key string) Use {
	k := foreign(key)
	switch {
	case key == "services":
		return Use{Key: key, Kind: ActedOn,
			Does: "what neither a container nor a virtual machine serves, to be reached through the proxy"}
	case key == "dashboard":
		return Use{Key: key, Kind: ActedOn, Does: "Traefik's dashboard, for the clients that it names"}
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
