package labtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Scripts as people had them before phx: a file of helper functions, which each of them sources, features below it, and
// application scripts that find the functions and the configuration beside them in the container.
var oldScripts = map[string]string{
	"bin/phoenix_hypervisor_common_utils.sh": `#!/bin/bash
# Helper functions of all scripts, on the host and in containers.
export LXC_CONFIG_FILE
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -f "$here/../etc/phoenix_lxc_configs.json" ]; then
	LXC_CONFIG_FILE=$here/../etc/phoenix_lxc_configs.json
else
	LXC_CONFIG_FILE=$here/phoenix_lxc_configs.json
fi
log_info() { echo "[INFO] $(basename "$0"): $*" >&2; }
log_fatal() {
	echo "[FATAL] $(basename "$0"): $*" >&2
	exit 1
}
# host_value CTID FILTER prints what a container has in the configuration.
host_value() { jq -er --arg ctid "$1" ".lxc_configs[\$ctid] | $2" "$LXC_CONFIG_FILE"; }
pct_exec() {
	local ctid=$1
	shift
	pct exec "$ctid" -- "$@" || log_fatal "in container $ctid: $*"
}
`,
	"bin/lxc_setup/phoenix_hypervisor_feature_install_runtime.sh": `#!/bin/bash
set -e
SCRIPT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$SCRIPT_DIR/../phoenix_hypervisor_common_utils.sh"
CTID=$1
[ -n "$CTID" ] || log_fatal "usage: $(basename "$0") CTID"
log_info "runtime of container $CTID, $(host_value "$CTID" .name)"
pct_exec "$CTID" mkdir -p /opt/runtime
pct_exec "$CTID" sh -c 'echo 12 >/opt/runtime/version'
`,
	"bin/lxc_setup/phoenix_hypervisor_feature_install_server.sh": `#!/bin/bash
set -e
SCRIPT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$SCRIPT_DIR/../phoenix_hypervisor_common_utils.sh"
CTID=$1
pct_exec "$CTID" test -s /opt/runtime/version
pct push "$CTID" "$SCRIPT_DIR/../web.pl" /opt/runtime/web --perms 0755
`,
	"bin/phoenix_hypervisor_lxc_model.sh": `#!/bin/bash
set -e
SCRIPT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$SCRIPT_DIR/phoenix_hypervisor_common_utils.sh"
CTID=$1
log_info "model of container $CTID"
[ "$SCRIPT_DIR" = /tmp/phoenix_run ] || log_fatal "runs in $SCRIPT_DIR"
# Not every container has jq.
MODEL=$(perl -0777 -ne 'print $1 if /"'"$CTID"'"\s*:.*?"vllm_model"\s*:\s*"([^"]*)"/s' "$LXC_CONFIG_FILE")
[ -n "$MODEL" ] || log_fatal "container $CTID has no vllm_model in $LXC_CONFIG_FILE"
cat >/etc/systemd/system/model.service <<EOF
[Service]
ExecStart=/opt/runtime/web "$MODEL"
[Install]
WantedBy=multi-user.target
EOF
systemctl daemon-reload
systemctl enable model
systemctl restart model
for attempt in 1 2 3 4 5 6 7 8 9 10; do
	curl --silent --fail http://127.0.0.1:8000/health && exit 0
	sleep 1
done
log_fatal "the model does not answer"
`,
	"bin/health_checks/check_model.sh": `#!/bin/bash
set -e
source "$(dirname "$0")/../phoenix_hypervisor_common_utils.sh"
[ "$1" = --ctid ] || log_fatal "usage: $(basename "$0") --ctid CTID"
IP=$(host_value "$2" .network_config.ip)
curl --silent --fail --max-time 5 --output /dev/null "http://${IP%/*}:8000/health"
`,
}

// clean removes every container of the lab, the CA that it has pinned, and what is shared.
func (l lab) clean(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob(l.path("pve", "lxc", "*.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		l.inside(t, "pct", "destroy", strings.TrimSuffix(filepath.Base(file), ".conf"), "--force")
	}
	for _, path := range []string{l.path("persistent-storage", "ssl", "phoenix_ca.crt"), l.path("pve", "priv", "phx")} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

// testShape takes a file such as those of the scripts before phx through phoenix, from nothing: twelve containers, with
// templates of templates, clones of clones, one that depends on a virtual machine, and models served by name.
func (l lab) testShape(t *testing.T) {
	l.clean(t)
	l.startVM(t)
	s := l.newSite(t, "shape", func(containers object) {
		net := func(n int) object {
			return object{"name": "eth0", "bridge": "vmbr0", "ip": ip4(0, n) + "/24", "gw": hostIP}
		}
		add := func(ctid, name, source string, n int, keys object) {
			containers[ctid] = merge(container(name, source, nil, object{"network_configs": nil,
				"network_config": net(n), "boot_order": n}), keys)
		}
		model := func(name, model string) object {
			return object{"application_script": "phoenix_hypervisor_lxc_model.sh", "vllm_model": model,
				"features":        []string{"base_setup", "runtime", "server"},
				"traefik_service": object{"name": name, "port": 8000}}
		}
		template := object{"is_template": true, "start_at_boot": false}
		merge(containers[base].(object), template)
		merge(containers[base].(object), object{"enable_lifecycle_snapshots": true}) // which a template has none of
		add("901", "Copy-Runtime", base, 201, merge(object{"features": []string{"base_setup", "runtime"}}, template))
		add("911", "Copy-Server", "901", 211, merge(object{"features": []string{"base_setup", "runtime", "server"}},
			template))
		add("912", "Copy-Apps", "901", 212, object{"features": []string{"base_setup", "runtime", "server"},
			"start_at_boot": false, "template_snapshot_name": "final-form", "template_file": "apps-v1.tar.gz"})
		add("950", "Chat", "911", 50, merge(model("chat.model-1.5", "chat-1.5"), object{
			"secondary_network_config": object{"name": "eth1", "bridge": "vmbr1", "ip": ip4(1, 50) + "/24",
				"hwaddr": "02:00:00:00:09:50"},
			"health_checks": []object{{"name": "model", "script": "check_model.sh", "args": "--ctid 950"}}}))
		add("951", "Embed", "911", 51, merge(model("embed", "embed-8b"), object{
			"dependencies": []string{"950", ca}, "id_maps": []object{
				{"type": "gid", "host_id": 33, "container_id": 33, "size": 1}}}))
		add("960", "Apps", "912", 60, merge(model("apps", "apps-1"), object{
			"enable_lifecycle_snapshots": true, "template_snapshot_name": "final-form"}))
		add("961", "Apps-Two", "960", 61, merge(model("apps.two", "apps-2"), object{
			"public_interface": object{"enabled": true}, "dependencies": []string{vm}}))
		add("962", "Apps-Three", "912", 62, merge(model("three", "apps-3"), object{"dependencies": []any{961, "960"}}))
	})
	for name, text := range oldScripts {
		s.write(t, name, text)
	}
	s.write(t, "bin/web.pl", webProgram)
	s.writeVM(t, vmIP+"/24")
	write(t, l.path("etc", "subid"), "root:100000:65536\nroot:33:1\n", 0o644) // for id_maps
	s.env = []string{"PHX_SCRIPTS=" + l.repo + "/scripts:" + s.dir + "/bin:" + s.dir + "/bin/lxc_setup"}

	r, calls := s.phoenix(t)
	t.Logf("the first run's calls of pct:\n%s", shown(calls))
	if r.status != 0 {
		t.Fatalf("status %d\n%s", r.status, r.stdout)
	}
	l.gives(t, map[string]string{
		"chat.model-1.5." + domain: "chat-1.5",
		"embed." + domain:          "embed-8b",
		"apps." + domain:           "apps-1",
		"apps.two." + domain:       "apps-2",
		"three." + domain:          "apps-3",
		"desk." + domain:           "vm desk." + domain,
	}, gatewayIP)
	l.answers(t, caClient)
	for _, ctid := range []string{base, "901", "911"} {
		if conf := l.read(t, "pve", "lxc", ctid+".conf"); !strings.Contains(conf, "\ntemplate: 1\n") {
			t.Errorf("container %s is no template:\n%s", ctid, conf)
		}
	}

	r, calls = s.phoenix(t)
	t.Logf("the second run's calls of pct:\n%s", shown(calls))
	if r.status != 0 {
		t.Fatalf("second run: status %d\n%s", r.status, r.stdout)
	}
	checkUnchangedOf(t, r.stdout, 12)
	if n := len(calls); n > secondBudget {
		t.Errorf("the second run needs %d calls of pct", n)
	}
}

// shown is a list of calls for people: the beginning of each, without the text of scripts.
func shown(calls []string) string {
	var b strings.Builder
	for _, call := range calls {
		call, _, _ = strings.Cut(call, "\n")
		fmt.Fprintf(&b, "pct %.150s\n", call)
	}
	return b.String()
}
