package main

import (
	"bytes"
	"context"
	"encoding/json"
	"html"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A browser is a headless Chromium for which every host of the network is one
// server of the test.
type browser struct {
	path   string
	dir    string
	server string // HOST:PORT

	mu   sync.Mutex
	asks []string // of the server
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	full := os.Getenv("PHX_TEST_FULL") == "1"
	if !full && *keepDir == "" {
		t.Skip("it takes long: PHX_TEST_FULL=1 runs it")
	}
	path, err := exec.LookPath("chromium")
	switch {
	case err == nil:
	case os.Geteuid() == 0: // scripts/test has installed it
		t.Fatal("no chromium in PATH: Debian's package chromium has it")
	default:
		t.Skip("no chromium in PATH") // scripts/test says so
	}
	b := &browser{path: path, dir: t.TempDir()}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if r.Host != "update.googleapis.com" { // which Debian 13's Chromium asks, whatever it is told
			b.asks = append(b.asks, r.Host+r.URL.Path)
		}
	}))
	t.Cleanup(server.Close)
	b.server = server.Listener.Addr().String()
	if *keepDir != "" {
		b.dir = *keepDir
	}
	return b
}

// open has the browser open a page, and returns what it writes to stdout.
func (b *browser) open(t *testing.T, page string, options ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.path, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
		"--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
		"--disable-features=NetworkTimeServiceQuerying", "--hide-scrollbars",
		"--user-data-dir=" + t.TempDir(), "--host-resolver-rules=MAP * " + b.server,
	}, append(options, "file://"+page)...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, stderr.Bytes())
	}
	return string(out)
}

// asked returns what the server was asked since the last call.
func (b *browser) asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	asks := b.asks
	b.asks = nil
	return asks
}

func (b *browser) file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func content(t *testing.T, s *script) []byte {
	t.Helper()
	page, err := makePage(s.run(t))
	if err != nil {
		t.Fatal(err)
	}
	return page
}

const attack = `<script>document.title='CANARY-RAN'</script><img src="http://canary.example/img">
<style>body { background: url(http://canary.example/css) }</style><svg onload="document.title='CANARY-RAN'"></svg>
<form action="http://canary.example/form"></form><iframe src="http://canary.example/frame"></iframe>
<link rel="stylesheet" href="http://canary.example/link">`

// TestPageInBrowser: no page asks anything of the network, no script of the events
// runs, and all that they say is there as text. Were the escaping broken, the
// policy of the page would hold it.
func TestPageInBrowser(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)

	// Without a policy the attack works here; else the test could not fail.
	bare := b.file(t, "attack.html", []byte("<!doctype html><title>t</title>"+attack))
	dom, asked := b.open(t, bare, "--dump-dom"), b.asked()
	if !strings.Contains(dom, "<title>CANARY-RAN") || len(asked) < 4 {
		t.Fatalf("the attack does nothing to a page without defence: asked for %q\n%s", asked, dom)
	}
	page := content(t, manyContainers(4))
	inside := b.file(t, "inside.html", bytes.Replace(page, []byte("<main>"), []byte("<main>"+attack), 1))
	dom = b.open(t, inside, "--dump-dom")
	if asked := b.asked(); strings.Contains(dom, "<title>CANARY-RAN") || len(asked) > 0 {
		t.Errorf("the policy does not hold: asked for %q", asked)
	}

	dom = b.open(t, b.file(t, "hostile.html", content(t, hostile())), "--dump-dom")
	if asked := b.asked(); len(asked) > 0 {
		t.Errorf("the page asks for %q", asked)
	}
	if strings.Contains(dom, "<title>CANARY-RAN") {
		t.Error("a script has run")
	}
	elements := regexp.MustCompile(`(?i)<(script|img|iframe|link|object|embed|form|base|input|button)\b[^>]*>`)
	if m := elements.FindString(dom); m != "" {
		t.Errorf("an element of the events is in the page: %s", m)
	}
	links := regexp.MustCompile(`<[a-z]+ [^<>]*href="([^"]*)"`).FindAllStringSubmatch(dom, -1)
	for _, m := range links {
		if !strings.HasPrefix(m[1], "#") {
			t.Errorf("a link to %s", m[1])
		}
	}
	if len(links) == 0 {
		t.Error("no links at all: the test does not see them")
	}
	for _, want := range []string{
		"<script>document.title='CANARY-RAN'</script>", `{{.Policy}}{{template "lines"}}`,
		`RTL \u202e\u2066gnp.exe\u2069\u200f`, `control \x00\a\x1b[2J`,
	} {
		if !strings.Contains(html.UnescapeString(dom), want) {
			t.Errorf("the page does not show %s", want)
		}
	}
}

// measure is put into a copy of a page whose policy lets it run: it writes into the
// title how wide the page is, and all texts that are hard to read.
const measure = `<script>
function numbers(c) { return c.match(/[\d.]+/g).map(Number) }
function light(c) {
  const [r, g, b] = numbers(c).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  return .2126 * r + .7152 * g + .0722 * b
}
function ground(e) {
  for (; e; e = e.parentElement) {
    if (e.matches('svg.bar:not(.endless), g.node')) return getComputedStyle(e.querySelector('rect')).fill
    const c = getComputedStyle(e).backgroundColor
    if (numbers(c).length == 3) return c
  }
}
const dim = {}
let texts = 0
for (const details of document.querySelectorAll('details')) details.open = true
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
for (let n; n = walker.nextNode();) {
  const e = n.parentElement
  if (!n.data.trim() || e.closest('title, script')) continue
  texts++
  const style = getComputedStyle(e)
  const [a, b] = [light(e.closest('svg') ? style.fill : style.color), light(ground(e))]
  const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
  if (contrast < 4.5) dim[e.tagName + '.' + e.className + ' ' + n.data.trim().slice(0, 20)] = contrast
}
document.title = JSON.stringify({wide: document.documentElement.scrollWidth - innerWidth, texts, dim})
</script>`

// TestPageIsReadable: light and dark, on a wide and on a narrow screen, no text is
// too faint (WCAG AA), and the page is not wider than the window.
func TestPageIsReadable(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	for _, test := range []struct{ name, scheme, window string }{
		{"4", dark, "500,900"}, {"200", light, "1200,900"}, {"hostile", light, "500,900"}, {"status", dark, "1200,900"},
		{"cut-short", light, "1200,900"},
	} {
		page := content(t, pages()[test.name])
		page = regexp.MustCompile(`<meta http-equiv=[^>]*>`).ReplaceAll(page, nil)
		path := b.file(t, "measured.html", bytes.Replace(page, []byte("</body>"), []byte(measure+"</body>"), 1))
		dom := b.open(t, path, "--dump-dom", test.scheme, "--window-size="+test.window)
		var got struct {
			Wide, Texts int
			Dim         map[string]float64
		}
		_, title, _ := strings.Cut(dom, "<title>")
		title, _, _ = strings.Cut(title, "</title>")
		if err := json.Unmarshal([]byte(html.UnescapeString(title)), &got); err != nil {
			t.Fatalf("%v: %v: %.300s", test, err, title)
		}
		if got.Texts < 40 || got.Wide > 0 || len(got.Dim) > 0 {
			t.Errorf("%v: %d texts, the page stands out by %d pixels, too faint: %v",
				test, got.Texts, got.Wide, got.Dim)
		}
	}
}

const (
	dark  = "--blink-settings=preferredColorScheme=0"
	light = "--blink-settings=preferredColorScheme=1"
)

// TestPagePictures: the page follows the browser's choice of light and dark, and
// prints.
func TestPagePictures(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	small, large := content(t, manyContainers(4)), content(t, manyContainers(200))
	for _, test := range []struct {
		name, scheme string
		page         []byte
		ground       color.NRGBA
	}{
		{"4-dark", dark, small, color.NRGBA{0x14, 0x17, 0x1c, 0xff}},
		{"4-light", light, small, color.NRGBA{0xff, 0xff, 0xff, 0xff}},
		{"200-light", light, large, color.NRGBA{0xff, 0xff, 0xff, 0xff}},
	} {
		picture := filepath.Join(b.dir, test.name+".png")
		path := b.file(t, test.name+".html", test.page)
		b.open(t, path, "--screenshot="+picture, "--window-size=1200,1900", test.scheme)
		img := decode(t, picture)
		if got := color.NRGBAModel.Convert(img.At(2, 2)); got != test.ground {
			t.Errorf("%s: the ground is %v, want %v", test.name, got, test.ground)
		}
		colours := map[color.Color]bool{}
		for y := 0; y < 1900; y += 3 {
			for x := 0; x < 1200; x += 3 {
				colours[img.At(x, y)] = true
			}
		}
		if len(colours) < 40 {
			t.Errorf("%s: a picture of %d colours: it is empty", test.name, len(colours))
		}
	}
	print := filepath.Join(b.dir, "200.pdf")
	b.open(t, b.file(t, "200.html", large), "--print-to-pdf="+print, "--no-pdf-header-footer")
	pdf, err := os.ReadFile(print)
	if err != nil {
		t.Fatal(err)
	}
	n := len(regexp.MustCompile(`/Type ?/Page\b[^s]`).FindAll(pdf, -1))
	if !bytes.HasPrefix(pdf, []byte("%PDF")) || n < 2 || n > 25 {
		t.Errorf("printed on %d pages, want 2 to 25", n)
	}
}

func decode(t *testing.T, path string) image.Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return img
}
