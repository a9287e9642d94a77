package pipetest

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// What pct's options cannot be is refused before anything is changed, and the way
// out that is told is one.
func TestRefusedOptions(t *testing.T) {
	mount := []any{map[string]any{"host_path": "$WORK/ssl", "container_path": "/mnt/shared"}}
	for _, tt := range []struct {
		name         string
		before, keys map[string]any
		byHand       [2]string
		says         string
		wayOut       string // a script that does what was advised
	}{
		{name: "for another host", keys: map[string]any{"nodename": "pve2", "memory_mb": 1024},
			says:   "the configuration has the container for the node pve2 (nodename), and this is pve1",
			wayOut: `sed -i 's/"nodename":"pve2"/"nodename":"pve1"/' phoenix_lxc_configs.json`},
		{name: "ids that root may not map", keys: map[string]any{"memory_mb": 1024, "id_maps": []any{
			map[string]any{"type": "both", "host_id": 1000, "container_id": 1000}}},
			says: "/subuid does not let root map ids that id_maps asks for: add this line to it: root:1000:1\n" +
				"phx-lxc:   $WORK/subgid does not let root",
			wayOut: `echo root:1000:1 >>subuid; echo root:1000:1 >>subgid`},
		{name: "ids of a privileged container", before: map[string]any{"unprivileged": false},
			keys: map[string]any{"unprivileged": nil, "memory_mb": 1024, "id_maps": []any{
				map[string]any{"type": "gid", "host_id": 33, "container_id": 33}}},
			says:   "id_maps asks for other ids of the host, and the container is privileged",
			wayOut: `sed -i 's/"id_maps":\[[^]]*\],//' phoenix_lxc_configs.json`},
		{name: "another architecture", keys: map[string]any{"arch": "arm64", "memory_mb": 1024},
			says:   "arch is amd64 and should be arm64: the system in the container is of that architecture",
			wayOut: `sed -i 's/arm64/amd64/' phoenix_lxc_configs.json`},
		{name: "a new mount point of a protected container", before: map[string]any{"protection": true},
			keys: map[string]any{"protection": true, "memory_mb": 1024, "mount_points": mount},
			says: "the container is protected, and Proxmox changes neither its disks nor its mount points then; " +
				"nothing was changed: for the next run to change them, run: pct set 500 --protection 0",
			wayOut: `$PHX_PCT set 500 --protection 0`},
		{name: "the root disk of a container that was protected by hand",
			byHand: [2]string{"rootfs:", "protection: 1\nrootfs:"},
			keys:   map[string]any{"memory_mb": 1024, "rootfs_options": map[string]any{"acl": true}},
			says:   "the container is protected", wayOut: `$PHX_PCT set 500 --protection 0`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := converged(t, tt.before)
			h.write(conf500, strings.Replace(h.read(conf500), tt.byHand[0], tt.byHand[1], 1))
			h.configure(tt.keys)
			before := h.read(conf500)
			for _, args := range [][]string{{"--dry-run"}, {}} {
				_, calls, status, stderr := h.run(args...)
				if status != 1 || len(calls) > 0 || h.read(conf500) != before ||
					!strings.Contains(stderr, strings.ReplaceAll(tt.says, "$WORK", h.dir)) {
					t.Errorf("%v: status %d, calls\n%s\n%s", args, status, join(calls), stderr)
				}
			}
			h.bash(tt.wayOut)
			if _, _, status, stderr := h.run(); status != 0 || !strings.Contains(h.read(conf500), "\nmemory: 1024\n") {
				t.Errorf("the way out: status %d\n%s", status, stderr)
			}
			h.wantUnchanged()
		})
	}
}

// What pct itself finds missing is its own error, with what it was asked for.
func TestOptionsThatPctRefuses(t *testing.T) {
	for keys, says := range map[string]string{
		"devices":    "set 500 --dev0 /dev/nosuch: Device /dev/nosuch does not exist",
		"hookscript": "set 500 --hookscript local:snippets/nosuch.sh: script 'local:snippets/nosuch.sh' does not exist",
		"timezone":   "set 500 --timezone Mars/Base: timezone: invalid format",
	} {
		t.Run(keys, func(t *testing.T) {
			h := converged(t, nil)
			h.configure(map[string]any{keys: map[string]any{
				"devices":    []any{map[string]any{"path": "/dev/nosuch"}},
				"hookscript": "local:snippets/nosuch.sh",
				"timezone":   "Mars/Base",
			}[keys]})
			if _, _, status, stderr := h.run(); status != 1 || !strings.Contains(stderr, says) {
				t.Errorf("status %d\n%s", status, stderr)
			}
			// Once it is there, or configured no more, all is well.
			h.configure(nil)
			if _, _, status, stderr := h.run(); status != 0 || strings.Contains(h.read(conf500), "nosuch") {
				t.Errorf("status %d\n%s\n%s", status, stderr, h.read(conf500))
			}
		})
	}
}

// A clone of a protected container is protected, too, and gets its mount points
// all the same.
func TestCloneOfProtectedContainer(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(nil)
	text := h.read("phoenix_lxc_configs.json")
	plain := strings.TrimSuffix(strings.SplitAfterN(text, `"500":`, 2)[1], "}}\n")
	plain = strings.TrimSuffix(plain, "}}")
	clone := strings.NewReplacer(`"template":"local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst"`,
		`"clone_from_ctid":500,"mount_points":[{"host_path":"`+h.dir+`/ssl","container_path":"/mnt/shared"}]`,
		"10.0.0.50/24", "10.0.0.51/24", "BC:24:11:00:05:00", "BC:24:11:00:05:01").Replace(plain)
	source := strings.Replace(plain, `{`, `{"protection":true,"template_snapshot_name":"golden",`, 1)
	h.write("phoenix_lxc_configs.json", `{"lxc_configs":{"500":`+source+`,"501":`+clone+`}}`)
	events, _, status, stderr := h.run("--dry-run")
	would, _, _ := previewed(events, bin+"/pct")
	if status != 3 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	_, calls, status, stderr := h.run()
	conf := h.read("host/pve/lxc/501.conf")
	if status != 0 || !strings.Contains(conf, "\nprotection: 1\n") || !strings.Contains(conf, ",mp=/mnt/shared") {
		t.Errorf("status %d\n%s\n%s\n%s", status, stderr, join(calls), conf)
	}
	mac := regexp.MustCompile(`\+mac=\w+`) // a dry run's key is no host's
	if mac.ReplaceAllString(join(would), "") != mac.ReplaceAllString(join(calls), "") {
		t.Errorf("the dry run told\n%s\nand the run called\n%s", join(would), join(calls))
	}
	h.wantUnchanged()

	// A run that ends between these calls is no other one in the end.
	for _, call := range []string{"set 501 --protection 0", "set 501 --*mp0*"} {
		h.bash("$PHX_PCT stop 501; $PHX_PCT set 501 --protection 0 && $PHX_PCT destroy 501; rm -f failed")
		stubbed := h.stub("case \"$*\" in " + strings.ReplaceAll(call, " ", "\\ ") +
			") [ -e $PHX_WORK/failed ] || { touch $PHX_WORK/failed; exit 255; } ;; esac")
		if _, _, status, stderr := stubbed.run(); status != 1 ||
			strings.Contains(h.read("host/pve/lxc/501.conf"), "mp0") {
			t.Errorf("%s: status %d\n%s", call, status, stderr)
		}
		_, calls, status, stderr := h.run()
		conf := h.read("host/pve/lxc/501.conf")
		if status != 0 || !strings.Contains(conf, "\nprotection: 1\n") || !strings.Contains(conf, ",mp=/mnt/shared") ||
			strings.Contains(conf, "+lifted") {
			t.Errorf("%s: status %d\n%s\n%s\n%s", call, status, stderr, join(calls), conf)
		}
		h.wantUnchanged()
	}
}

// Notes are brought back when somebody else has written them, and the record is
// never taken out of them.
func TestNotesOfTheConfiguration(t *testing.T) {
	h := converged(t, map[string]any{"description_text": "one\ntwo", "lxc_options": []string{"lxc.environment=A=1"}})
	record := h.recordLine()
	if want := "#one\n#two\n" + record; !strings.HasPrefix(h.read(conf500), want) {
		t.Fatalf("%s", h.read(conf500))
	}
	h.write(conf500, "#mine\n"+strings.Replace(h.read(conf500), "#two\n", "#three\n", 1)+"#below\n")
	if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 || !strings.Contains(stderr, ": notes (") ||
		!strings.HasPrefix(h.read(conf500), "#one\n#two\n"+record) || strings.Contains(h.read(conf500), "below") {
		t.Errorf("status %d, calls\n%s\n%s\n%s", status, join(calls), stderr, h.read(conf500))
	}
	h.wantUnchanged()
	// Proxmox writes its file anew: nothing differs then.
	h.bash("$PHX_PCT set 500 --cores 1")
	h.wantUnchanged()
	if !strings.HasPrefix(h.read(conf500), "#one\n#two\n"+record) {
		t.Errorf("%s", h.read(conf500))
	}
	// A configuration that says nothing of notes leaves them alone.
	h.configure(map[string]any{"lxc_options": []string{"lxc.environment=A=1"}})
	h.wantUnchanged()
	if !strings.HasPrefix(h.read(conf500), "#one\n#two\n"+record) {
		t.Errorf("%s", h.read(conf500))
	}
}

// A dry run names the file that a run would hand to pct, and writes none.
func TestDryRunWithPublicKeys(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(map[string]any{"ssh_public_keys": []string{publicKey}})
	events, _, status, stderr := h.run("--dry-run")
	would, _, _ := previewed(events, bin+"/pct")
	path := h.path("host/lock/phx-500-keys.pub")
	if status != 3 || !strings.Contains(join(would), " --ssh-public-keys "+path) {
		t.Errorf("status %d\n%s\n%s", status, stderr, join(would))
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
	if _, calls, status, stderr := h.run(); status != 0 || calls[0][0] != "create" ||
		!strings.HasSuffix(join(calls[:1]), " --ssh-public-keys "+path) {
		t.Errorf("status %d\n%s\n%s", status, stderr, join(calls))
	}
}

// A file that holds no keys is not handed to pct, nor one whose reader would wait.
func TestFileOfNoPublicKeys(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"a secret": "root:secret:1\n", "a comment": publicKey + "\n# mine\n", "a pipe": "",
	} {
		h := newHost(t)
		h.write("keys", text)
		if text == "" {
			h.bash("rm keys; mkfifo keys")
		}
		h.configure(map[string]any{"ssh_public_keys": "$WORK/keys"})
		for _, args := range [][]string{{"--dry-run"}, {}} {
			_, calls, status, stderr := h.run(args...)
			if status != 1 || len(calls) > 0 || strings.Contains(stderr, "secret") ||
				!strings.Contains(stderr, "500 Box: define: ssh_public_keys: "+h.path("keys")) {
				t.Errorf("%s: %v: status %d\n%s\n%s", name, args, status, stderr, join(calls))
			}
		}
	}
	h := newHost(t)
	h.write("keys", "\n"+publicKey+"\n\n  "+publicKey+" second\n")
	h.configure(map[string]any{"ssh_public_keys": "$WORK/keys"})
	if _, _, status, stderr := h.run(); status != 0 {
		t.Errorf("status %d\n%s", status, stderr)
	}
}

// What the host lacks is found before the container is destroyed that is to be
// made anew.
func TestRecreateWithOptions(t *testing.T) {
	for name, keys := range map[string]map[string]any{
		"nodename": {"nodename": "pve2"},
		"id maps": {"id_maps": []any{
			map[string]any{"type": "uid", "host_id": 1000, "container_id": 1000}}},
		"devices":         {"devices": []any{map[string]any{"path": "/dev/nosuch"}}},
		"hookscript":      {"hookscript": "local:snippets/nosuch.sh"},
		"ssh_public_keys": {"ssh_public_keys": "$WORK/nosuch.pub"},
		"no device":       {"devices": []any{map[string]any{"path": "/dev/shm"}}},
		"no script":       {"hookscript": "local:snippets/directory.sh"},
		"no public keys":  {"ssh_public_keys": "$WORK/private"},
		"keys in a pipe":  {"ssh_public_keys": "$WORK/pipe"},
	} {
		t.Run(name, func(t *testing.T) {
			h := converged(t, nil)
			h.bash(`mkfifo pipe; mkdir host/storage/local/snippets/directory.sh; echo "root:secret:1" >private`)
			h.configure(keys)
			before := h.read(conf500)
			out, status := h.with("PHX_ACTION=recreate").bash("phx-plan 500 | phx-lxc >/dev/null")
			if status != 1 || h.read(conf500) != before || !strings.Contains(out, "so nothing was destroyed") {
				t.Errorf("status %d\n%s", status, out)
			}
		})
	}
}
