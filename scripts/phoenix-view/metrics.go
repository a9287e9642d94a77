package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// A family is a metric of the file for Prometheus. All are gauges.
type family struct {
	name   string
	help   string
	labels []string
}

// families are the metrics, in the order of the file. docs/watching.md has the
// same table.
var families = []family{
	{"phx_last_run_timestamp_seconds", "When the last run of the kind ended.", []string{"kind"}},
	{"phx_last_success_timestamp_seconds", "When the last run of the kind that succeeded ended.", []string{"kind"}},
	{"phx_last_run_success", "1 if the last run of the kind came to its end and nothing failed or was skipped.",
		[]string{"kind"}},
	{"phx_last_run_exit_status", "Exit status of phoenix in the last run of the kind, where it is known.",
		[]string{"kind"}},
	{"phx_last_run_duration_seconds", "How long the last run of the kind took.", []string{"kind"}},
	{"phx_last_run_containers", "Containers in the last run of the kind, by what became of them, or differs.",
		[]string{"kind", "result"}},
	{"phx_last_run_changes", "Changes in the last run of the kind.", []string{"kind"}},
	{"phx_last_run_warnings", "Warnings in the last run of the kind.", []string{"kind"}},
	{"phx_last_run_check_points", "Points of the last run of the action check, by result.", []string{"kind", "result"}},
	{"phx_container_observed_timestamp_seconds", "When a run last told how the container is.",
		[]string{"ctid", "name"}},
	{"phx_container_drift", "1 if a run would change the container.", []string{"ctid", "name"}},
	{"phx_container_restart_required", "Options of the container whose values wait for a restart.",
		[]string{"ctid", "name"}},
	{"phx_container_firewall_not_in_force", "1 if the container's firewall is configured and not in force.",
		[]string{"ctid", "name"}},
	{"phx_certificate_not_after_timestamp_seconds", "When the certificate of the name expires, at gateway or proxy.",
		[]string{"service", "name"}},
	{"phx_certificate_valid", "1 if the certificate of the name verified when it was last asked for.",
		[]string{"service", "name"}},
	{"phx_root_not_after_timestamp_seconds", "When the CA's root certificate expires.", []string{"sha256"}},
}

const (
	// maxMetrics is more than a file of ten thousand containers has, in bytes.
	maxMetrics = 16 << 20
	// forgotten is after how long a container of which no run has told anything leaves the file: it may be gone.
	forgotten = 30 * 24 * time.Hour
)

// A sample is a line of the file.
type sample struct {
	family string
	labels string // as in the file, without braces
	value  string
}

// writeMetrics brings the file at path up to date after a run, whole or not at
// all. What the run does not tell, of other kinds of runs and of other
// containers, stays as it was. A run of which no event has come has ended now.
func writeMetrics(path string, r *run, now time.Time) error {
	var old []sample
	err := checkReplaceable(path)
	if err == nil {
		old, err = readMetrics(path)
	}
	if err == nil {
		// In the directory that the collector reads: that takes *.prom, and the temporary file has another name. The
		// collector is another user.
		err = renameio.WriteFile(path, formatMetrics(mergeMetrics(old, r, now)), 0o644,
			renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o644))
	}
	if err != nil {
		return fmt.Errorf("write the metrics %s: %w", path, err)
	}
	return nil
}

// readMetrics returns what the file at path has, nothing if there is none, or if
// it is one that phoenix-view cannot have written.
func readMetrics(path string) ([]sample, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a file: name another one")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxMetrics+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxMetrics {
		return nil, nil
	}
	return parseMetrics(text), nil
}

var sampleForm = regexp.MustCompile(`^(phx_[a-z0-9_]+)\{((?:[a-z0-9]+="(?:[^"\\]|\\[\\"n])*",?)+)\} ([-+.0-9eE]+)$`)

// parseMetrics returns the samples of a file that formatMetrics has made. Other
// lines are left out.
func parseMetrics(text []byte) []sample {
	var all []sample
	for raw := range bytes.Lines(text) {
		m := sampleForm.FindSubmatch(bytes.TrimSuffix(raw, []byte("\n")))
		if m == nil || !utf8.Valid(raw) {
			continue
		}
		s := sample{string(m[1]), string(m[2]), string(m[3])}
		_, err := strconv.ParseFloat(s.value, 64)
		i := slices.IndexFunc(families, func(f family) bool { return f.name == s.family })
		if err != nil || i < 0 || !slices.Equal(labelNames(s.labels), families[i].labels) {
			continue
		}
		all = append(all, s)
	}
	return all
}

var labelForm = regexp.MustCompile(`([a-z0-9]+)="((?:[^"\\]|\\.)*)"`)

func labelNames(labels string) []string {
	var names []string
	for _, m := range labelForm.FindAllStringSubmatch(labels, -1) {
		names = append(names, m[1])
	}
	return names
}

// first returns the value of the first label, as it is in the file.
func (s sample) first() string {
	if m := labelForm.FindStringSubmatch(s.labels); m != nil {
		return m[2]
	}
	return ""
}

var quoteLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// A metrics collects samples.
type metrics []sample

// add adds a sample; values are those of the labels that the family has.
func (m *metrics) add(name string, value float64, values ...string) {
	i := slices.IndexFunc(families, func(f family) bool { return f.name == name })
	var labels []string
	for n, label := range families[i].labels {
		labels = append(labels, label+`="`+quoteLabel.Replace(strings.ToValidUTF8(shownLabel(values[n]), "�"))+`"`)
	}
	*m = append(*m, sample{name, strings.Join(labels, ","), strconv.FormatFloat(value, 'f', -1, 64)})
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// mergeMetrics returns what the file is to have after a run.
func mergeMetrics(old []sample, r *run, now time.Time) []sample {
	var m metrics
	kind := r.kind()
	success := r.ending() == well || r.ending() == different
	end := r.end
	if end.IsZero() {
		end = now
	}
	m.add("phx_last_run_timestamp_seconds", unixSeconds(end), kind)
	if success {
		m.add("phx_last_success_timestamp_seconds", unixSeconds(end), kind)
	}
	m.add("phx_last_run_success", oneIf(success), kind)
	if r.status >= 0 {
		m.add("phx_last_run_exit_status", float64(r.status), kind)
	}
	m.add("phx_last_run_duration_seconds", float64(r.end.Sub(r.start).Milliseconds())/1000, kind)

	tally := map[string]int{"changed": 0, "unchanged": 0, "differs": 0, "failed": 0, "skipped": 0, "unfinished": 0}
	changes := 0
	gone := map[string]bool{kind: true} // also containers by id, gateway and proxy: nothing is kept of them
	for _, id := range r.order {
		c := r.containers[id]
		tally[c.became()]++
		ctid, told := strconv.Itoa(id), (*event)(nil)
		for _, e := range c.results {
			if e.Changed {
				changes += max(1, len(e.Changes)+len(e.Commands)+len(e.Files))
			}
			switch e.Event {
			case "ct.removed":
				gone[ctid], told = true, nil
			case "ct.ready", "ct.status", "ct.preview":
				told = e
			}
			service := parts[writers[e.Event]]
			if (service == "gateway" || service == "proxy") && e.Error == "" {
				gone[service] = true
				m.certificates(service, e)
			}
		}
		if told != nil {
			m.add("phx_container_observed_timestamp_seconds", unixSeconds(end), ctid, c.name)
			m.add("phx_container_drift", oneIf(told.differs()), ctid, c.name)
			if told.Event != "ct.preview" { // which tells neither
				m.add("phx_container_restart_required", float64(len(told.Restart)), ctid, c.name)
				m.add("phx_container_firewall_not_in_force", oneIf(told.NotInForce), ctid, c.name)
			}
		}
	}
	if kind != "check" { // which looks at the host
		for _, result := range slices.Sorted(maps.Keys(tally)) {
			m.add("phx_last_run_containers", float64(tally[result]), kind, result)
		}
	}
	m.add("phx_last_run_changes", float64(changes), kind)
	m.add("phx_last_run_warnings", float64(len(r.warnings)), kind)
	if kind == "check" {
		points := map[string]int{"ok": 0, "warning": 0, "failed": 0, "left out": 0}
		for _, p := range r.points {
			if _, known := points[p.Result]; known {
				points[p.Result]++
			}
		}
		for _, result := range slices.Sorted(maps.Keys(points)) {
			m.add("phx_last_run_check_points", float64(points[result]), kind, result)
		}
	}
	if root := cmp.Or(r.caStatus, r.exported); root != nil && !root.NotAfter.IsZero() {
		m.add("phx_root_not_after_timestamp_seconds", unixSeconds(root.NotAfter), root.SHA256)
	}
	if r.begin != nil {
		gone["gateway"] = gone["gateway"] || r.begin.Gateway == nil
		gone["proxy"] = gone["proxy"] || r.begin.Proxy == nil
	}
	return append(keep(old, m, gone, end), m...)
}

// certificates adds those that a service has, of an event that is no failure. Of
// several events, the last one counts.
func (m *metrics) certificates(service string, e *event) {
	*m = slices.DeleteFunc(*m, func(s sample) bool {
		return strings.HasPrefix(s.family, "phx_certificate_") && s.first() == service
	})
	named := map[string]bool{}
	for _, c := range e.served() {
		if c.Name == "" || named[shownLabel(c.Name)] {
			continue
		}
		named[shownLabel(c.Name)] = true
		if len(e.Certificates) > 0 {
			m.add("phx_certificate_valid", oneIf(c.Error == ""), service, c.Name)
		}
		if !c.NotAfter.IsZero() {
			m.add("phx_certificate_not_after_timestamp_seconds", unixSeconds(c.NotAfter), service, c.Name)
		}
	}
}

// keep returns those of the old samples that m does not replace and that are still
// worth something.
func keep(old []sample, m metrics, gone map[string]bool, now time.Time) []sample {
	type key struct{ family, first string }
	replaced := map[key]bool{}
	for _, s := range m {
		replaced[key{s.family, s.first()}] = true
	}
	long := map[string]bool{} // containers by id
	for _, s := range old {
		if s.family == "phx_container_observed_timestamp_seconds" {
			at, _ := strconv.ParseFloat(s.value, 64)
			long[s.first()] = unixSeconds(now)-at > forgotten.Seconds()
		}
	}
	var kept []sample
	for _, s := range old {
		first := s.first()
		container := strings.HasPrefix(s.family, "phx_container_")
		switch {
		case replaced[key{s.family, first}]:
		case !strings.HasPrefix(s.family, "phx_last_success_") && gone[first]:
		case container && long[first]:
		case s.family == "phx_root_not_after_timestamp_seconds" && slices.ContainsFunc(m, func(n sample) bool {
			return n.family == s.family
		}):
		default:
			kept = append(kept, s)
		}
	}
	return kept
}

// differs reports whether an event of a run that only looks tells that another one
// would change the container.
func (e *event) differs() bool {
	switch e.Event {
	case "ct.status":
		return len(e.Drift) > 0 || e.State == "missing"
	case "ct.preview":
		return e.Changed
	}
	return false
}

// became says what a run has made of a container: changed, unchanged, failed,
// skipped or unfinished, and differs where it has only looked.
func (c *container) became() string {
	switch o := c.outcome(); {
	case o <= working:
		return "unfinished"
	case o <= changed && slices.ContainsFunc(c.results, (*event).differs):
		return "differs"
	default:
		return o.String()
	}
}

// formatMetrics returns the file with these samples: by family, each once.
func formatMetrics(samples []sample) []byte {
	var out bytes.Buffer
	for _, f := range families {
		var rows []string
		written := map[string]bool{}
		for _, s := range samples {
			if s.family == f.name && !written[s.labels] {
				written[s.labels] = true
				rows = append(rows, fmt.Sprintf("%s{%s} %s\n", s.family, s.labels, s.value))
			}
		}
		if len(rows) > 0 {
			slices.Sort(rows)
			fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s gauge\n%s", f.name, f.help, f.name, strings.Join(rows, ""))
		}
	}
	return out.Bytes()
}
