package pipetest

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// checkCase is a fault of a host that the action check finds.
type checkCase struct {
	name string
	keys map[string]any // of the container, see configure
	made bool           // the container is there before the fault
	env  []string
	bash string // makes the fault

	point, result, text, remedy string // of the event; the texts are regular expressions

	mend string // by bash; "" for what the remedy says to run

	// unseen says that the fake host does not tell by a run what a real one does: of a
	// point that has failed, that a run fails.
	unseen bool
}

var checkCases = []checkCase{
	{
		name: "no pct", env: []string{"PHX_PCT=/nosuch/pct"},
		point: "pct", result: "failed", text: "no such file",
		remedy: "^run this on the Proxmox VE host, or name pct's place in",
		mend:   "-",
	},
	{
		name: "pct and LXC say different things", made: true,
		env:   []string{"PHX_ATTACH=direct", "PHX_LXC_PATH=/nosuch"},
		point: "pct", result: "failed", text: "^container 500 is running for pct list, and stopped by LXC's socket$",
		remedy: "PHX_ATTACH=pct", mend: "-", unseen: true,
	},
	{
		name: "old pct", env: []string{"PHX_PCT_VERSION=5.0.8"}, unseen: true,
		point: "pve-container", result: "failed", text: `^5\.0\.8: phx needs 5\.0\.9$`, remedy: "apt update",
		mend: "-",
	},
	{
		name: "no quorum", unseen: true,
		bash:  `echo '{"nodename": "pve1", "cluster": {"nodes": 2, "quorate": 0}}' >host/pve/.members`,
		point: "cluster file system", result: "failed", text: "no quorum", remedy: "pvecm status",
		mend: `echo '{"nodename": "pve1", "cluster": {"nodes": 2, "quorate": 1}}' >host/pve/.members`,
	},
	{
		name:  "on another node",
		bash:  "mkdir -p host/pve/nodes/pve2/lxc; echo 'arch: amd64' >host/pve/nodes/pve2/lxc/500.conf",
		point: "container", result: "failed", text: "on the node pve2$",
		remedy: "ssh pve2 pct migrate 500 pve1 --restart 1",
		mend:   "rm host/pve/nodes/pve2/lxc/500.conf",
	},
	{
		name:  "a virtual machine",
		bash:  "mkdir -p host/pve/nodes/pve1/qemu-server; echo 'name: vm' >host/pve/nodes/pve1/qemu-server/500.conf",
		point: "container", result: "failed", text: "^500 is a virtual machine", remedy: "another CTID",
		mend: "rm host/pve/nodes/pve1/qemu-server/500.conf",
	},
	{
		name: "locked", made: true, bash: "$PHX_PCT set 500 --lock backup",
		point: "container", result: "warning", text: `^locked \(backup\)`, remedy: "run: pct unlock 500$",
	},
	{
		name: "a smaller disk", made: true, keys: map[string]any{"storage_size_gb": 2},
		point: "container", result: "failed", text: "cannot shrink a disk", remedy: "^correct the configuration$",
		mend: "sed -i 's/\"storage_size_gb\":2/\"storage_size_gb\":4/' phoenix_lxc_configs.json",
	},
	{
		name: "nodename", keys: map[string]any{"nodename": "pve9"},
		point: "nodename", result: "failed", text: `pve9 \(nodename\), and this is pve1$`,
		remedy: "^run phx there, or correct nodename$",
		mend:   "sed -i s/pve9/pve1/ phoenix_lxc_configs.json",
	},
	{
		name: "no storage", keys: map[string]any{"storage_pool": "tank"},
		point: "storage tank", result: "failed", text: "there is no storage tank", remedy: "pvesm status",
		mend: "sed -i s/tank/lab/ phoenix_lxc_configs.json",
	},
	{
		name: "disabled storage", bash: "pvesm set lab --disable 1",
		point: "storage lab", result: "failed", text: "is disabled$", remedy: "with: pvesm set lab --disable 0$",
	},
	{
		name: "storage of another node", bash: "pvesm set lab --nodes pve2",
		point: "storage lab", result: "failed", text: "on pve2 only, and this is pve1$",
		remedy: "run: pvesm set lab --nodes pve2,pve1$",
	},
	{
		name: "storage for other things", bash: "pvesm set lab --content images",
		point: "storage lab", result: "failed", text: "takes no containers",
		remedy: "with: pvesm set lab --content rootdir,images$",
	},
	{
		name: "inactive storage", bash: `sed -i '/^btrfs/a \	is_mountpoint yes' host/pve/storage.cfg`,
		point: "storage lab", result: "failed", text: "^it is inactive$", remedy: "with: pvesm status --storage lab$",
		mend: "sed -i /is_mountpoint/d host/pve/storage.cfg",
	},
	{
		name: "no snapshots", keys: map[string]any{"enable_lifecycle_snapshots": true},
		bash:  "sed -i 's/btrfs: lab/dir: lab/' host/pve/storage.cfg",
		point: "storage lab", result: "warning", text: "takes no snapshots .*: 500$",
		remedy: "zfspool, lvmthin, btrfs or rbd",
		mend:   "sed -i 's/dir: lab/btrfs: lab/' host/pve/storage.cfg",
	},
	{
		name: "no templates", keys: map[string]any{"is_template": true},
		bash:  "sed -i 's/btrfs: lab/lvm: lab/' host/pve/storage.cfg",
		point: "storage lab", result: "failed", text: "pct makes no template.*: 500$", remedy: "choose another one",
		mend: "sed -i 's/lvm: lab/btrfs: lab/' host/pve/storage.cfg",
	},
	{
		name: "no room", keys: map[string]any{"storage_size_gb": 1000000},
		bash:  "sed -i 's/btrfs: lab/lvm: lab/' host/pve/storage.cfg",
		point: "storage lab", result: "failed", text: "GiB free, and 1 disk of 1000000 GiB",
		remedy: "pvesm list lab", unseen: true,
		mend: "sed -i 's/lvm: lab/btrfs: lab/' host/pve/storage.cfg",
	},
	{
		name: "no archive", bash: "mkdir kept; mv host/storage/local/template/cache/* kept",
		point: "template local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst", result: "failed",
		text:   "is missing$",
		remedy: "run: pveam update && pveam download local debian-12-standard_12.12-1_amd64.tar.zst$",
		mend:   "mv kept/* host/storage/local/template/cache",
	},
	{
		name: "archive on a disabled storage", bash: "pvesm set local --disable 1",
		point: "template local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst", result: "failed",
		text:   "local is disabled$",
		remedy: "with: pvesm set local --disable 0$", unseen: true,
	},
	{
		name: "no bridge", bash: "rm -r host/root/sys/class/net/vmbr0", unseen: true,
		point: "bridge vmbr0", result: "failed", text: "no interface vmbr0$",
		remedy: "pvesh create /nodes/pve1/network --iface vmbr0 --type bridge --autostart 1 && pvesh set " +
			"/nodes/pve1/network$",
		mend: "mkdir -p host/root/sys/class/net/vmbr0/bridge",
	},
	{
		name: "an interface", bash: "rm -r host/root/sys/class/net/vmbr0/bridge", unseen: true,
		point: "bridge vmbr0", result: "failed", text: "is no bridge$", remedy: "correct bridge",
		mend: "mkdir -p host/root/sys/class/net/vmbr0/bridge",
	},
	{
		name: "a bridge that is down", bash: "echo 0x1002 >host/root/sys/class/net/vmbr0/flags", unseen: true,
		point: "bridge vmbr0", result: "failed", text: "^it is down$", remedy: "ifup vmbr0$",
		mend: "echo 0x1003 >host/root/sys/class/net/vmbr0/flags",
	},
	{
		name: "no VLANs", keys: map[string]any{"network_config": vlan("tag", 20)},
		bash:  "echo 0 >host/root/sys/class/net/vmbr0/bridge/vlan_filtering",
		point: "bridge vmbr0", result: "failed", text: "neither knows VLANs nor has a port to the outside.*: 500$",
		remedy: "bridge-vlan-aware yes",
		mend:   "mkdir -p host/root/sys/class/net/{vmbr0/brif/eth0,eth0/device}", unseen: true,
	},
	{
		name: "no trunks", keys: map[string]any{"network_config": vlan("trunks", "20-22")},
		bash:  "mkdir -p host/root/sys/class/net/{vmbr0/brif/eth0,eth0/device}",
		point: "bridge vmbr0", result: "failed", text: "does not know VLANs, and trunks need that",
		remedy: "bridge-vlan-aware yes",
		mend:   "echo 1 >host/root/sys/class/net/vmbr0/bridge/vlan_filtering", unseen: true,
	},
	{
		name: "address of a virtual machine", unseen: true,
		bash: "mkdir -p host/pve/nodes/pve2/qemu-server; printf '%s\\n' 'name: db' 'net0: " +
			"virtio=BC:24:11:00:09:00,bridge=vmbr0' 'ipconfig0: ip=10.0.0.50/24,gw=10.0.0.1' " +
			">host/pve/nodes/pve2/qemu-server/900.conf",
		point: "address 10.0.0.50", result: "failed", text: "^the virtual machine 900 db on pve2 has it$",
		remedy: "another address",
		mend:   "rm host/pve/nodes/pve2/qemu-server/900.conf",
	},
	{
		name: "pending address of a container", unseen: true,
		bash: "printf '%s\\n' 'hostname: web' '[pve:pending]' 'net1: " +
			"name=eth1,bridge=vmbr0,hwaddr=BC:24:11:00:09:00,ip=10.0.0.50/24' >host/pve/lxc/900.conf",
		point: "address 10.0.0.50", result: "failed", text: "^the container 900 web on pve1 has it$",
		remedy: "another address",
		mend:   "echo 'template: 1' >>host/pve/lxc/900.conf; sed -i '/pending/d' host/pve/lxc/900.conf",
	},
	{
		name: "MAC address of a virtual machine", unseen: true,
		bash: "mkdir -p host/pve/nodes/pve2/qemu-server; printf '%s\\n' 'name: db' 'net0: " +
			"e1000=bc:24:11:00:05:00,bridge=vmbr0,firewall=1' >host/pve/nodes/pve2/qemu-server/900.conf",
		point: "MAC address BC:24:11:00:05:00", result: "failed",
		text: "^the virtual machine 900 db on pve2 has it$", remedy: "leave it out",
		mend: "rm host/pve/nodes/pve2/qemu-server/900.conf",
	},
	{
		name:  "MAC address of the host",
		bash:  "mkdir -p host/root/sys/class/net/eth9; echo bc:24:11:00:05:00 >host/root/sys/class/net/eth9/address",
		point: "MAC address BC:24:11:00:05:00", result: "failed", text: "^the interface eth9 of this host has it$",
		remedy: "leave it out",
		mend:   "rm -r host/root/sys/class/net/eth9", unseen: true,
	},
	{
		name: "no feature", keys: map[string]any{"features": []string{"nope"}},
		point: "scripts", result: "failed", text: "^feature nope: .* is in none of",
		remedy: "^put it there, or name its directory",
		mend:   `f=scripts/phoenix_hypervisor_feature_install_nope.sh; printf '#!/bin/sh\n' >$f; chmod +x $f`,
	},
	{
		name: "feature that is not executable", keys: map[string]any{"features": []string{"base_setup"}},
		bash:  "chmod -x scripts/phoenix_hypervisor_feature_install_base_setup.sh",
		point: "scripts", result: "failed", text: "base_setup.sh: not executable$",
		remedy: "^run: chmod [+]x .*/scripts/phoenix_hypervisor_feature_install_base_setup.sh$",
	},
	{
		name: "no health check", keys: map[string]any{"health_checks": []any{map[string]any{"script": "none.sh"}}},
		point: "scripts", result: "failed", text: "^health check none.sh: none.sh is in none of",
		remedy: "^put it there",
		mend:   `printf '#!/bin/sh\n' >scripts/health_checks/none.sh; chmod +x scripts/health_checks/none.sh`,
	},
	{
		name: "no id maps", bash: "echo root:100000:100 >subuid", unseen: true,
		point: "id maps", result: "failed", text: "subuid does not let root map ids that unprivileged containers have$",
		remedy: "^add this line to it: root:100000:65536$",
		mend:   "echo root:100000:65536 >>subuid",
	},
	{
		name:  "id of id_maps",
		keys:  map[string]any{"id_maps": []any{map[string]any{"type": "gid", "host_id": 77, "container_id": 77}}},
		point: "id maps", result: "failed", text: "subgid does not let root map ids that id_maps asks for",
		remedy: "^add this line to it: root:77:1$",
		mend:   "echo root:77:1 >>subgid",
	},
	{
		name: "no device", keys: map[string]any{"devices": []any{map[string]any{"path": "/dev/nosuch"}}},
		point: "devices", result: "failed", text: "^devices: stat /dev/nosuch: no such file", remedy: "driver",
		mend: "sed -i s/nosuch/null/ phoenix_lxc_configs.json",
	},
	{
		name: "no GPU", keys: map[string]any{"gpu_assignment": "1"},
		point: "GPUs", result: "warning",
		text: "/dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia-uvm-tools, /dev/nvidia1$", remedy: "nvidia-modprobe",
		mend: "mkdir host/root/dev; touch host/root/dev/nvidia{ctl,-uvm,-uvm-tools,1}",
	},
	{
		name: "no hook script", keys: map[string]any{"hookscript": "local:snippets/none.sh"},
		point: "hook scripts", result: "failed", text: "/snippets/none.sh is missing$", remedy: "put it there",
		mend: "cp -a host/storage/local/snippets/hook.sh host/storage/local/snippets/none.sh",
	},
	{
		name: "hook script that is not executable", keys: map[string]any{"hookscript": "local:snippets/hook.sh"},
		bash:  "chmod -x host/storage/local/snippets/hook.sh",
		point: "hook scripts", result: "failed", text: "/snippets/hook.sh is not executable$",
		remedy: "^run: chmod [+]x ",
	},
	{
		name:  "no file to mount",
		keys:  listOf("mount_points", map[string]any{"host_path": "$WORK/a.conf", "container_path": "/a.conf"}),
		point: "mount points", result: "failed", text: "/a.conf is not there$", remedy: "^make it if it is a file",
		mend: "touch a.conf",
	},
	{
		name: "no SSH keys", keys: map[string]any{"ssh_public_keys": "$WORK/none.pub"},
		point: "SSH keys", result: "failed", text: "none.pub: no such file", remedy: "put it there",
		mend: "cp keys.pub none.pub",
	},
	{
		name: "no AppArmor profile", keys: map[string]any{"apparmor_profile": "none"},
		point: "AppArmor profiles", result: "failed", text: "AppArmor profile none", remedy: "^put the profile there",
		mend: "cp apparmor/lxc-phoenix apparmor/none",
	},
	{
		name: "no external guest", keys: map[string]any{"dependencies": []int{900}},
		bash:  `printf '#!/bin/sh\necho "status: stopped"\n' >bin/qm; chmod +x bin/qm`,
		point: "guests outside of the configuration", result: "failed",
		text: "needs the guest 900, which is stopped$", remedy: "^start it",
		mend: `printf '#!/bin/sh\necho "status: running"\n' >bin/qm`,
	},
	{
		name: "datacenter's firewall is off", keys: map[string]any{"firewall": map[string]any{"enabled": true}},
		point: "firewall", result: "warning", text: "that of the datacenter is off .*: 500$",
		remedy: "pvesh set /cluster/firewall/options --enable 1$",
		mend:   `printf '[OPTIONS]\nenable: 1\n' >host/pve/firewall/cluster.fw`,
	},
	{
		name: "old cron job",
		bash: "mkdir -p host/root/etc/cron.d; echo '0 * * * * root /opt/bin/certificate-renewal-manager.sh' " +
			">host/root/etc/cron.d/phoenix-cert-renewal",
		point: "old scripts", result: "warning", text: "/etc/cron.d/phoenix-cert-renewal still runs: ",
		remedy: "take this line away",
		mend:   "sed -i 's/^/#/' host/root/etc/cron.d/phoenix-cert-renewal",
	},
	{
		name: "old link",
		bash: "mkdir -p host/root/usr/local/bin; ln -s ../phoenix_hypervisor/bin/phoenix-global " +
			"host/root/usr/local/bin/phoenix",
		point: "old scripts", result: "warning",
		text:   "/usr/local/bin/phoenix is the command of the scripts before phx",
		remedy: "phx: ln -sfn /usr/local/phoenix_hypervisor/scripts/phoenix-cli .*/usr/local/bin/phoenix$",
	},
	{
		name: "old manifest", bash: `echo '[{"service": "nginx-gateway"}]' >certificate-manifest.json`,
		point: "old scripts", result: "warning", text: "certificate-manifest.json has certificates for nginx",
		remedy: "take those",
		mend:   `echo '[{"service": "portainer"}]' >certificate-manifest.json`,
	},
	{
		name: "no programs", keys: map[string]any{"features": []string{"traefik"}}, unseen: true,
		bash: "cp $REPO/scripts/phoenix_assets.* $REPO/scripts/phoenix_hypervisor_feature_install_traefik.sh " +
			"scripts; mkdir assets",
		env: []string{"PHX_ASSETS=$WORK/assets"},

		point: "program traefik", result: "failed",
		text: "has neither traefik listed in its SHA256SUMS nor traefik_v", remedy: "unset PHX_ASSETS",
		mend: "echo program >assets/traefik; (cd assets; sha256sum traefik >SHA256SUMS)",
	},
	{
		name: "wrong program", keys: map[string]any{"features": []string{"traefik"}}, unseen: true,
		bash: "cp $REPO/scripts/phoenix_assets.* $REPO/scripts/phoenix_hypervisor_feature_install_traefik.sh " +
			"scripts; mkdir assets; echo program >assets/traefik; (cd assets; sha256sum traefik " +
			">SHA256SUMS); echo other >assets/traefik",
		env:   []string{"PHX_ASSETS=$WORK/assets"},
		point: "program traefik", result: "failed", text: "/traefik: wrong checksum: expected sha256 ",
		remedy: "put it there again",
		mend:   "echo program >assets/traefik",
	},
	{
		name: "no releases", keys: map[string]any{"features": []string{"traefik"}}, unseen: true,
		bash: "cp $REPO/scripts/phoenix_assets.* " +
			"$REPO/scripts/phoenix_hypervisor_feature_install_traefik.sh scripts",
		env:   []string{"https_proxy=http://127.0.0.1:1", "PHX_CACHE=$WORK/cache", "PHX_ASSETS="},
		point: "program traefik", result: "failed",
		text: "^https://github.com/traefik/.* cannot be downloaded: .*refused", remedy: "PHX_ASSETS$",
		mend: "for s in $(awk '$1 == \"traefik\" {print $5}' scripts/phoenix_assets.tsv); do mkdir -p " +
			"cache/$s; echo program >cache/$s/traefik; (cd cache/$s; sha256sum traefik >SHA256SUMS); done",
	},
}

func listOf(key string, object map[string]any) map[string]any {
	return map[string]any{key: []any{object}}
}

func vlan(key string, value any) map[string]any {
	return map[string]any{"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.50/24", "gw": "10.0.0.1", key: value}
}

// command finds the command of a remedy.
var command = regexp.MustCompile(`(?:with: |run: |phx: )(\S.*)$`)

// TestCheck: each fault is found, by that name; a run fails if and only if the point
// has; what the remedy says mends it, and then all is well.
func TestCheck(t *testing.T) {
	for _, c := range checkCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			if c.made {
				h.configure(nil)
				if _, _, status, said := h.run(); status != 0 {
					t.Fatalf("status %d\n%s", status, said)
				}
			}
			h.configure(c.keys)
			h = h.with("REPO=" + repo)
			for _, variable := range c.env {
				h = h.with(strings.ReplaceAll(variable, "$WORK", h.dir))
			}
			if out, status := h.bash(c.bash); status != 0 {
				t.Fatalf("status %d\n%s", status, out)
			}
			have, status, said := h.check(c.point)
			wanted := map[string]int{"warning": 0, "failed": 1}[c.result]
			if os.Geteuid() == 0 && status != wanted {
				t.Errorf("status %d, want %d\n%s", status, wanted, said)
			}
			if have["result"] != c.result {
				t.Fatalf("the point is %v\n%s", have, said)
			}
			for key, form := range map[string]string{"text": c.text, "remedy": c.remedy} {
				text, _ := have[key].(string)
				if !regexp.MustCompile(form).MatchString(text) {
					t.Errorf("%s is %q, want %s", key, text, form)
				}
				if text == "" {
					t.Errorf("no %s", key)
				}
			}
			if !c.unseen {
				if _, _, status, said := h.run("--lock-wait=1s"); status != wanted {
					t.Errorf("a run ends with %d\n%s", status, said)
				}
			}
			mend := c.mend
			if mend == "-" {
				return
			}
			if mend == "" {
				m := command.FindStringSubmatch(have["remedy"].(string))
				if m == nil {
					t.Fatalf("no command in %q", have["remedy"])
				}
				mend = m[1]
			}
			if out, status := h.bash(mend); status != 0 {
				t.Fatalf("%s: status %d\n%s", mend, status, out)
			}
			if have, status, said := h.check(c.point); have["result"] == "failed" || have["result"] == "warning" ||
				os.Geteuid() == 0 && status != 0 {
				t.Errorf("after %s: status %d\n%s", mend, status, said)
			}
		})
	}
}

// check runs the action check, and returns the first of its points of a name that is
// not well, or else the last one, the exit status and the messages.
func (h *host) check(point string) (found map[string]any, status int, said string) {
	h.t.Helper()
	events, calls, status, said := h.with("PHX_ACTION=check").run()
	if len(calls) > 0 {
		h.t.Errorf("check has run %s", join(calls))
	}
	for _, ev := range events {
		if ev["event"] == "check.point" && ev["point"] == point && (found == nil || found["result"] == "ok") {
			found = ev
		}
	}
	return found, status, said
}
