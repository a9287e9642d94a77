package main

import (
	"bytes"
	"io"
	"testing"

	"go.yaml.in/yaml/v3"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// A request that is taken makes configurations that are YAML, without a
// template that Traefik would run, and with the services of the request alone.
func FuzzRequest(f *testing.F) {
	for _, value := range []string{
		`null`, `{}`, `[]`,
		`{"ca_url":"https://10.0.0.10:9000","root":"/x",` +
			`"services":[{"name":"a","host":"a.example","url":"http://10.0.0.3:80"}]}`,
		`{"ca_url":"https://10.0.0.10:9000",` +
			`"services":[{"name":"a","host":"a.example","url":"https://[::1]:80","ca":true}],` +
			`"gateway":"10.0.0.1"}`,
		`{"ca_url":"https://10.0.0.10:9000","gateway":"10.0.0.1","gateway_also":["fd00::1"],` +
			`"services":[{"name":"a.b","host":"a.b.example","url":"https://[fd00::1]:80","insecure":true,` +
			`"server_name":"c.example"}],` +
			`"dashboard":{"name":"t","host":"t.example","allow":["10.0.0.0/8"]}}`,
		`{"ca_url":"https://10.0.0.10:9000","services":[{"name":"a{{","host":"a.example",` +
			`"url":"http://10.0.0.3:80/{{ env }}"}]}`,
		"{\"ca_url\":\"https://10.0.0.10:9000\",\"services\":[{\"name\":\"a\",\"host\":\"a`)||Host(`b\"," +
			"\"url\":\"http://10.0.0.3:80\"}]}",
	} {
		f.Add([]byte(`{"value":` + value + "}\n"))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var p proxy
		if err := remote.NewPeer(bytes.NewReader(line), io.Discard).Ask("request", &p); err != nil || p.check() != nil {
			return
		}
		names := map[string]bool{}
		for _, s := range p.Services {
			names[s.Name] = true
		}
		for _, text := range [][]byte{p.static(usualHours), p.dynamic()} {
			var parsed struct {
				HTTP struct {
					Services map[string]any
				}
			}
			if err := yaml.Unmarshal(text, &parsed); err != nil || bytes.Contains(text, []byte("{{")) {
				t.Fatalf("%v:\n%s", err, text)
			}
			for name := range parsed.HTTP.Services {
				if !names[name] {
					t.Fatalf("service %q:\n%s", name, text)
				}
			}
		}
	})
}
