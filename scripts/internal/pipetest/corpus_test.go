package pipetest

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// The corpus is testdata/corpus: configurations of the kind that the scripts before
// phx had, each in a directory of its own, and an installation of such scripts.

// A configuration of the corpus is explained, shown by a dry run and brought about by
// one run; a second run and a dry run after it find nothing to do. Names for clients
// can be made of one that has a gateway.
func TestCorpus(t *testing.T) {
	eachOfCorpus(t, func(t *testing.T, h *host) {
		file := h.read("phoenix_hypervisor/etc/phoenix_lxc_configs.json")
		if strings.Contains(file, "phoenix_hypervisor_lxc_101.sh") { // a gateway, to which names can lead
			h.steps(step{"phx-plan --format hosts", 0, false}, step{"phx-plan --format dnsmasq", 0, false})
		}
		h.steps(
			step{"phx-plan --explain", 0, false},
			step{"phoenix --dry-run", 3, false},
			step{"phoenix", 0, true},
			step{"phoenix", 0, false},
			step{"phoenix --dry-run", 0, false},
		)
	})
}

// Containers that the scripts before phx have made, as each configuration of the
// corpus wants them, are taken over as they are, with nothing but a record of it:
// none is made, started, stopped or destroyed, and no script of before runs.
func TestCorpusIsTakenOver(t *testing.T) {
	eachOfCorpus(t, func(t *testing.T, h *host) {
		h.steps(step{"phoenix", 0, true})
		for path, text := range h.containers() {
			var kept strings.Builder
			for line := range strings.Lines(text) {
				// No script of before has put a firewall in force.
				if !strings.HasPrefix(line, "#phx") && !strings.HasPrefix(line, "lxc.group: phx") &&
					line != "enable: 1\n" {
					kept.WriteString(line)
				}
			}
			if err := os.WriteFile(path, []byte(kept.String()), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		for _, of := range []string{"host/pve/priv/phx", "host/log", "ssl/phoenix_ca.crt"} {
			if err := os.RemoveAll(h.path(of)); err != nil {
				t.Fatal(err)
			}
		}
		h.steps(
			step{"phoenix --dry-run", 3, false},
			step{"phoenix", 0, true},
			step{"phoenix", 0, false},
			step{"phoenix --dry-run", 0, false},
		)
		for line := range strings.Lines(h.read("host/log/pct.log")) {
			call := strings.Split(strings.TrimSpace(line), "\t")[3]
			verb, _, _ := strings.Cut(call, " ")
			if verb != "list" && verb != "set" && (verb != "exec" || strings.Contains(call, "nvidia") ||
				strings.Contains(call, "python_api") || strings.Contains(call, "lxc_vllm.sh")) {
				t.Errorf("pct %s", call)
			}
		}
	})
}

// eachOfCorpus runs a test with each configuration of the corpus, on a host of its
// own.
func eachOfCorpus(t *testing.T, test func(*testing.T, *host)) {
	configurations, err := filepath.Glob("testdata/corpus/*/phoenix_lxc_configs.json")
	if err != nil || len(configurations) == 0 {
		t.Fatalf("no configurations: %v", err)
	}
	for _, configuration := range configurations {
		dir := filepath.Dir(configuration)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			test(t, newCorpusHost(t, dir))
		})
	}
}

// A step is a command on a host, with the exit status that it has to have.
type step struct {
	command string
	status  int
	changes bool // whether it has to change containers
}

// steps runs commands one after the other.
func (h *host) steps(steps ...step) {
	h.t.Helper()
	before := h.containers()
	for _, step := range steps {
		stdout, stderr, status := h.command(strings.Fields(step.command)...)
		if status != step.status {
			h.t.Fatalf("%s: status %d, want %d\n%s", step.command, status, step.status, stderr)
		}
		after := h.containers()
		if changed := !maps.Equal(after, before); changed != step.changes {
			h.t.Errorf("%s: containers changed: %t, want %t\n%s%s", step.command, changed, step.changes,
				stdout, stderr)
		}
		// A dry run's events say what would change.
		if status == 0 && !step.changes && strings.Contains(stdout, `"changed":true`) {
			h.t.Errorf("%s: something changed:\n%s%s", step.command, stdout, stderr)
		}
		before = after
	}
}

// newCorpusHost returns a host with the installation of the corpus, and the
// configuration in dir as the installation's own, with the host's directory in the
// place of $WORK.
func newCorpusHost(t *testing.T, dir string) *host {
	t.Helper()
	h := newHost(t)
	installation, err := txtar.ParseFile("testdata/corpus/installation.txtar")
	if err != nil {
		t.Fatal(err)
	}
	const old = "phoenix_hypervisor"
	for _, f := range installation.Files {
		h.program(filepath.Join(old, f.Name), string(f.Data))
	}
	for _, name := range []string{"phoenix_lxc_configs.json", "phoenix_vm_configs.json"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) && name == "phoenix_vm_configs.json" {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		h.write(filepath.Join(old, "etc", name), strings.ReplaceAll(string(text), "$WORK", h.dir))
	}

	// What the scripts call, and what configurations name.
	h.program("bin/pct", "#!/bin/sh\nexec $PHX_PCT \"$@\"\n")
	h.program("bin/qm", "#!/bin/sh\necho \"status: running\"\n")
	h.program("inside", strings.Replace(inside, "feature\\ *)", `*lxc_vllm.sh\ *) cat >/dev/null; echo served ;;
*/health_checks/*) exit 127 ;;
feature\ *)`, 1))
	h.write("host/pve/storage.cfg", h.read("host/pve/storage.cfg")+
		"\ndir: other\n\tpath "+h.path("host/storage/other")+"\n\tcontent rootdir\n")
	for _, ids := range []string{"subuid", "subgid"} {
		h.write(ids, "root:100000:65536\nroot:33:1\nroot:1000:2\n")
	}
	if err := os.Mkdir(h.path("share"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.env = append(h.env,
		"PHX_CONFIG="+h.path(old+"/etc/phoenix_lxc_configs.json"),
		"PHX_SCRIPTS="+h.path("scripts")+":"+h.path(old+"/bin"),
		"PHX_QM="+h.path("bin/qm"))
	return h
}

// program writes a file that can be executed, and the directories above it.
func (h *host) program(name, text string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.write(name, text)
	if err := os.Chmod(h.path(name), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

// command runs a program on the host, and returns what it writes and its exit status.
func (h *host) command(argv ...string) (stdout, stderr string, status int) {
	h.t.Helper()
	cmd := exec.Command("env", argv...) // which looks in the host's PATH
	cmd.Env = h.env
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// containers returns the files of Proxmox VE about containers by their paths: how
// they are configured, and their firewalls.
func (h *host) containers() map[string]string {
	h.t.Helper()
	files := map[string]string{}
	for _, pattern := range []string{"lxc/*.conf", "firewall/*.fw"} {
		paths, err := filepath.Glob(h.path(filepath.Join("host/pve", pattern)))
		if err != nil {
			h.t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				h.t.Fatal(err)
			}
			files[path] = string(text)
		}
	}
	return files
}
