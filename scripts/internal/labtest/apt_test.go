package labtest

import (
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// testAptProxy: with a proxy for apt, the gateway gets nginx from a server that only the proxy reaches, and nothing of
// the proxy stays in the container. The next run, without it, changes nothing.
func (l lab) testAptProxy(t *testing.T) {
	l.in(t, gateway, "sh", "-euc", `
		DEBIAN_FRONTEND=noninteractive apt-get -q -y remove nginx >&2
		mv /opt/phx-lab/apt /opt/phx-lab/away
		cp /etc/apt/sources.list /etc/apt/sources.list.before
		echo "deb [trusted=yes] http://packages.invalid/ ./" >/etc/apt/sources.list
		rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb`)
	t.Cleanup(func() {
		l.in(t, gateway, "sh", "-euc", `
			mv /opt/phx-lab/away /opt/phx-lab/apt
			mv /etc/apt/sources.list.before /etc/apt/sources.list
			apt-get -q update >/dev/null`)
	})
	repos, err := filepath.Glob(l.path("storage", "lab", "images", gateway, "*", "opt/phx-lab/away"))
	if err != nil || len(repos) != 1 {
		t.Fatalf("the container's packages: %q, %v", repos, err)
	}
	var mu sync.Mutex
	var asked []string
	files := http.FileServer(http.Dir(repos[0]))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.String())
		mu.Unlock()
		files.ServeHTTP(w, r)
	})}
	var listener net.Listener
	err = l.inNamespace(func() (err error) {
		listener, err = net.Listen("tcp4", "10.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	defer server.Close()
	url := "http://" + listener.Addr().String()

	out := l.inside(t, "env", "PHX_APT_PROXY="+url, "phoenix")
	if !strings.Contains(out, `"installed nginx"`) {
		t.Errorf("nginx was not installed:\n%s", out)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.ContainsFunc(asked, func(url string) bool {
		return strings.HasPrefix(url, "http://packages.invalid/./nginx_") && strings.HasSuffix(url, ".deb")
	}) {
		t.Errorf("the proxy was asked for %q", asked)
	}
	if left := l.in(t, gateway, "sh", "-c", "grep -rlF "+url+" /etc /root /var/lib /run 2>/dev/null; :"); left != "" {
		t.Errorf("the proxy is left in %s", left)
	}
	checkUnchanged(t, l.inside(t, "phoenix"))
}
