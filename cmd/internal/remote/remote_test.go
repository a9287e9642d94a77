package remote

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/event"
)

// The longest answer fits into an event, however its text is escaped there.
func TestAnswerFitsIntoAnEvent(t *testing.T) {
	for _, char := range []string{"\x01", "\u009b", "\u2028", "\"", "é", "\u202e"} {
		long := &Answer{Error: strings.Repeat(char, 200_000)}
		for i := range 3000 {
			long.Certificates = append(long.Certificates, Certificate{
				Name:   fmt.Sprintf("n%d.example", i),
				Issuer: strings.Repeat(char, 200), Error: strings.Repeat(char, 2000),
			})
		}
		for range 300 {
			long.Changes = append(long.Changes, strings.Repeat(char, 2000))
		}
		var sent bytes.Buffer
		if err := NewPeer(nil, &sent).Answer(long); err != nil || sent.Len() > maxLine {
			t.Errorf("%q: %d bytes sent, %v", char, sent.Len(), err)
		}
		certificate := long.Certificates[0]
		certificate.Name = "a.example"
		hostile := &Answer{Error: strings.Repeat(char, 20_000), Changes: make([]string, 50_000),
			Certificates: []Certificate{certificate, certificate}}
		for i := range 200 {
			hostile.Changes[i] = strings.Repeat(char, 1500)
		}
		line, err := json.Marshal(message{Answer: hostile})
		if err != nil {
			t.Fatal(err)
		}
		if len(line) >= maxLine {
			line, _ = json.Marshal(message{Answer: long})
		}
		for _, line := range [][]byte{line, bytes.TrimSpace(sent.Bytes())} {
			got, err := Serve(bytes.NewReader(append(line, '\n')), io.Discard, nil, []string{"a.example"}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Error) > maxError || len(got.Changes) > maxChanges || len(got.Changes[0]) > maxChange {
				t.Errorf("%q: %d bytes of error, %d changes, the first of %d bytes", char, len(got.Error),
					len(got.Changes), len(got.Changes[0]))
			}
			if !strings.HasSuffix(got.Error, " bytes more)") ||
				!strings.HasSuffix(got.Changes[maxChanges-1], " more)") {
				t.Errorf("%q: it does not say that it was cut: %q", char, got.Changes[maxChanges-1])
			}
			if n := len(got.Certificates); n > 1 || n == 1 && len(got.Certificates[0].Error) > maxCertError {
				t.Errorf("%q: certificates %+v", char, got.Certificates)
			}
			if err := fitsIntoEvents(got); err != nil {
				t.Errorf("%q: %v", char, err)
			}
		}
		long.Certificates = Fit(long.Certificates)
		if n := len(long.Certificates); n < 10 || n == 3000 {
			t.Errorf("%q: %d certificates fit", char, n)
		}
		if err := fitsIntoEvents(&Answer{Certificates: long.Certificates}); err != nil {
			t.Errorf("%q: %v", char, err)
		}
	}
}

// Of certificates that a container tells of, those count whose names the host knows, each once.
func TestCertificatesAreChecked(t *testing.T) {
	serve := func(certificates string) (*Answer, error) {
		line := `{"answer":{"changes":[],"certificates":` + certificates + "}}\n"
		return Serve(strings.NewReader(line), io.Discard, nil, []string{"a.example", "b.example"}, nil, nil)
	}
	sum := strings.Repeat("ab", 32)
	got, err := serve(`[{"name":"b.example","sha256":"` + sum + `","not_after":"2030-01-02T03:04:05.5+01:00"},` +
		`{"name":"x.example"},{"name":"a.example"},{"name":"b.example","error":"no"}]`)
	if err != nil || len(got.Certificates) != 2 || got.Certificates[0].Name != "b.example" ||
		got.Certificates[0].Error != "" || got.Certificates[1].Name != "a.example" ||
		got.Certificates[0].NotAfter.Format(time.RFC3339Nano) != "2030-01-02T02:04:05Z" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, lie := range []string{`[{"name":"a.example","sha256":"abc"}]`,
		`[{"name":"a.example","not_after":"9999-12-31T23:59:59Z"}]`, `[{"name":7}]`, `{}`} {
		if got, err := serve(lie); err == nil {
			t.Errorf("%s: %+v", lie, got)
		}
	}
}

// Where there is no room for all, those that do not verify, and those that expire first, are kept.
func TestFit(t *testing.T) {
	now := time.Now()
	var all []Certificate
	for i := range 5000 {
		all = append(all, Certificate{
			Name: fmt.Sprintf("n%d.example", i), NotAfter: now.Add(time.Duration(-i) * time.Hour),
		})
	}
	all[7].Error = "expired"
	fit := Fit(all)
	if len(fit) >= len(all) || fit[0].Name != "n7.example" || fit[len(fit)-1].Name != "n4999.example" {
		t.Errorf("%d of %d, from %s to %s", len(fit), len(all), fit[0].Name, fit[len(fit)-1].Name)
	}
}

// fitsIntoEvents returns an error if an event cannot hold the answer.
func fitsIntoEvents(a *Answer) error {
	_, err := event.Append(nil, event.NginxReady{CTID: 101, Names: a.Names, NotAfter: a.NotAfter, Changed: a.Changed,
		Changes: a.Changes, Certificates: certificates(a.Certificates)})
	if err == nil {
		_, err = event.Append(nil, event.NginxFailed{CTID: 101, Stage: a.Stage, Error: a.Error})
	}
	return err
}

func certificates(all []Certificate) []event.Certificate {
	var converted []event.Certificate
	for _, c := range all {
		converted = append(converted, event.Certificate(c))
	}
	return converted
}

// What the host sends has the same limit.
func TestHostSendsNoMoreThanALine(t *testing.T) {
	var out bytes.Buffer
	if err := send(&out, "request", func(string) (any, error) { return strings.Repeat("x", 2<<20), nil }); err != nil {
		t.Fatal(err)
	}
	var value string
	err := NewPeer(bytes.NewReader(out.Bytes()), io.Discard).Ask("request", &value)
	if err == nil || !strings.Contains(err.Error(), "the request is longer than 1 MiB") {
		t.Errorf("%d bytes sent, error %v", out.Len(), err)
	}
	endless := io.MultiReader(strings.NewReader(`{"value":"`), neverEnds{})
	if err := NewPeer(endless, io.Discard).Ask("request", &value); err == nil ||
		!strings.Contains(err.Error(), "sends a line longer than 1 MiB") {
		t.Errorf("error %v", err)
	}
}

type neverEnds struct{}

func (neverEnds) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// Whatever the half in the container says, the half on the host comes to an end
// with it, keeps within its limits, and asks for nothing twice.
func FuzzTalk(f *testing.F) {
	for _, said := range []string{
		"", "\n", "null\n", "{}\n", `{"need":"request"}` + "\n", `{"need":"program"}` + "\n" +
			`{"answer":{"changes":["x"],"changed":true}}` + "\n",
		`{"need":"token"}` + "\n" + `{"need":"token"}` +
			"\n", `{"answer":{"stage":"check","error":"\u001b[2J","not_after":"2030-01-02T03:04:05Z"}}` + "\n",
		`{"stage":"packages"}` + "\n" + `{"warning":"\u001b[2J"}` + "\n" + `{"stage":"x y z","need":"request"}` +
			"\n" + `{"answer":{}}` + "\n", strings.Repeat(`{"warning":"x"}`+"\n", 100),
		`{"answer":{"stage":7}}` + "\n", `{"answer":{"not_after":"9999-12-31T23:59:59-23:59"}}` +
			"\n", `{"Need":"request","need":"x"}` + "\n", "[[[[\n", "\xff\xfe\n",
	} {
		f.Add([]byte(said))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		asked, told := map[string]bool{}, 0
		names := []string{"a.example"}
		var sent bytes.Buffer
		program := strings.NewReader("program")
		answer, err := Serve(bytes.NewReader(said), &sent, program, names, func(need string) (any, error) {
			if asked[need] || !needForm.MatchString(need) {
				t.Fatalf("asked for %q", need)
			}
			asked[need] = true
			return need, nil
		}, func(n Note) {
			told++
			if n.Stage != "" && checkStage(n.Stage) != nil || len(n.Warning) > maxWarning {
				t.Fatalf("told %+v", n)
			}
		})
		if told > 2*maxNotes {
			t.Fatalf("told %d things", told)
		}
		if (answer == nil) == (err == nil) || len(asked) > maxNeeds || sent.Len() > maxNeeds*100 {
			t.Fatalf("answer %+v, error %v, %d needs, %d bytes sent", answer, err, len(asked), sent.Len())
		}
		if err != nil {
			if len(err.Error()) > 2000 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if len(answer.Error) > maxError || len(answer.Changes) > maxChanges || answer.Changes == nil ||
			len(answer.Names) != 1 || answer.Names[0] != names[0] {
			t.Fatalf("answer %+v", answer)
		}
		for _, change := range answer.Changes {
			if len(change) > maxChange {
				t.Fatalf("a change of %d bytes", len(change))
			}
		}
		if len(answer.Certificates) > 1 {
			t.Fatalf("certificates %+v", answer.Certificates)
		}
		if err := fitsIntoEvents(answer); err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever comes from the host, the half in the container reads one line of it
// at most, or says what is wrong.
func FuzzRequest(f *testing.F) {
	for _, said := range []string{"", "\n", `{"value":{"a":1}}` + "\n", `{"error":"no"}` + "\n", `{"value":null}` +
		"\n", "{}\n", "[]\nx\n", `{"value":{"a":1}}`} {
		f.Add([]byte(said))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		var value map[string]any
		err := NewPeer(bytes.NewReader(said), io.Discard).Ask("request", &value)
		line, _, ended := bytes.Cut(said, []byte{'\n'})
		if (!ended || !json.Valid(line)) && err == nil {
			t.Fatalf("%q is a reply", said)
		}
	})
}

// The container's half links this package: it needs nothing beyond the standard
// library.
func TestLeaf(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != "thinkheads.ai/phx/cmd/internal/remote" {
		t.Errorf("it links:\n%s", got)
	}
}

// What the half in the container tells meanwhile is passed on in order, as much as
// the host takes.
func TestTell(t *testing.T) {
	var said bytes.Buffer
	peer := NewPeer(nil, &said)
	for i := range 2 * maxNotes {
		if told := peer.Tell(Note{Stage: "waiting for another run"}); told != (i < maxNotes) {
			t.Errorf("stage %d: %v", i, told)
		}
	}
	if !peer.Tell(Note{Warning: strings.Repeat("é", maxWarning)}) {
		t.Error("a warning is not told")
	}
	if err := peer.Answer(&Answer{}); err != nil {
		t.Fatal(err)
	}
	var notes []Note
	_, err := Serve(&said, io.Discard, nil, nil, nil, func(n Note) { notes = append(notes, n) })
	if err != nil || len(notes) != maxNotes+1 || notes[0].Stage != "waiting for another run" ||
		!strings.HasSuffix(notes[maxNotes].Warning, " bytes more)") || len(notes[maxNotes].Warning) > maxWarning {
		t.Errorf("%d notes, %v: %q", len(notes), err, notes)
	}
	gone := NewPeer(nil, brokenPipe{})
	if gone.Tell(Note{Stage: "check"}) {
		t.Error("told to nobody")
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
