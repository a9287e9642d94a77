package pipetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The files of an installation of the scripts before phx, but for its
// configuration: feature and application scripts with the functions that they
// share, a health check, and the hypervisor's own configuration.
var oldInstallation = map[string]string{
	"bin/phoenix_hypervisor_common_utils.sh": `
PHOENIX_BASE_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LXC_CONFIG_FILE=$PHOENIX_BASE_DIR/etc/phoenix_lxc_configs.json
[ -e "$LXC_CONFIG_FILE" ] || LXC_CONFIG_FILE=$(dirname "${BASH_SOURCE[0]}")/phoenix_lxc_configs.json
log_info() { echo "[INFO] $*" >&2; }
setting() { jq -er ".lxc_configs[\"$1\"].$2 // .$2" "$LXC_CONFIG_FILE"; }
`,
	"bin/lxc_setup/phoenix_hypervisor_feature_install_nvidia.sh": `#!/bin/bash
set -e
source "$(dirname "${BASH_SOURCE[0]}")/../phoenix_hypervisor_common_utils.sh"
log_info "driver $(setting "$1" nvidia_driver_version) for $1"
pct exec "$1" -- feature nvidia
`,
	"bin/lxc_setup/phoenix_hypervisor_feature_install_python_api.sh": `#!/bin/bash
set -e
source "$(dirname "${BASH_SOURCE[0]}")/../phoenix_hypervisor_common_utils.sh"
pct exec "$1" -- feature python_api
`,
	"bin/lxc_setup/phoenix_hypervisor_lxc_vllm.sh": `#!/bin/bash
set -e
source "$(dirname "${BASH_SOURCE[0]}")/phoenix_hypervisor_common_utils.sh"
log_info "model $(setting "$1" vllm_model)"
`,
	"bin/health_checks/check_vllm.sh":    "#!/bin/sh\nexit 0\n",
	"etc/phoenix_hypervisor_config.json": `{"core_paths": {}}`,
}

// newCorpusHost is a host with an installation of the scripts before phx, and
// the configuration in testdata/corpus/NAME.
func newCorpusHost(t *testing.T, corpus string) *host {
	h := newHost(t)
	old := h.path("phoenix_hypervisor")
	files := map[string]string{
		"bin/pct": "#!/bin/sh\nexec $PHX_PCT \"$@\"\n",
		"bin/qm":  "#!/bin/sh\necho \"status: running\"\n",
		"sub":     "root:100000:65536\nroot:33:1\nroot:1000:2\n",
		"inside": strings.Replace(inside, "feature\\ *)", "*lxc_vllm.sh\\ *) cat >/dev/null; echo served ;;\n"+
			"*/health_checks/*) exit 127 ;;\nfeature\\ *)", 1),
		"host/pve/storage.cfg": h.read("host/pve/storage.cfg") + "\ndir: other\n\tpath " + h.dir + "/host/storage/other\n\tcontent rootdir\n",
	}
	for path, text := range oldInstallation {
		files["phoenix_hypervisor/"+path] = text
	}
	for _, name := range []string{"phoenix_lxc_configs.json", "phoenix_vm_configs.json"} {
		text, err := os.ReadFile(filepath.Join("testdata/corpus", corpus, name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		files["phoenix_hypervisor/etc/"+name] = strings.ReplaceAll(string(text), "$WORK", h.dir)
	}
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(h.path(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.path(path), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(h.path("share"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.env = append(h.env,
		"PHX_CONFIG="+old+"/etc/phoenix_lxc_configs.json",
		"PHX_SCRIPTS="+h.path("scripts")+":"+old+"/bin",
		"PHX_SUBUID="+h.path("sub"), "PHX_SUBGID="+h.path("sub"),
		"PHX_QM="+h.path("bin/qm"))
	return h
}

// program runs a program, and returns what it writes and its exit status.
func (h *host) program(args ...string) (stdout, stderr string, status int) {
	h.t.Helper()
	cmd := exec.Command("env", args...)
	cmd.Env = h.env
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// Each configuration of the corpus has what some installation of the scripts
// before phx had. It is explained, shown by a dry run, brought about, and then
// as it should be.
func TestCorpus(t *testing.T) {
	corpus, err := filepath.Glob("testdata/corpus/*")
	if err != nil || len(corpus) == 0 {
		t.Fatal(corpus, err)
	}
	for _, dir := range corpus {
		name := filepath.Base(dir)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newCorpusHost(t, name)
			// Each step ends with a status, and the last two change nothing.
			var confs string
			for i, step := range []struct {
				args   []string
				status int
			}{
				{[]string{"phx-plan", "--explain"}, 0},
				{[]string{"phoenix", "--dry-run"}, 3},
				{[]string{"phoenix"}, 0},
				{[]string{"phoenix"}, 0},
				{[]string{"phoenix", "--dry-run"}, 0},
			} {
				os.Remove(h.path("host/log/pct.log"))
				out, said, status := h.program(step.args...)
				if status != step.status {
					t.Fatalf("%s (step %d): status %d, want %d\n%s", step.args, i, status, step.status, said)
				}
				log := h.read("host/log/pct.log")
				t.Logf("%s: %d calls of pct", step.args, strings.Count(log, "\n"))
				after := h.confs()
				if i != 2 && after != confs || i > 2 && strings.Contains(out, `"changed":true`) {
					t.Errorf("%s (step %d) has changed something:\n%s\n%s", step.args, i, out, said)
				}
				confs = after
			}
		})
	}
}

// confs returns all of Proxmox VE's files of containers.
func (h *host) confs() string {
	h.t.Helper()
	paths, err := filepath.Glob(h.path("host/pve/*/*.*"))
	if err != nil {
		h.t.Fatal(err)
	}
	var all strings.Builder
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			h.t.Fatal(err)
		}
		fmt.Fprintf(&all, "== %s\n%s", path, text)
	}
	return all.String()
}
