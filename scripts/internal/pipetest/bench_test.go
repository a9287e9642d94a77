package pipetest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/scripts/internal/configtest"
)

// scripts/bench runs these and makes a table of them. A call of the real pct
// takes about as long before it begins.
const delay = "PHX_LAB_DELAY=0.55"

// benchHost makes a host in a directory of its own.
func benchHost(b *testing.B) (dir string) {
	dir = b.TempDir()
	if err := makeHost(dir); err != nil {
		b.Fatal(err)
	}
	return dir
}

// onHost is a command line on a host, with additions to the environment.
func onHost(dir, line string, env ...string) *exec.Cmd {
	cmd := exec.Command("bash", "-o", "pipefail", "-c", line)
	cmd.Dir = dir
	cmd.Env = os.Environ()
	for name, value := range environment(dir) {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// shell runs a command line on a host, with additions to the environment.
func shell(b *testing.B, dir, line string, env ...string) {
	if out, err := onHost(dir, line, env...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// reportCalls reports the calls of pct by sub-command, and those of lxc-attach,
// from the logs that a number of equal runs have left on a host.
func reportCalls(b *testing.B, dir string, runs int) {
	calls := map[string]int{"calls": 0}
	for _, name := range []string{"pct", "attach"} {
		log, err := os.ReadFile(filepath.Join(dir, "host/log", name+".log"))
		if err != nil && !os.IsNotExist(err) {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			if name == "attach" {
				calls["lxc-attach"]++
				continue
			}
			fields := strings.SplitN(strings.TrimSpace(line), "\t", 4)
			verb, _, _ := strings.Cut(fields[3], " ")
			calls[verb]++
			calls["calls"]++
		}
	}
	for verb, n := range calls {
		b.ReportMetric(float64(n)/float64(runs), verb)
	}
}

// ways are those into a container: see --attach.
var ways = []string{"pct", "direct"}

// BenchmarkPipe is phoenix with the shipped configuration: four containers.
func BenchmarkPipe(b *testing.B) {
	for _, way := range ways {
		b.Run("first/"+way, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				dir := benchHost(b)
				b.StartTimer()
				shell(b, dir, "phoenix >events", delay, "PHX_ATTACH="+way)
				b.StopTimer()
				reportCalls(b, dir, 1)
				b.Log(criticalPath(b, dir))
				b.StartTimer()
			}
		})
	}
	for _, way := range ways {
		b.Run("second/"+way, func(b *testing.B) {
			dir := benchHost(b)
			shell(b, dir, "phoenix && rm -r host/log")
			for b.Loop() {
				shell(b, dir, "phoenix", delay, "PHX_ATTACH="+way)
			}
			reportCalls(b, dir, b.N)
		})
	}
}

// What phoenix-view's page has of the critical path: the steps, and the stages in the
// time line as a table.
var (
	stepRE = regexp.MustCompile(`(?m)^<li>(?:<span class="soft">after .*?: </span>)?` +
		`<a href="#ct-(\d+)">\d+</a> <bdi>(.*?)</bdi>, (\S+): (.*?) <span class="soft">\(from (.*?)\)</span></li>$`)
	stageRE = regexp.MustCompile(`(?m)^<tr><td class="name"><a href="#ct-(\d+)">.*?</td><td>(.*?)</td>` +
		`<td><bdi>(.*?)</bdi></td><td class="number">.*?</td><td class="number">(.*?)</td>` +
		`<td>.*?</td><td>yes</td></tr>$`)
)

// criticalPath returns the critical path of the run of which the file events in
// dir has the events, a step a line, with the stages that took some time.
func criticalPath(b *testing.B, dir string) string {
	shell(b, dir, "phoenix-view --html page.html events")
	page, err := os.ReadFile(filepath.Join(dir, "page.html"))
	if err != nil {
		b.Fatal(err)
	}
	stages := map[string][]string{} // by container and program
	for _, m := range stageRE.FindAllStringSubmatch(string(page), -1) {
		if took := m[4]; took != "0.0 s" {
			stages[m[1]+m[2]] = append(stages[m[1]+m[2]], m[3]+" "+took)
		}
	}
	steps := stepRE.FindAllStringSubmatch(string(page), -1)
	if len(steps) == 0 || len(stages) == 0 {
		b.Fatal("phoenix-view's page has no critical path, or another form than it had")
	}
	lines := []string{"critical path:"}
	for _, m := range steps {
		ctid, name, program, took, from := m[1], m[2], m[3], m[4], m[5]
		lines = append(lines, fmt.Sprintf("from %s: %s %s, %s, %s: %s", from, ctid, name, program, took,
			strings.Join(stages[ctid+program], ", ")))
	}
	return strings.Join(lines, "\n")
}

// BenchmarkUnchanged is phoenix where nothing is to be changed: the shipped
// containers, and as many generated ones as make n, without health checks and with
// one each.
func BenchmarkUnchanged(b *testing.B) {
	for _, n := range []int{4, 100, 1_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			dir := benchHost(b)
			configure(b, dir, n, false)
			shell(b, dir, "phoenix", "PHX_JOBS=16")
			for _, checks := range []bool{false, true} {
				configure(b, dir, n, checks)
				for _, way := range ways {
					b.Run(fmt.Sprintf("%s/%s", map[bool]string{false: "no-checks", true: "checks"}[checks], way),
						func(b *testing.B) { unchanged(b, dir, way) })
				}
			}
		})
	}
}

// configure writes the configuration of n containers.
func configure(b *testing.B, dir string, n int, checks bool) {
	path := filepath.Join(dir, "phoenix_lxc_configs.json")
	text, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	var file struct {
		Containers map[string]map[string]any `json:"lxc_configs"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		b.Fatal(err)
	}
	if missing := n - len(file.Containers); missing > 0 {
		if err := json.Unmarshal(configtest.File(missing, "fan"), &file); err != nil { // which adds them
			b.Fatal(err)
		}
	}
	for _, c := range file.Containers {
		delete(c, "health_check")
		if checks {
			c["health_check"] = map[string]any{"command": "/bin/true"}
		}
	}
	if text, err = json.MarshalIndent(file, "", "  "); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		b.Fatal(err)
	}
}

// unchanged runs phoenix on a host on which there is nothing to change.
func unchanged(b *testing.B, dir, way string) {
	if err := os.RemoveAll(filepath.Join(dir, "host/log")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var stdout bytes.Buffer
		cmd := onHost(dir, "exec phoenix", delay, "PHX_ATTACH="+way)
		cmd.Stdout = &stdout
		memory := map[string]float64{}
		follow(b, cmd, 5*time.Millisecond, func() { peaks(cmd.Process.Pid, memory) })
		if bytes.Contains(stdout.Bytes(), []byte(`"changed":true`)) {
			b.Fatalf("it has changed something:\n%s", &stdout)
		}
		largest, sum := 0.0, 0.0
		for _, mib := range memory {
			largest, sum = max(largest, mib), sum+mib
		}
		b.ReportMetric(largest, "MiB")
		b.ReportMetric(sum, "MiB-in-all")
	}
	reportCalls(b, dir, b.N)
}

// peaks notes the most memory, in MiB, that phx's programs have had so far among
// the processes that the process pid has started.
func peaks(pid int, memory map[string]float64) {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	for _, word := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			continue
		}
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child))
		if name := strings.TrimSpace(string(comm)); strings.HasPrefix(name, "phx-") {
			memory[name] = max(memory[name], highWater(child))
		} else {
			peaks(child, memory)
		}
	}
}

// BenchmarkClones makes clones of one template, so many at a time.
func BenchmarkClones(b *testing.B) {
	for _, n := range []int{1, 10, 50} {
		for _, jobs := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("%d/jobs=%d", n, jobs), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					dir := benchHost(b)
					if err := os.WriteFile(filepath.Join(dir, "phoenix_lxc_configs.json"), configtest.File(n+1, "fan"),
						0o644); err != nil {
						b.Fatal(err)
					}
					shell(b, dir, fmt.Sprintf("phx-plan %d | phx-lxc && rm host/log/pct.log", configtest.First))
					b.StartTimer()
					shell(b, dir, "phx-plan | phx-lxc", delay, fmt.Sprintf("PHX_JOBS=%d", jobs))
					b.StopTimer()
					reportCalls(b, dir, 1)
					b.StartTimer()
				}
			})
		}
	}
}

// BenchmarkPlan is phx-plan as a process, from its start to its end.
func BenchmarkPlan(b *testing.B) {
	for _, shape := range []string{"chain", "fan"} {
		for _, n := range []int{10, 1_000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", shape, n), func(b *testing.B) {
				file := filepath.Join(b.TempDir(), "f.json")
				if err := os.WriteFile(file, configtest.File(n, shape), 0o600); err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					b.ReportMetric(peak(b, exec.Command(filepath.Join(bin, "phx-plan"), "--config", file)), "MiB")
				}
			})
		}
	}
}

// BenchmarkFilter passes foreign lines through a filter.
func BenchmarkFilter(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		stream := filepath.Join(b.TempDir(), "events")
		if err := writeForeign(stream, n); err != nil {
			b.Fatal(err)
		}
		for _, program := range []string{"phx-fingerprint", "phx-lxc"} {
			b.Run(fmt.Sprintf("%s/%d", program, n), func(b *testing.B) {
				for b.Loop() {
					in, err := os.Open(stream)
					if err != nil {
						b.Fatal(err)
					}
					defer in.Close()
					cmd := exec.Command(filepath.Join(bin, program))
					cmd.Stdin = in
					b.ReportMetric(peak(b, cmd), "MiB")
				}
				b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "lines/s")
			})
		}
	}
}

func writeForeign(name string, n int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for i := range n {
		fmt.Fprintf(w, `{"event":"backup.progress","time":"2026-01-02T03:04:05.678Z",`+
			`"ctid":103,"file":"/var/lib/x/%d"}`+"\n", i)
	}
	w.WriteString(`{"event":"plan.done","time":"2026-01-02T03:04:05.678Z","round":"1","count":0}` + "\n")
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// peak runs a program to its end, its output to nowhere, and returns the most
// memory that it had at once, in MiB. Linux counts the memory of whoever
// started it into a process's resource usage, so that would not do.
func peak(b *testing.B, cmd *exec.Cmd) (mib float64) {
	follow(b, cmd, 2*time.Millisecond, func() { mib = max(mib, highWater(cmd.Process.Pid)) })
	return mib
}

// follow runs a command to its end, and calls look at intervals meanwhile.
func follow(b *testing.B, cmd *exec.Cmd, interval time.Duration, look func()) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				b.Fatalf("%v: %v\n%s", cmd, err, &stderr)
			}
			return
		case <-time.After(interval):
			look()
		}
	}
}

// highWater is the most memory that a process has had so far, in MiB.
func highWater(pid int) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "VmHWM:" {
			kib, _ := strconv.Atoi(fields[1])
			return float64(kib) / 1024
		}
	}
	return 0
}
