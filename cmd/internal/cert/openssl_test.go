package cert

import (
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// seenByOpenSSL returns the common names of the certificates that OpenSSL
// reads in a file of trusted certificates, as nginx has it do.
func seenByOpenSSL(t *testing.T, data []byte) []string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "trusted.crt")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	p7, err := exec.Command("openssl", "crl2pkcs7", "-nocrl", "-certfile", name).Output()
	if err != nil {
		return nil // it reads nothing at all
	}
	show := exec.Command("openssl", "pkcs7", "-print_certs", "-noout")
	show.Stdin = strings.NewReader(string(p7))
	out, err := show.Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^subject=CN *= *(.*)$`).FindAllStringSubmatch(string(out), -1) {
		names = append(names, m[1])
	}
	return names
}

// OpenSSL must never see a certificate in a file that this package has not
// seen: it would be one that nobody has checked, and that nginx trusts.
func TestOpenSSLSeesNoOther(t *testing.T) {
	good := issue(t, "EC", "good", true, nil)
	evil := issue(t, "EC", "evil", true, nil)
	p, e := string(pemOf(good)), string(pemOf(evil))
	body := func(s string) string {
		return strings.TrimSuffix(strings.TrimPrefix(s, "-----BEGIN CERTIFICATE-----\n"), "-----END CERTIFICATE-----\n")
	}
	block := func(kind string) string { return strings.ReplaceAll(e, "CERTIFICATE", kind) }
	oneLine := "-----BEGIN CERTIFICATE-----\n" + base64.StdEncoding.EncodeToString(evil.Raw) +
		"\n-----END CERTIFICATE-----\n"
	headers := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: evil.Raw,
		Headers: map[string]string{"a": "b"}}))
	trusted := block("TRUSTED CERTIFICATE")
	long := strings.Repeat("x", 254)

	variants := map[string]string{
		"alone":                        p,
		"text around":                  "Root:\n\tCN = gööd\n" + p + "end",
		"CR LF":                        string(crlf([]byte(p))),
		"two":                          p + e,
		"two, the other first":         e + p,
		"X509 CERTIFICATE":             p + block("X509 CERTIFICATE"),
		"X509 CERTIFICATE first":       block("X509 CERTIFICATE") + p,
		"TRUSTED CERTIFICATE":          p + trusted,
		"X509 CERTIFICATE alone":       block("X509 CERTIFICATE"),
		"headers":                      p + headers,
		"headers first":                headers + p,
		"a dash before":                p + "-" + e,
		"a dash before, first":         "-" + e + p,
		"text before, same line":       p + "x" + e,
		"a blank before":               p + " " + e,
		"a tab before":                 p + "\t" + e,
		"a byte order mark":            "\ufeff" + e + p,
		"NUL before":                   p + "\x00" + e,
		"NUL line":                     p + "\x00\n" + e,
		"escape before":                p + "\x1b[2J" + e,
		"carriage return before":       p + "\r" + e,
		"carriage return inside":       p + strings.Replace(e, "\n", "\r\r\n", 1),
		"vertical tab after":           p + strings.Replace(e, "-----\n", "-----\v\n", 1),
		"form feed after":              p + strings.Replace(e, "-----\n", "-----\f\n", 1),
		"a blank after":                p + strings.Replace(e, "-----\n", "----- \n", 1),
		"a control character after":    p + strings.Replace(e, "-----\n", "-----\x01\n", 1),
		"DEL after the end":            p + strings.TrimSuffix(e, "\n") + "\x7f\n",
		"a line as long as the buffer": p + long + e,
		"one less":                     p + long[1:] + e,
		"one line of base64":           p + oneLine,
		"a blank line inside":          p + strings.Replace(e, "-----\n", "-----\n\n", 1),
		"a header without value":       p + strings.Replace(e, "-----\n", "-----\nx:\n\n", 1),
		"a comment inside":             p + strings.Replace(e, "-----\n", "-----\n# x\n", 1),
		"control characters inside":    p + strings.Replace(e, "-----\n", "-----\n\x01", 1),
		"blanks inside":                p + strings.Replace(e, "-----\n", "-----\n ", 1),
		"blanks after the lines":       p + strings.ReplaceAll(e, "\n", " \n"),
		"no newline between":           strings.TrimSuffix(p, "\n") + e,
		"the end of another kind": p + "-----BEGIN CERTIFICATE-----\n" + body(e) +
			"-----END X509 CERTIFICATE-----\n",
		"begun twice":                    p + "-----BEGIN CERTIFICATE-----\n" + e,
		"begun before, never ended":      "-----BEGIN CERTIFICATE-----\n" + p + e,
		"in a key that is none":          p + "-----BEGIN PRIVATE KEY-----\n" + e + "-----END PRIVATE KEY-----\n",
		"after a key without its end":    p + "-----BEGIN PRIVATE KEY-----\nAAAA\n" + e,
		"after a key":                    p + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + e,
		"a damaged one before":           "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + p,
		"padding, then more":             p + strings.Replace(e, "\n-----END", "\nAA==\nAAAA\n-----END", 1),
		"lower case":                     p + strings.ReplaceAll(e, "CERTIFICATE", "certificate"),
		"six dashes":                     p + strings.ReplaceAll(e, "-----", "------"),
		"PKCS7":                          p + block("PKCS7"),
		"NEW CERTIFICATE REQUEST":        p + block("NEW CERTIFICATE REQUEST"),
		"not UTF-8":                      p + "\xff" + e,
		"line separator":                 p + "\u2028" + e,
		"the bare boundary in a comment": p + "# -----BEGIN CERTIFICATE----- " + body(e),
	}
	if len(variants) < 28 {
		t.Fatalf("%d variants", len(variants))
	}
	more := 0 // files in which OpenSSL sees the other one
	for name, text := range variants {
		saw := seenByOpenSSL(t, []byte(text))
		hidden := strings.Contains(strings.Join(saw, " "), "evil")
		if hidden {
			more++
		}
		if c, err := ParseSingleRoot([]byte(text)); err == nil &&
			(len(saw) > 1 || hidden != (c.Subject.CommonName == "evil")) {
			t.Errorf("%s: ParseSingleRoot returns %s, OpenSSL sees %q", name, c.Subject.CommonName, saw)
		}
		if all, err := ParseRoots([]byte(text)); err == nil && len(all) < len(saw) {
			t.Errorf("%s: ParseRoots returns %d, OpenSSL sees %q", name, len(all), saw)
		}
		if c, err := ParseRoot([]byte(text)); err == nil &&
			(len(saw) > 1 || hidden != (c.Subject.CommonName == "evil")) {
			t.Errorf("%s: ParseRoot returns %s, OpenSSL sees %q", name, c.Subject.CommonName, saw)
		}
	}
	for _, name := range []string{"alone", "text around", "CR LF"} {
		if _, err := ParseSingleRoot([]byte(variants[name])); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, err := ParseRoots([]byte(p + e)); err != nil || len(all) != 2 {
		t.Errorf("two: %d, %v", len(all), err)
	}
	if more < 10 {
		t.Errorf("OpenSSL sees the other certificate in %d files only: this test looks at the wrong ones", more)
	}
	t.Logf("%d variants, OpenSSL sees the other certificate in %d", len(variants), more)
}

func TestEncodeIsWhatIsRead(t *testing.T) {
	a, b := issue(t, "EC", "a", true, nil), issue(t, "EC", "b", true, nil)
	text := Encode(a.Certificate, b.Certificate)
	all, err := ParseRoots(text)
	if err != nil || len(all) != 2 || !all[0].Equal(a.Certificate) || !all[1].Equal(b.Certificate) {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := ParseRoots(append(text, text...)); err == nil {
		t.Error("four roots were taken")
	}
	if _, err := ParseRoots(Encode(a.Certificate, a.Certificate)); err == nil {
		t.Error("the same root twice was taken")
	}
}
