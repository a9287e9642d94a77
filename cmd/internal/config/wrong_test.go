package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestRest: what is right in a file with mistakes is there, and of what is wrong
// it is known what others would have to know of it.
func TestRest(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"a value", `"memory_mb": 2048`, `"memory_mb": "2048"`, "900"},
		{"of what is right, nothing is lost", `"extra": 0`, `"swap_mb": -1`, "103"},
		{"a service", `"port": 9000`, `"port": 0`, "103 service"},
		{"a service that could be read", `"extra": 0`, `"features": 1`, "103"},
		{"the address of a service", `10.0.0.10/24`, `10.0.0.10`, "103 service place"},
		{"the script", `_103.sh"`, `_103 sh"`, "103 place"},
		{"what a container needs", `["103", 1002]`, `["103", "x"]`, "102 needs"},
		{"a clone source that could be read", `"clone_from_ctid": 900`, `"clone_from_ctid": 901`, "102"},
		{"no object", `"extra": 0` + "\n    }", `"extra": 0` + "\n    }, \"104\": 7", "104 needs service place"},
		{"twice, whichever is right", `"102": {`, `"103": {`, "103 needs service place"},
		{"two with one address", `10.0.0.12/24`, `10.0.0.10/24`, "102 103"},
		{"two with one script", `"features": ["base_setup"],`, `"application_script": "` + CAScript + `",`,
			"102 place 103"},
		{"two with one service", `"features": ["base_setup"],`, `"traefik_service": {"name": "ca", "port": 1},`,
			"102 service 103"},
		{"an id that is none", `"extra": 0` + "\n    }", `"extra": 0` + "\n    }, \"x\": 7", ""},
		{"beside the containers", `"nvidia_driver_version": "580.76.05"`, `"a": {"b": 1, "b": 2}`, ""},
		{"all of it", `"lxc_configs"`, `"lxc_config"`, "nothing"},
		{"twice", `"lxc_configs": {`, `"lxc_configs": {}, "lxc_configs": {`, "nothing"},
		{"not JSON", base, base + "}", "nothing"},
		{"more mistakes than are shown", `["base_setup"]`, `[` + strings.Repeat("1,", MaxMistakes) + `1]`, "nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(base, tt.old) != 1 {
				t.Fatalf("%q is %d times in the file", tt.old, strings.Count(base, tt.old))
			}
			_, err := Parse("f.json", []byte(strings.Replace(base, tt.old, tt.new, 1)))
			var wrong *Error
			if !errors.As(err, &wrong) {
				t.Fatal(err)
			}
			if got := wrongText(wrong.Rest); got != tt.want {
				t.Errorf("%q, want %q, for %v", got, tt.want, wrong)
			}
		})
	}
}

// wrongText has the wrong containers of a file, each with what is not known of it.
func wrongText(f *File) string {
	if f == nil {
		return "nothing"
	}
	var words []string
	for _, id := range f.IDs() {
		w := f.Wrong[id]
		if w == nil {
			continue
		}
		words = append(words, fmt.Sprint(id))
		for _, unknown := range []struct {
			is   bool
			what string
		}{{w.NeedsUnknown, "needs"}, {w.ServiceUnknown, "service"}, {w.PlaceUnknown, "place"}} {
			if unknown.is {
				words = append(words, unknown.what)
			}
		}
		if f.Containers[id] != nil || f.Container(id) != w.Container || w.CTID != id || w.Mistake.Msg == "" {
			words = append(words, "BROKEN")
		}
	}
	if n := len(f.Containers) + len(f.Wrong); n != len(f.IDs()) || !slices.IsSorted(f.IDs()) {
		words = append(words, "BROKEN")
	}
	return strings.Join(words, " ")
}
