package pve

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// CheckSubordinate returns an error unless root may map the host's ids of these
// maps, in the form of [IDMapKey], into a container: by the files /etc/subuid and
// /etc/subgid, of which users and groups are the paths. The error has the lines
// that are missing, and why the ids are needed, as in "id_maps asks for".
func CheckSubordinate(maps []string, why, users, groups string) error {
	var all []error
	for _, file := range []struct{ kind, path string }{{"u", users}, {"g", groups}} {
		text, err := readIfThere(file.path)
		if err != nil {
			return fmt.Errorf("maps of ids: %w", err)
		}
		allowed := rootRanges(string(text))
		var missing []string
		for _, m := range maps {
			var inside, first, count int
			if _, err := fmt.Sscanf(m, file.kind+" %d %d %d", &inside, &first, &count); err != nil {
				continue // of the other kind
			}
			line := fmt.Sprintf("root:%d:%d", first, count)
			if !covers(allowed, first, count) && !slices.Contains(missing, line) {
				missing = append(missing, line)
			}
		}
		switch len(missing) {
		case 0:
		case 1:
			all = append(all, remedy.Errorf("add this line to it: "+missing[0],
				"%s does not let root map ids that %s", file.path, why))
		default:
			all = append(all, remedy.Errorf("add these lines to it:\n"+strings.Join(missing, "\n"),
				"%s does not let root map ids that %s", file.path, why))
		}
	}
	return errors.Join(all...)
}

// A subordinate is a range of ids that root may map.
type subordinate struct{ first, count int }

// rootRanges returns root's ranges in the text of such a file, by their first id.
func rootRanges(text string) []subordinate {
	var ranges []subordinate
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 || fields[0] != "root" && fields[0] != "0" {
			continue
		}
		first, err1 := strconv.Atoi(fields[1])
		count, err2 := strconv.Atoi(fields[2])
		if err1 == nil && err2 == nil {
			ranges = append(ranges, subordinate{first, count})
		}
	}
	slices.SortFunc(ranges, func(a, b subordinate) int { return a.first - b.first })
	return ranges
}

// covers reports whether ranges, which are in order, have count ids from first
// on.
func covers(ranges []subordinate, first, count int) bool {
	for _, r := range ranges {
		if end := r.first + r.count; r.first <= first && first < end {
			count -= end - first
			first = end
		}
	}
	return count <= 0
}
