package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// Looks of the action check at the host itself.

func (s *survey) root(context.Context) []point {
	if uid := os.Geteuid(); uid != 0 {
		return []point{bad("run as root: sudo phoenix check", "this is the user %d", uid)}
	}
	return []point{good("this is root")}
}

// pct looks whether pct answers, and, where runs know without it which containers
// run, whether it says the same.
func (s *survey) pct(ctx context.Context) []point {
	failed := func(err error) []point {
		p := fails(err)
		p.remedy = cmp.Or(p.remedy, "see what it says, and how long it takes, with: pct list")
		return []point{p}
	}
	if s.listed != nil {
		return failed(s.listed)
	}
	if !s.host.Direct {
		return []point{good("pct list answers")}
	}
	byPCT := *s.host
	byPCT.Direct = false
	before := s.known
	theirs, err := byPCT.List(ctx)
	if err != nil {
		return failed(err)
	}
	after, err := s.host.List(ctx)
	if err != nil {
		return failed(err)
	}
	for ctid, state := range after {
		if state == before[ctid] && state != theirs[ctid] { // it was not started or stopped just now
			return []point{bad("have runs ask pct, with PHX_ATTACH=pct, and report this to phx's developers",
				"container %d is %s for pct list, and %s by LXC's socket", ctid,
				cmp.Or(theirs[ctid], "missing"), state)}
		}
	}
	return []point{good("pct list answers, and says what runs know without it")}
}

// oldestPCT is the first version of pve-container whose pct exec knows --keep-env,
// without which programs in containers would have the host's environment.
const oldestPCT = "5.0.9"

func (s *survey) version(context.Context) []point {
	switch version := s.options.pctVersion; {
	case version == "":
		return []point{leftOut("the package is not installed: this is no Proxmox VE")}
	case config.CompareVersions(version, oldestPCT) < 0:
		return []point{bad("update Proxmox VE: apt update && apt dist-upgrade",
			"%s: phx needs %s", version, oldestPCT)}
	default:
		return []point{good("%s", version)}
	}
}

func (s *survey) clusterFiles(context.Context) []point {
	if err := s.host.CheckClusterFiles(); err != nil {
		return []point{fails(err)}
	}
	return []point{good("it is there, and can be written to")}
}

// gpus looks for the devices of GPUs. A container starts without them.
func (s *survey) gpus(context.Context) []point {
	var found findings
	n := 0
	for i, j := range s.jobs {
		if s.wrong[i] != nil || len(j.c.GPUs) == 0 {
			continue
		}
		n++
		names := []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}
		for _, gpu := range j.c.GPUs {
			names = append(names, fmt.Sprintf("nvidia%d", gpu))
		}
		var missing []string
		for _, name := range names {
			if _, err := os.Stat(s.path("dev", name)); err != nil {
				missing = append(missing, "/dev/"+name)
			}
		}
		if len(missing) > 0 {
			found.add(j.c, warns("install NVIDIA's driver on the host, and have it make them: nvidia-modprobe -u -c 0",
				"not there, and so not in the container: %s", strings.Join(missing, ", ")))
		}
	}
	if n > 0 && len(found.all) == 0 {
		return []point{good("in order for %s", count(n, "container"))}
	}
	return found.points()
}

// oldScripts looks for what still runs of the scripts before phx.
func (s *survey) oldScripts(context.Context) []point {
	var points []point
	// A job of cron that renews certificates, or runs the old commands.
	jobs, _ := filepath.Glob(s.path("etc/cron.d/*"))
	jobs = append(jobs, s.path("etc/crontab"), s.path("var/spool/cron/crontabs/root"))
	for _, file := range jobs {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "#") {
				continue
			}
			var wayOut string
			switch {
			case strings.Contains(line, "certificate-renewal-manager.sh"):
				wayOut = "gateway and proxy renew theirs themselves: take them out of certificate-manifest.json, and " +
					"if nothing is left in it, take this line away"
			case strings.Contains(line, "/bin/phoenix-cli"), strings.Contains(line, "managers/lxc-manager.sh"):
				wayOut = "have it run phx: /usr/local/phoenix_hypervisor/scripts/phoenix"
			default:
				continue
			}
			points = append(points, warns(wayOut, "%s still runs: %s", file, line))
		}
	}
	link := s.path("usr/local/bin/phoenix")
	if to, err := os.Readlink(link); err == nil && strings.HasSuffix(to, "/bin/phoenix-global") {
		shim := "/usr/local/phoenix_hypervisor/scripts/phoenix-cli"
		points = append(points, warns("have it lead to that of phx: "+remedy.Quote([]string{"ln", "-sfn", shim, link}),
			"%s is the command of the scripts before phx: %s", link, to))
	}
	points = append(points, s.oldManifest()...)
	if len(points) == 0 {
		return []point{good("none of them runs any more")}
	}
	return points
}

// oldManifest looks for certificates that the scripts before phx renew, and that are
// phx's now.
func (s *survey) oldManifest() []point {
	if s.plan.Config == "" {
		return nil
	}
	file := filepath.Join(filepath.Dir(s.jobs[0].configPath()), "certificate-manifest.json")
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var named []string
	for _, service := range []string{"nginx", "traefik"} {
		if strings.Contains(strings.ToLower(string(text)), service) {
			named = append(named, service)
		}
	}
	if len(named) == 0 {
		return nil
	}
	return []point{warns("take those of gateway and proxy out of it",
		"%s has certificates for %s, which phx keeps now", file, strings.Join(named, " and "))}
}

// A program is one that feature scripts put into containers.
type program struct{ name, url, archive, sum string }

// programs looks for the programs that feature scripts name and that are still to be
// installed: in PHX_ASSETS, among what was downloaded before, or whether they can be
// downloaded.
func (s *survey) programs(ctx context.Context) []point {
	var needed []program
	tables := map[string][]program{}
	for i, j := range s.jobs {
		if s.wrong[i] != nil {
			continue
		}
		for _, feature := range j.c.Features {
			script, err := j.readFeature(feature)
			if err != nil || j.ct.Record[script.name] == script.hash {
				continue // it is not there, see scripts; or has installed them
			}
			for _, a := range s.options.scripts.Assets(script.Script) {
				table := strings.TrimSuffix(a.Library, ".sh") + ".tsv"
				if tables[table] == nil {
					tables[table] = readAssets(table)
				}
				for _, p := range tables[table] {
					if p.name == a.Name && !slices.Contains(needed, p) {
						needed = append(needed, p)
					}
				}
			}
		}
	}
	if len(needed) == 0 {
		return []point{good("none has to be installed any more")}
	}
	var points []point
	for _, p := range needed {
		points = append(points, s.checkProgram(ctx, p).named("program %s", p.name))
	}
	return points
}

// readAssets reads the releases for this host's architecture.
func readAssets(file string) []program {
	all := []program{}
	text, err := os.ReadFile(file)
	if err != nil {
		return all
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) >= 5 && !strings.HasPrefix(line, "#") && f[2] == runtime.GOARCH {
			all = append(all, program{f[0], f[3], filepath.Base(f[3]), f[4]})
		}
	}
	return all
}

// checkProgram looks for a program as phoenix_assets.sh does.
func (s *survey) checkProgram(ctx context.Context, p program) point {
	if assets := os.Getenv("PHX_ASSETS"); assets != "" {
		return checkAsset(ctx, assets, p)
	}
	cache := os.Getenv("PHX_CACHE")
	if cache == "" {
		cache = "/var/cache/phx"
	}
	if dir := filepath.Join(cache, p.sum); listedSum(dir, p.name) != "" {
		if _, err := os.Stat(filepath.Join(dir, p.name)); err == nil {
			return good("was downloaded before, to %s", dir)
		}
	}
	if err := reach(ctx, http.DefaultTransport, p.url); err != nil {
		return bad(fmt.Sprintf("let this host reach it, or put %s, or %s with a SHA256SUMS, into a "+
			"directory and name that in PHX_ASSETS", p.archive, p.name), "%s cannot be downloaded: %v", p.url, err)
	}
	return good("%s can be downloaded", p.url)
}

// checkAsset looks for a program in a directory of programs or of archives.
func checkAsset(ctx context.Context, dir string, p program) point {
	file, want := filepath.Join(dir, p.name), listedSum(dir, p.name)
	if _, err := os.Stat(file); want == "" || err != nil {
		file, want = filepath.Join(dir, p.archive), p.sum
	}
	have, err := sumOf(ctx, file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return bad("put one there, or unset PHX_ASSETS to download",
			"PHX_ASSETS=%s: has neither %s listed in its SHA256SUMS nor %s", dir, p.name, p.archive)
	case err != nil:
		return bad("put it there again", "%v", err)
	case have != want:
		return bad("put it there again, or correct SHA256SUMS if the file is as it is to be",
			"%s: wrong checksum: expected sha256 %s, found %s", file, want, have)
	}
	return good("%s has its checksum", file)
}

// listedSum is the SHA-256 that a directory's SHA256SUMS has for a name, "" for none.
func listedSum(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 2 && strings.TrimPrefix(strings.TrimPrefix(f[1], "*"), "./") == name {
			return strings.ToLower(f[0])
		}
	}
	return ""
}

func sumOf(ctx context.Context, file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	in := bufio.NewReaderSize(f, 1<<20)
	for {
		if _, err := io.CopyN(sum, in, 16<<20); err == io.EOF {
			return hex.EncodeToString(sum.Sum(nil)), nil
		} else if err != nil {
			return "", err
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
	}
}

// reachTimeout is how long a server may take to say that it has a file.
const reachTimeout = 15 * time.Second

// reach asks whether a file can be downloaded, over HTTPS alone, as
// phoenix_assets.sh does.
func reach(ctx context.Context, by http.RoundTripper, url string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, reachTimeout, fmt.Errorf("no answer after %s", reachTimeout))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: by, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Scheme != "https" || len(via) > 10 {
			return fmt.Errorf("it leads to %s", r.URL.Redacted())
		}
		return nil
	}}
	answer, err := client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return errors.New(cmdline.OneLine(err.Error()))
	}
	answer.Body.Close()
	if code := answer.StatusCode; code != http.StatusOK {
		return fmt.Errorf("the answer is %d %s", code, http.StatusText(code))
	}
	return nil
}
