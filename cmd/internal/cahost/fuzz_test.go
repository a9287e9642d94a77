package cahost

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// FuzzContainer: whatever a container answers, it is believed only if it has
// the pinned root, and what is shown of it is short and acts on no terminal.
func FuzzContainer(f *testing.F) {
	store, closeStore, err := OpenStore(f.Context(), &pve.Host{PVERoot: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(closeStore)
	root, err := store.NewRoot()
	if err != nil {
		f.Fatal(err)
	}
	pin := Pin{Primary: cert.Fingerprint(root)}
	if err := store.SetPin(pin); err != nil {
		f.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close() })

	const look = "ok own /home/step /home/step/config/ca.json no no\n"
	encode := func(data string) string { return "ok " + base64.StdEncoding.EncodeToString([]byte(data)) + "\n" }
	ca := encode(`{"root":"/home/step/certs/root_ca.crt","crt":"/home/step/certs/i.crt",` +
		`"key":"/home/step/secrets/i","address":":9000","dnsNames":["ca"],` +
		`"authority":{"provisioners":[{"type":"ACME","name":"acme"},` +
		`{"type":"JWK","name":"phoenix","encryptedKey":"x"}]}}`)
	good := look + ca + encode(string(cert.Encode(root)))
	for _, seed := range []string{
		good + strings.Repeat("ok -\n", 30),
		good + strings.Repeat(encode(string(cert.Encode(root))), 30),
		strings.Replace(good, " no no", " yes stale /home/step/certs/intermediate_ca.crt", 1) +
			strings.Repeat("ok\n", 30),
		strings.Replace(good, "ok own", "ok adopted", 1) + "ok -\nok -\n",
		"ok found /home/step /etc/step-ca/config/ca.json no no\n" + ca +
			"ok -\n", "ok several /home/step /a,/b no no\n", "ok lost /x /y no no\n", "ok none /x /y no no\n",
		"error \x1b]0;owned\a\n", "ok\n", "", look + "ok !!!\n", look + encode("{}"), look +
			encode(`{"root":["/a","/b"],"authority":null}`),
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, answers []byte, change bool) {
		c := &container{ctid: 103, Conversation: &pve.Conversation{
			To: null, From: bufio.NewReaderSize(bytes.NewReader(answers), maxAnswer),
			Ended: make(chan error, 1), Stop: func(error) {},
		}}
		c.Ended <- errors.New("it is over")
		said := 0
		w := &work{Options: Options{Log: func(_ string, args ...any) { said++ }}, store: store, c: c, pin: &pin,
			now: time.Now()}
		if change {
			w.Settings = &settings
		}
		result, err := w.run()
		if err == nil {
			if result.Pin != pin || len(result.Roots) != 1 || !result.Roots[0].Equal(root) {
				t.Errorf("%+v", result)
			}
		} else if text := err.Error(); len(text) > 20000 ||
			strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
			t.Errorf("%d bytes: %.1000q", len(text), text)
		}
		if said > 2*maxIntermediates {
			t.Errorf("%d messages", said)
		}
		if kept, err := store.Pin(); err != nil || kept == nil || *kept != pin {
			t.Fatalf("the pin is %+v, %v", kept, err)
		}
		if _, err := io.Copy(io.Discard, c.From); err != nil {
			t.Fatal(err)
		}
	})
}
