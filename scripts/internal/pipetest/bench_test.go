package pipetest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/scripts/internal/configtest"
)

// scripts/bench runs these and makes a table of them. About half a second is
// what every call of the real pct costs.
const delay = "PHX_LAB_DELAY=0.5"

// benchHost makes a host in a directory of its own.
func benchHost(b *testing.B) (dir string) {
	dir = b.TempDir()
	if err := makeHost(dir); err != nil {
		b.Fatal(err)
	}
	return dir
}

// shell runs a command line on a host, with additions to the environment.
func shell(b *testing.B, dir, line string, env ...string) {
	cmd := exec.Command("bash", "-o", "pipefail", "-c", line)
	cmd.Dir = dir
	cmd.Env = os.Environ()
	for name, value := range environment(dir) {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// reportCalls reports the calls of pct by sub-command, from the log that a
// number of equal runs have left on a host.
func reportCalls(b *testing.B, dir string, runs int) {
	log, err := os.ReadFile(filepath.Join(dir, "host/log/pct.log"))
	if err != nil && !os.IsNotExist(err) {
		b.Fatal(err)
	}
	calls := map[string]int{}
	for line := range strings.Lines(string(log)) {
		fields := strings.SplitN(strings.TrimSpace(line), "\t", 4)
		verb, _, _ := strings.Cut(fields[3], " ")
		calls[verb]++
		calls["calls"]++
	}
	for verb, n := range calls {
		b.ReportMetric(float64(n)/float64(runs), verb)
	}
}

// BenchmarkPipe is phoenix with the shipped configuration: four containers.
func BenchmarkPipe(b *testing.B) {
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			dir := benchHost(b)
			b.StartTimer()
			shell(b, dir, "phoenix", delay)
			b.StopTimer()
			reportCalls(b, dir, 1)
			b.StartTimer()
		}
	})
	b.Run("second", func(b *testing.B) {
		dir := benchHost(b)
		shell(b, dir, "phoenix && rm host/log/pct.log")
		for b.Loop() {
			shell(b, dir, "phoenix", delay)
		}
		reportCalls(b, dir, b.N)
	})
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
			return mib
		case <-time.After(2 * time.Millisecond):
			mib = max(mib, highWater(cmd.Process.Pid))
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
