package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
)

// explanation is what --explain prints: a page for people.
type explanation struct {
	*config.Explanation
	path, domain string
	vms          *config.VMFile // nil without one
	vmsWrong     *config.Error  // what is wrong with it
	out          *bufio.Writer
}

// Columns of the page.
const (
	pageWidth = 100
	keyWidth  = 30 // of the left column, its indentation included
)

// explain prints what phx does with the file, with the named containers of it, and
// with that of the virtual machines, which may be missing.
func explain(path, vmPath, domain string, host *config.Host, named []int) error {
	x, err := config.Explain(path, host, named)
	if err != nil {
		return cmdline.Usagef("read the configuration: %v", err)
	}
	for _, id := range named {
		if x.File != nil && !slices.Contains(x.IDs, id) {
			return cmdline.Usagef("%d: not in %s", id, path)
		}
	}
	page := explanation{Explanation: x, path: path, domain: domain, out: bufio.NewWriter(os.Stdout)}
	page.vms, err = config.LoadVMs(x.File, vmPath, domain)
	if !errors.As(err, &page.vmsWrong) && err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cmdline.Usagef("%v", err)
	}
	page.write()
	switch err := page.out.Flush(); {
	case err != nil:
		return fmt.Errorf("write the explanation: %w", err)
	case x.Wrong == nil && page.vmsWrong == nil:
		return nil
	case len(named) > 0 && x.File != nil &&
		!slices.ContainsFunc(named, func(id int) bool { return x.File.Wrong[id] != nil }):
		return nil // as a plan of these
	}
	return cmdline.Status(2)
}

// write writes the page. Every text in it that comes from the file is escaped.
func (x explanation) write() {
	fmt.Fprintf(x.out, "%s:\n", cmdline.Escape(x.path))
	x.wrap("", x.summary(), 0)
	if x.File != nil {
		x.containers()
	}
	x.mistakes()
	x.warnings()
	x.virtualMachines()
	x.differences()
	x.uses(config.ActedOn, "Acted on")
	x.uses(config.ForScripts, "Passed on to scripts, which may read them; phx does nothing with them")
	x.uses(config.PassedOver, "Passed over: nothing is done with them")
	x.uses(config.Unknown, "Not known: misspelt, or for an application script, which may read them")
}

// summary says what the page is about.
func (x explanation) summary() string {
	summary := "what phx does with each key of " + counted(len(x.IDs), "container")
	switch {
	case x.File == nil && len(x.IDs) == 0:
		return "phx can do nothing with it"
	case x.File == nil:
		return summary
	}
	right := func(id int) bool { return x.File.Wrong[id] == nil }
	if wrong := slices.DeleteFunc(slices.Clone(x.IDs), right); len(wrong) > 0 {
		summary += "; refused: " + joinIDs(wrong)
	}
	return summary
}

// containers names the containers and what they are.
func (x explanation) containers() {
	var words []string
	for _, id := range x.IDs {
		c := x.File.Container(id)
		if c == nil {
			continue
		}
		word := strings.TrimSpace(fmt.Sprintf("%d %s", id, c.Name))
		if role := roleOf(c); role != "" {
			word += " (" + role + ")"
		}
		words = append(words, word)
	}
	x.wrap("", shorten(words, 50, ", "), 2)
	x.wrap("", "services are names below "+x.domain+" (--domain)", 2)
	external := map[int][]int{} // by id, who needs it
	for _, id := range x.IDs {
		if c := x.File.Container(id); c != nil {
			for _, other := range c.Dependencies {
				if x.File.Container(other) == nil {
					external[other] = append(external[other], id)
				}
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(external)) {
		x.wrap("", fmt.Sprintf("%d, which %s depends on and the file does not have, has to run, "+
			"unless phx-lxc is told --ignore-external", id, joinIDs(external[id])), 2)
	}
}

// roleOf returns what a container is for phx, "" for one like any other.
func roleOf(c *config.Container) string {
	switch {
	case c.ApplicationScript == config.CAScript:
		return "the CA"
	case c.ApplicationScript == config.GatewayScript:
		return "the gateway"
	case c.ApplicationScript == config.ProxyScript:
		return "the proxy"
	case c.IsTemplate:
		return "a template"
	case c.IsOnlyCloned():
		return "only cloned from"
	}
	return ""
}

// mistakes writes what is refused.
func (x explanation) mistakes() {
	if x.Wrong == nil {
		return
	}
	title := "Refused, at LINE:COLUMN. Nothing is done until these are corrected"
	if x.File != nil {
		title += "; --keep-going does the others"
	}
	if others := x.notes(title, x.Wrong.Mistakes, x.Wrong.More); others > 0 {
		x.head(fmt.Sprintf("Other containers have %s", counted(others, "mistake")))
	}
}

// warnings writes the warnings, but for those of a container's keys that phx does
// not act on, which have parts of their own.
func (x explanation) warnings() {
	elsewhere := map[string]bool{}
	for _, u := range x.Uses {
		elsewhere[u.Key] = u.Kind != config.ActedOn
	}
	warnings := slices.DeleteFunc(slices.Clone(x.Warnings), func(m config.Mistake) bool {
		return elsewhere[noteKey(m.Path).key]
	})
	x.notes("Warnings, at LINE:COLUMN", warnings, x.More)
}

// virtualMachines writes what phx does with the file of the virtual machines.
func (x explanation) virtualMachines() {
	if x.vmsWrong != nil {
		x.notes("Refused in "+x.vmsWrong.File+", at LINE:COLUMN", x.vmsWrong.Mistakes, x.vmsWrong.More)
	}
	if x.vms == nil {
		return
	}
	x.head("Virtual machines: phx touches none of them; with create, start and stop they are left out")
	for _, vm := range x.vms.VMs {
		var served []string
		serve := func(s *config.TraefikService, insecure string) {
			if s != nil && vm.Address.IsValid() {
				served = append(served, fmt.Sprintf("https://%s.%s%s", s.Name, x.domain, verified(s, insecure)))
			}
		}
		serve(vm.Service, "traefik_service.insecure")
		serve(vm.Agent, "portainer_agent_insecure")
		text := cmp.Or(strings.Join(served, "; "), "nothing of it is served")
		x.wrap(strings.TrimSpace(fmt.Sprint(vm.VMID, " ", vm.Name)), text, 2)
	}
	x.notes("Warnings in "+x.vms.Path+", at LINE:COLUMN", x.vms.Warnings, x.vms.More)
}

// verified says what the proxy asks of the certificate behind it, "" where there
// is none; insecure is the key that asks for nothing.
func verified(s *config.TraefikService, insecure string) string {
	switch {
	case s.Scheme == "http":
		return ""
	case s.Insecure:
		return fmt.Sprintf(" (port %d; its certificate is not verified)", s.Port)
	}
	return fmt.Sprintf(" (port %d needs a certificate of the CA, unless %s is true)", s.Port, insecure)
}

// A noted is a place in the file as a page has it: the container, and the key with
// the indices of lists left out.
type noted struct{ container, key string }

var listIndex = regexp.MustCompile(`\.[0-9]+(\.|$)`)

// noteKey splits the path of a mistake.
func noteKey(path string) noted {
	id, key, ok := strings.Cut(strings.TrimPrefix(path, "lxc_configs."), ".")
	switch {
	case !strings.HasPrefix(path, "lxc_configs."):
		return noted{"", path}
	case !ok:
		return noted{id, ""}
	}
	return noted{id, listIndex.ReplaceAllString(key, "[]$1")}
}

// notes writes mistakes or warnings below a title. Those that say the same of the
// same key are one, with all their places. It returns how many are of containers
// that are not explained.
func (x explanation) notes(title string, all []config.Mistake, more int) (others int) {
	type group struct {
		noted
		msg    string
		places []string
	}
	var groups []*group
	for _, m := range all {
		place := noteKey(m.Path)
		if id, err := strconv.Atoi(place.container); err == nil && len(x.IDs) > 0 && !slices.Contains(x.IDs, id) {
			others++
			continue
		}
		at := fmt.Sprintf("%d:%d", m.Line, m.Col)
		if place.container != "" {
			at = place.container + " at " + at
		}
		i := slices.IndexFunc(groups, func(g *group) bool { return g.key == place.key && g.msg == m.Msg })
		if i < 0 {
			groups = append(groups, &group{noted: place, msg: m.Msg})
			i = len(groups) - 1
		}
		groups[i].places = append(groups[i].places, at)
	}
	if len(groups)+more > 0 {
		x.head(title)
	}
	for _, g := range groups {
		x.wrap(cmp.Or(g.key, "all of it"), g.msg+" ("+shorten(g.places, 6, ", ")+")", 2)
	}
	if more > 0 {
		x.wrap("", fmt.Sprintf("and %d more", more), 2)
	}
	return others
}

// uses writes the keys of a kind.
func (x explanation) uses(kind config.Kind, title string) {
	first := true
	for _, u := range x.Uses {
		if u.Kind != kind {
			continue
		}
		if first {
			x.head(title)
			first = false
		}
		does := u.Does
		if u.CTIDs == nil {
			does += " (beside lxc_configs)"
		} else if which := x.which(u.CTIDs); which != "" {
			does += " (" + which + ")"
		}
		x.wrap(u.Key, does, 2)
	}
}

// which returns the ids of some of the containers in words, "" for all.
func (x explanation) which(some []int) string {
	switch others := len(x.IDs) - len(some); {
	case others <= 0:
		return ""
	case others > 3 || len(some) < 5:
		return joinIDs(some)
	}
	var others []int
	for _, id := range x.IDs {
		if _, has := slices.BinarySearch(some, id); !has {
			others = append(others, id)
		}
	}
	return "all but " + joinIDs(others)
}

// differences writes what the scripts before did otherwise with these keys.
func (x explanation) differences() {
	first := true
	for _, u := range x.Uses {
		if u.Now == "" {
			continue
		}
		if first {
			x.head("Other than with the scripts before phx")
			first = false
		}
		x.wrap(u.Key, "before: "+u.Before, 2)
		x.wrap("", "now: "+u.Now, keyWidth)
	}
}

// head writes the title of a part.
func (x explanation) head(title string) {
	x.out.WriteByte('\n')
	x.wrap("", title, 0)
}

// wrap writes a key in the left column and a text in lines of pageWidth beside
// it. Without a key, the text is indented.
func (x explanation) wrap(key, text string, indent int) {
	column := indent
	if key != "" {
		column = keyWidth
	}
	rest := []rune(strings.Join(strings.Fields(cmdline.Escape(text)), " "))
	left := []rune(strings.Repeat(" ", indent) + cmdline.Escape(key))
	if len(left) > pageWidth {
		left = append(left[:pageWidth-1], '…')
	}
	if key != "" && len(left) >= keyWidth {
		fmt.Fprintln(x.out, string(left))
		left = nil
	}
	for first := true; first || len(rest) > 0; first = false {
		line, width := rest, pageWidth-column
		if len(rest) > width {
			line = rest[:width]
			if rest[width] != ' ' { // a word that fits into no line is broken
				if blank := strings.LastIndexByte(string(line), ' '); blank > 0 {
					line = []rune(string(line)[:blank])
				}
			}
		}
		rest = []rune(strings.TrimPrefix(string(rest[len(line):]), " "))
		fmt.Fprintf(x.out, "%-*s%s\n", column, string(left), string(line))
		left = nil
	}
}

// joinIDs returns ids in words, the first of many.
func joinIDs(ids []int) string { return shorten(words(ids), 12, ", ") }
