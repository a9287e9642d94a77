// Package pipetest uses the programs as a user does, alone and in the pipe,
// on a host whose pct keeps Proxmox's files, rules and mistakes but starts no
// containers.
//
// It builds the programs, with the race detector when it is tested with -race.
// Plain go test tries a few of the faults, signals and kills that interrupt
// runs; scripts/test sets PHX_TEST_FULL=1 and tries many, scripts/test --long
// sets PHX_TEST_LONG=1 as well and tries all. What only root may do is skipped
// for other users.
package pipetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var bin, repo string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "pipetest")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		bin = dir
		repo, err = filepath.Abs("../../..")
		if err != nil {
			panic(err)
		}
		// With the race detector where the tests have it, because the programs work on containers side by side.
		if out, err := build(dir, "-race="+strconv.FormatBool(raceEnabled)); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		if parallel := flag.Lookup("test.parallel").Value; parallel.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
			parallel.Set(strconv.Itoa(4 * runtime.GOMAXPROCS(0))) // tests wait more than they work
		}
		return m.Run()
	}())
}

// build builds the programs and the lab's pct in the directory dir.
func build(dir string, flags ...string) (output []byte, err error) {
	for _, args := range [][]string{
		append(flags, "-tags", "urfave_cli_no_docs", "-o", dir+"/", "./cmd/...",
			"./scripts/phoenix-view"),
		{"-o", dir + "/pct", "./scripts/internal/lab-pct"},
		{"-o", dir + "/", "./scripts/internal/pipetest/killat"},
	} {
		cmd := exec.Command("go", append([]string{"build"}, args...)...)
		cmd.Dir = repo
		if output, err = cmd.CombinedOutput(); err != nil {
			return output, err
		}
	}
	for _, name := range []string{"pvesm", "lxc-attach"} {
		if err := os.Symlink("pct", filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// full reports whether much is to be tried, as scripts/test does, and not just
// enough to notice a mistake while one works on the programs.
func full() bool { return os.Getenv("PHX_TEST_FULL") == "1" }

// needsFull skips a test that waits or works for long, unless much is to be
// tried.
func needsFull(t *testing.T) {
	t.Helper()
	if !full() {
		t.Skip("it takes long: PHX_TEST_FULL=1 runs it")
	}
}

// TestScripts runs testdata/*.txtar. In their conditions, full is [full], root
// reports whether root runs the tests, netns whether they may have network
// namespaces of their own, and direct whether the programs leave out pct.
func TestScripts(t *testing.T) { runScripts(t, "pct", "*") }

// TestScriptsDirect runs those scripts again whose matter are commands in
// containers, by lxc-attach. With PHX_TEST_LONG=1 it runs all.
func TestScriptsDirect(t *testing.T) {
	if os.Getenv("PHX_TEST_LONG") == "1" {
		runScripts(t, "direct", "*")
		return
	}
	runScripts(t, "direct", "actions", "border", "create", "export", "failed", "killed", "recreate", "signals",
		"status", "survive", "trusted")
}

// runScripts runs scripts by a way into containers.
func runScripts(t *testing.T, way string, names ...string) {
	var files []string
	for _, name := range names {
		found, err := filepath.Glob(filepath.Join("testdata", name+".txtar"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no script %s: %v", name, err)
		}
		files = append(files, found...)
	}
	testscript.Run(t, testscript.Params{
		Files: files,
		Setup: func(env *testscript.Env) error {
			if err := setup(env); err != nil {
				return err
			}
			env.Setenv("PHX_ATTACH", way)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"events": events,
			"stages": stages,
			"calls":  calls,
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "full":
				return full(), nil
			case "root":
				return os.Geteuid() == 0, nil
			case "netns":
				return exec.Command("unshare", "-rn", "true").Run() == nil, nil
			case "direct":
				return way == "direct", nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
	})
}

func setup(env *testscript.Env) error {
	for name, value := range environment(env.WorkDir) {
		env.Setenv(name, value)
	}
	return makeHost(env.WorkDir)
}

// environment is that of a host in the directory w.
func environment(w string) map[string]string {
	return map[string]string{
		"WORK":            w,
		"PHX_WORK":        w, // which is passed on to what the programs start
		"PATH":            bin + ":" + repo + "/scripts:" + os.Getenv("PATH"),
		"PHX_PCT":         bin + "/pct",
		"PHX_LAB_DIR":     w + "/host",
		"PHX_LAB_BACKEND": "fake",
		"PHX_LAB_EXEC":    w + "/inside",
		"PHX_PVE_ROOT":    w + "/host/pve",
		"PHX_PVE_LOCK":    w + "/host/lock",
		"PHX_ATTACH":      "pct",
		"PHX_LXC_PATH":    w + "/host/lxc",
		"PHX_PROC":        w + "/host/proc",
		"PHX_SYSROOT":     w + "/host/root",
		"PHX_SUBUID":      w + "/subuid",
		"PHX_SUBGID":      w + "/subgid",
		"PHX_CONFIG":      w + "/phoenix_lxc_configs.json",
		"PHX_CA_FILE":     w + "/ssl/phoenix_ca.crt",
		"PHX_SCRIPTS":     w + "/scripts",
		"PHX_LOCK":        w + "/phx.lock",
		"GORACE":          "atexit_sleep_ms=0",
	}
}

// makeHost makes a Proxmox host in the directory w: its files below host/,
// certificates of a CA below ca/, and stand-ins for the feature scripts and
// for the inside of the containers.
func makeHost(w string) error {
	for _, dir := range []string{"host/pve/lxc", "host/pve/firewall", "host/storage/local/template/cache",
		"host/storage/lab", "host/proc/net", "host/root/sys/class/net/vmbr0/bridge", "scripts", "ca", "ssl"} {
		if err := os.MkdirAll(filepath.Join(w, dir), 0o755); err != nil {
			return err
		}
	}
	shipped, err := os.ReadFile(filepath.Join(repo, "scripts/phoenix_lxc_configs.json"))
	if err != nil {
		return err
	}
	config := strings.NewReplacer(
		"quickOS-lxc-disks", "lab",
		"/usr/local/phoenix_hypervisor/persistent-storage/ssl", w+"/ssl",
	).Replace(string(shipped))
	for name, text := range map[string]string{
		"host/pve/storage.cfg": "dir: local\n\tpath " + w +
			"/host/storage/local\n\tcontent vztmpl\n\nbtrfs: lab\n\tpath " + w +
			"/host/storage/lab\n\tcontent rootdir\n",
		"host/storage/local/template/cache/debian-12-standard_12.12-1_amd64.tar.zst": "",
		"host/proc/net/unix":                    "Num       RefCount Protocol Flags    Type St Inode Path\n",
		"phoenix_lxc_configs.json":              config,
		"subuid":                                "root:100000:65536\n",
		"subgid":                                "root:100000:65536\nroot:44:1\n0:33:2\n",
		"scripts/phoenix_hypervisor_lxc_103.sh": "#!/bin/sh\n",
		"ca/ca.json":                            caConfig,
	} {
		if err := os.WriteFile(filepath.Join(w, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	programs := map[string]string{"inside": inside}
	for _, feature := range []string{"base_setup", "step_cli", "step_ca", "traefik"} {
		programs["scripts/phoenix_hypervisor_feature_install_"+feature+".sh"] = fmt.Sprintf(featureScript, feature)
	}
	for name, text := range programs {
		if err := os.WriteFile(filepath.Join(w, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return certificates(filepath.Join(w, "ca"))
}

// featureScript stands for the script of a feature: it goes into the container as the
// real ones do.
const featureScript = `#!/bin/sh
exec </dev/null
[ "$PHX_ATTACH" != direct ] || exec lxc-attach -P "$PHX_LXC_PATH" -n $1 --clear-env -- feature %[1]s
$PHX_PCT exec --keep-env 0 $1 -- feature %[1]s
`

// inside stands for the inside of every container: PROGRAM CTID COMMAND ARG….
// What the halves in the containers were asked is kept in $WORK/requests.
const inside = `#!/bin/sh
ctid=$1
shift
part_of_hosts() {
	if [ -e "$PHX_WORK/hosts.$ctid" ]; then
		echo "ok $(sed "$1" "$PHX_WORK/hosts.$ctid" | base64 -w0)"
	else
		echo "ok -"
	fi
}
case "$*" in
/bin/true) ;;
*" phx-ca-export")
	while read -r command path rest; do
		case $command:$path in
		look:|peek:) echo "ok own /home/step /home/step/config/ca.json no no" ;;
		read:*/ca.json) echo "ok $(base64 -w0 <"$PHX_WORK/ca/ca.json")" ;;
		read:*/root_ca.crt) echo "ok $(base64 -w0 <"$PHX_WORK/ca/root.crt")" ;;
		read:/etc/hosts) part_of_hosts '/END PHX/q' ;;
		read:*/phx-neighbours.service) part_of_hosts '1,/END PHX/d' ;;
		health:*) if [ -e "$PHX_WORK/sick" ]; then echo "error connection refused"; else echo ok; fi ;;
		put:*/ca.json)
			echo "$command $path" >>"$PHX_WORK/ca.changes"
			echo "$rest" | base64 -d >"$PHX_WORK/ca/ca.json"; echo ok ;;
		*) echo "$command $path" >>"$PHX_WORK/ca.changes"; echo ok ;;
		esac
	done ;;
*"/step ca health "*) [ ! -e "$PHX_WORK/sick" ] || { echo "connection refused" >&2; exit 1; } ;;
feature\ *) echo "$2: $ctid: installed" ;;
*" phoenix_hypervisor_lxc_103.sh 103 "*) cat >/dev/null; echo "the CA is healthy" ;;
*"BEGIN PHX"*) cat >"$PHX_WORK/hosts.$ctid" ;;
*"/phx-nginx shown"|*"/phx-traefik shown")
	[ ! -e "$PHX_WORK/silent" ] || exit 127
	echo '{"need":"request"}'
	IFS= read -r request
	if [ -e "$PHX_WORK/refuses" ]; then
		printf '%s\n' '{"answer":{"stage":"trust","error":"these are\nno roots"}}'
		exit
	fi
	printf '%s\n' "$request" | jq -c --arg error "$(cat "$PHX_WORK/shown.$ctid" 2>/dev/null)" '{answer: {
		certificates: [.value.names[] |
			{name: ., not_after: "2030-01-02T03:04:05Z"} + if $error == "" then {} else {$error} end]}}' ;;
*" phx-nginx "*|*" phx-traefik "*)
	echo '{"need":"request"}'
	IFS= read -r request
	printf '%s %s\n' "$ctid" "$request" >>"$PHX_WORK/requests"
	echo '{"answer":{"names":["a.example"],"changed":false,"changes":[]}}' ;;
*) echo "inside: unexpected in $ctid: $*" >&2; exit 99 ;;
esac
`

// caConfig is the configuration of a CA that is as the shipped file wants it.
const caConfig = `{
	"root": "/home/step/certs/root_ca.crt",
	"crt": "/home/step/certs/intermediate_ca.crt",
	"key": "/home/step/secrets/intermediate_ca_key",
	"address": ":9000",
	"dnsNames": ["ca.internal.thinkheads.ai", "10.0.0.10", "127.0.0.1"],
	"authority": {
		"policy": {"x509": {
			"allow": {"dns": ["internal.thinkheads.ai", "*.internal.thinkheads.ai"]},
			"allowWildcardNames": true}},
		"provisioners": [{"type": "ACME", "name": "acme", "challenges": ["tls-alpn-01"]}]
	}
}
`

// certificates makes certificates: root.crt, other.crt (another CA's root),
// expired.crt, leaf.crt, bundle.crt (root and leaf), truncated.crt, empty.crt,
// and root.fingerprint.
func certificates(dir string) error {
	issue := func(name string, isCA bool, notAfter time.Time, parent *x509.Certificate,
		signer *ecdsa.PrivateKey) ([]byte, *x509.Certificate, *ecdsa.PrivateKey, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, nil, err
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			NotBefore: notAfter.Add(-48 * time.Hour), NotAfter: notAfter,
			IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		}
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), template, key, err
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	root, rootCert, rootKey, err := issue("Root", true, tomorrow, nil, nil)
	if err != nil {
		return err
	}
	other, _, _, err := issue("Other", true, tomorrow, nil, nil)
	if err != nil {
		return err
	}
	expired, _, _, err := issue("Expired", true, time.Now().Add(-time.Hour), nil, nil)
	if err != nil {
		return err
	}
	leaf, _, _, err := issue("leaf.example", false, tomorrow, rootCert, rootKey)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(root)
	sum := sha256.Sum256(block.Bytes)
	for name, data := range map[string][]byte{
		"root.crt": root, "other.crt": other, "expired.crt": expired, "leaf.crt": leaf,
		"bundle.crt": append(append([]byte{}, root...), leaf...), "truncated.crt": root[:len(root)/2], "empty.crt": nil,
		"root.fingerprint": []byte(hex.EncodeToString(sum[:])),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// stages FILE CTID [PROGRAM:STAGE…] checks what a stream tells of the work on a
// container, in this order: each ct.stage, and "warning" in the place of a stage. The
// result of each program has to name the same stages.
func stages(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: stages FILE CTID [PROGRAM:STAGE…]")
	}
	programs := map[string]string{
		"ct.ready": "phx-lxc", "ct.failed": "phx-lxc", "ca.exported": "phx-ca-export", "ca.failed": "phx-ca-export",
		"nginx.ready": "phx-nginx", "nginx.failed": "phx-nginx",
		"traefik.ready": "phx-traefik", "traefik.failed": "phx-traefik",
	}
	var have []string
	told := map[string][]string{} // by program
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var ev struct {
			Event, Program, Stage string
			CTID                  int
			Stages                []struct {
				Stage string
				MS    *int64
			}
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			ts.Fatalf("not an event: %q", line)
		}
		switch {
		case strconv.Itoa(ev.CTID) != args[1]:
		case ev.Event == "ct.stage":
			have = append(have, ev.Program+":"+ev.Stage)
			told[ev.Program] = append(told[ev.Program], ev.Stage)
		case ev.Event == "warning":
			have = append(have, ev.Program+":warning")
		case programs[ev.Event] != "":
			var measured []string
			for _, s := range ev.Stages {
				if s.MS == nil || *s.MS < 0 {
					ts.Fatalf("%s: a stage that is not measured: %q", ev.Event, line)
				}
				measured = append(measured, s.Stage)
			}
			if program := programs[ev.Event]; !slices.Equal(measured, told[program]) {
				ts.Fatalf("%s: %s has measured %q, and has told %q", ev.Event, program, measured, told[program])
			} else {
				delete(told, program)
			}
		}
	}
	if !slices.Equal(have, args[2:]) {
		ts.Fatalf("container %s has %q, want %q", args[1], have, args[2:])
	}
}

// events FILE [EVENT[:CTID]…] checks which events about phx's work a stream
// has, in their order: "events stdout ct.ready:900 ct.failed:103". With ! it
// checks that none of them is there. ct.planned, the plan's frame, and what tells
// of the work before its result (see stages) are left out.
func events(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: events FILE [EVENT[:CTID]…]")
	}
	var have []string
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var ev struct {
			Event string
			CTID  int
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil || !strings.HasSuffix(line, "\n") {
			ts.Fatalf("not an event: %q", line)
		}
		switch {
		case slices.Contains([]string{"ct.planned", "ct.stage", "ct.running", "warning"}, ev.Event),
			strings.HasPrefix(ev.Event, "plan."):
			continue
		}
		name := ev.Event
		if ev.CTID != 0 {
			name += fmt.Sprintf(":%d", ev.CTID)
		}
		have = append(have, name)
	}
	if neg {
		for _, name := range args[1:] {
			for _, h := range have {
				if h == name || strings.HasPrefix(h, name+":") {
					ts.Fatalf("%s has %s", args[0], h)
				}
			}
		}
		return
	}
	// Containers are worked on side by side: only what each event says counts.
	for _, name := range args[1:] {
		found := -1
		for i, h := range have {
			if h == name {
				found = i
			}
		}
		if found < 0 {
			ts.Fatalf("%s lacks %s; it has %s", args[0], name, strings.Join(have, " "))
		}
		have = append(have[:found], have[found+1:]...)
	}
	if len(have) > 0 {
		ts.Fatalf("%s has more than expected: %s", args[0], strings.Join(have, " "))
	}
}

// calls N [M] checks the number of calls of pct since the last check: N, or M where
// the programs leave it out for commands in containers.
func calls(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs("host/log/pct.log")
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		ts.Check(err)
	}
	n := strings.Count(string(data), "\n")
	os.Remove(path)
	if len(args) > 1 && ts.Getenv("PHX_ATTACH") == "direct" {
		args = args[1:]
	}
	if neg == (fmt.Sprint(n) == args[0]) {
		ts.Fatalf("%d calls of pct:\n%s", n, data)
	}
}
