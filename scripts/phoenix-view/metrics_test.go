package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// parsed reads a file of metrics as Prometheus does. The keys are as in
// `name{label="value"}`.
func parsed(t *testing.T, text []byte) map[string]float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	values := map[string]float64{}
	for name, f := range families {
		if f.GetHelp() == "" || f.GetType() != dto.MetricType_GAUGE || !strings.HasPrefix(name, "phx_") {
			t.Errorf("%s: help %q, type %v", name, f.GetHelp(), f.GetType())
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := name + "{" + strings.Join(labels, ",") + "}"
			if _, twice := values[key]; twice {
				t.Errorf("%s is there twice", key)
			}
			values[key] = m.GetGauge().GetValue()
		}
	}
	return values
}

// after returns the metrics after runs, one after the other, which begin with what
// the file at path has.
func after(t *testing.T, path string, scripts ...*script) map[string]float64 {
	t.Helper()
	for _, s := range scripts {
		if err := writeMetrics(path, s.run(t), s.now); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parsed(t, text)
}

func check(t *testing.T, got map[string]float64, want map[string]float64) {
	t.Helper()
	for key, value := range want {
		switch v, ok := got[key]; {
		case value == absent && ok:
			t.Errorf("%s is %v, and should not be there", key, v)
		case value != absent && !ok:
			t.Errorf("%s is not there", key)
		case value != absent && v != value:
			t.Errorf("%s is %v, want %v", key, v, value)
		}
	}
}

const absent = -12345

func TestMetrics(t *testing.T) {
	const certificate = "phx_certificate_not_after_timestamp_seconds"
	date := func(year int, month time.Month, day, hour, minute, second int) float64 {
		return float64(time.Date(year, month, day, hour, minute, second, 0, time.UTC).Unix())
	}
	path := filepath.Join(t.TempDir(), "phx.prom")
	at := newScript().now
	seconds := func(d float64) float64 { return float64(at.UnixMilli())/1000 + d }
	first := manyContainers(14)
	end := unixSeconds(first.run(t).end)
	got := after(t, path, first)
	check(t, got, map[string]float64{
		`phx_last_run_timestamp_seconds{kind="run"}`:                               end,
		`phx_last_success_timestamp_seconds{kind="run"}`:                           absent,
		`phx_last_run_success{kind="run"}`:                                         0,
		`phx_last_run_exit_status{kind="run"}`:                                     absent,
		`phx_last_run_containers{kind="run",result="changed"}`:                     11,
		`phx_last_run_containers{kind="run",result="unchanged"}`:                   1,
		`phx_last_run_containers{kind="run",result="failed"}`:                      1,
		`phx_last_run_containers{kind="run",result="skipped"}`:                     1,
		`phx_last_run_containers{kind="run",result="unfinished"}`:                  0,
		`phx_last_run_warnings{kind="run"}`:                                        1,
		`phx_last_run_changes{kind="run"}`:                                         11*3 + 3,
		`phx_container_restart_required{ctid="203",name="build-1"}`:                1,
		`phx_container_drift{ctid="203",name="build-1"}`:                           0,
		`phx_container_drift{ctid="206",name="db-2"}`:                              absent,
		`phx_container_firewall_not_in_force{ctid="101",name="Nginx-Phoenix"}`:     0,
		`phx_certificate_valid{name="*.internal.thinkheads.ai",service="gateway"}`: absent,
		`phx_certificate_valid{service="gateway",name="*.internal.thinkheads.ai"}`: 1,
		`phx_root_not_after_timestamp_seconds{sha256="` + rootSHA + `"}`:           date(2035, 12, 31, 15, 4, 12),
		certificate + `{service="proxy",name="ca.internal.thinkheads.ai"}`:         seconds(24*3600 + 22),
	})

	// Of a second run that is well, and a third one that is cut short, the success stays.
	well := manyContainers(4)
	well.say(40, "run.ended", "status", 0)
	short := newScript()
	short.now = well.now.Add(time.Hour)
	short.say(0, "plan.started", "action", "create", "order", []int{101}, "gateway", place_(101), "proxy", place_(102))
	short.say(1, "ct.stage", "ctid", 101, "program", "phx-lxc", "stage", "configure")
	got = after(t, path, well, short)
	check(t, got, map[string]float64{
		`phx_last_success_timestamp_seconds{kind="run"}`:                           seconds(40),
		`phx_last_run_timestamp_seconds{kind="run"}`:                               seconds(3601),
		`phx_last_run_duration_seconds{kind="run"}`:                                1,
		`phx_last_run_success{kind="run"}`:                                         0,
		`phx_last_run_exit_status{kind="run"}`:                                     absent,
		`phx_last_run_containers{kind="run",result="unfinished"}`:                  1,
		`phx_container_restart_required{ctid="203",name="build-1"}`:                1, // of the first run
		`phx_certificate_valid{service="gateway",name="*.internal.thinkheads.ai"}`: 1,
	})

	// The action status says more of drift and certificates, and leaves what is said of runs.
	got = after(t, path, pages()["status"])
	check(t, got, map[string]float64{
		`phx_last_success_timestamp_seconds{kind="run"}`:                          seconds(40),
		`phx_last_run_success{kind="status"}`:                                     0,
		`phx_last_run_containers{kind="status",result="differs"}`:                 1,
		`phx_last_run_containers{kind="status",result="failed"}`:                  2,
		`phx_last_run_containers{kind="status",result="unchanged"}`:               1,
		`phx_container_drift{ctid="101",name="Nginx-Phoenix"}`:                    1,
		`phx_container_drift{ctid="103",name="Step-CA"}`:                          1,
		`phx_container_drift{ctid="900",name="Copy-Base"}`:                        0,
		`phx_container_restart_required{ctid="101",name="Nginx-Phoenix"}`:         1,
		`phx_container_firewall_not_in_force{ctid="102",name="Traefik-Internal"}`: 1,
		`phx_container_restart_required{ctid="203",name="build-1"}`:               1,
		`phx_certificate_valid{service="proxy",name="ca.internal.thinkheads.ai"}`: 0,
		`phx_root_not_after_timestamp_seconds{sha256="` + rootSHA + `"}`:          date(2026, 2, 1, 0, 0, 0),
	})

	// A dry run knows the drift, and nothing of restarts; a check of neither.
	got = after(t, path, pages()["dry-run"], pages()["check"])
	check(t, got, map[string]float64{
		`phx_last_run_success{kind="dry-run"}`:                            1,
		`phx_last_run_success{kind="check"}`:                              0,
		`phx_last_run_check_points{kind="check",result="failed"}`:         1,
		`phx_last_run_check_points{kind="check",result="ok"}`:             1,
		`phx_last_run_containers{kind="check",result="unfinished"}`:       absent,
		`phx_container_drift{ctid="102",name="Traefik-Internal"}`:         0,
		`phx_container_restart_required{ctid="101",name="Nginx-Phoenix"}`: 1,
	})

	// What is destroyed has no metrics, and neither has what nobody has told of for long.
	gone := newScript()
	gone.now = at.Add(29 * 24 * time.Hour)
	gone.say(0, "plan.started", "action", "delete", "order", []int{203})
	gone.say(1, "ct.removed", "ctid", 203, "name", "build-1", "changed", true)
	gone.say(1, "plan.done")
	got = after(t, path, gone)
	check(t, got, map[string]float64{
		`phx_container_restart_required{ctid="203",name="build-1"}`:                absent,
		`phx_container_observed_timestamp_seconds{ctid="203",name="build-1"}`:      absent,
		`phx_container_drift{ctid="900",name="Copy-Base"}`:                         0,
		`phx_certificate_valid{service="gateway",name="*.internal.thinkheads.ai"}`: absent, // the plan has no gateway
	})
	gone.now = at.Add(31 * 24 * time.Hour)
	gone.say(0, "plan.started", "action", "delete", "order", []int{})
	gone.say(1, "plan.done")
	got = after(t, path, gone)
	check(t, got, map[string]float64{`phx_container_drift{ctid="900",name="Copy-Base"}`: absent})
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("%v: mode %v", err, info.Mode())
	}
}

// TestMetricsOfNothing: a run of which no event has come, because the configuration
// is wrong, is one that has failed now.
func TestMetricsOfNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "phx.prom")
	now := time.Unix(1800000000, 0)
	r := newRun()
	if err := writeMetrics(path, r, now); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(path)
	check(t, parsed(t, text), map[string]float64{
		`phx_last_run_timestamp_seconds{kind="run"}`:     1800000000,
		`phx_last_run_success{kind="run"}`:               0,
		`phx_last_run_duration_seconds{kind="run"}`:      0,
		`phx_last_success_timestamp_seconds{kind="run"}`: absent,
	})
}

// TestMetricsOfHostileEvents: whatever events say, Prometheus can read the file, now
// and after the next run.
func TestMetricsOfHostileEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "phx.prom")
	s := newScript()
	for _, name := range []string{"a\"b", `a\`, `a\n`, "a\nb", "a\"} 1\nphx_evil 1\n", "{}", ""} {
		s.say(1, "plan.started", "order", []int{101}, "gateway", place_(101))
		s.say(1, "ct.ready", "ctid", 101, "name", name, "changed", false)
		s.say(2, "nginx.ready", "ctid", 101, "certificates", certificates(name, name, "x"+name))
		got := after(t, path, s)
		again := after(t, path, s)
		if len(got) != len(again) || len(got) < 10 {
			t.Errorf("%q: %d metrics, then %d", name, len(got), len(again))
		}
		for key := range got {
			if strings.HasPrefix(key, "phx_evil") {
				t.Errorf("%q makes %s", name, key)
			}
		}
	}
	after(t, path, hostile(), hostile())
}

// TestMetricsFileBefore: what stands in the file before is kept only as far as
// phoenix-view can have written it; a file of another kind is left alone.
func TestMetricsFileBefore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "phx.prom")
	for _, text := range []string{
		"\x00\xff garbage\n", strings.Repeat("x", maxMetrics+2), "phx_evil{a=\"b\"} 1\n",
		"phx_container_drift{name=\"x\"} 1\n",
		"phx_container_drift{ctid=\"1\",name=\"x\"} NaN\nphx_container_drift{ctid=\"1\",name=\"x\"} 0x1p-2\n",
		"phx_last_run_success{kind=\"\xff\"} 1\n", "phx_last_run_success{kind=\"run\"} 1e999\n",
		"phx_last_run_success{kind=\"run\"} 1\nphx_last_run_success{kind=\"run\"} 0\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := after(t, path, manyContainers(4))
		for key := range got {
			if strings.Contains(key, "evil") || strings.Contains(key, `ctid="1"`) || strings.Contains(key, "\ufffd") {
				t.Errorf("%.40q: %s is kept", text, key)
			}
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("files left: %v", files)
	}
	if err := writeMetrics(dir, manyContainers(4).run(t), time.Now()); err == nil {
		t.Error("a directory is written to")
	}
	for _, wrong := range []string{"/dev/null", "/proc/self/fd"} {
		if err := writeMetrics(wrong, manyContainers(4).run(t), time.Now()); err == nil {
			t.Errorf("%s is written to", wrong)
		}
	}
}

// TestMetricsAreDocumented: docs/watching.md has each metric with its labels and its
// meaning, in the order of the file.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/watching.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range families {
		want = append(want, fmt.Sprintf("| `%s` | `%s` | %s |",
			f.name, strings.Join(f.labels, "`, `"), strings.TrimSuffix(f.help, ".")))
	}
	got := regexp.MustCompile("(?m)^\\| `phx_.*$").FindAllString(string(text), -1)
	if !slices.Equal(got, want) {
		t.Errorf("docs/watching.md has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
