package cahost

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/ca"
)

// object is a JSON object with its members in order, so that an edited
// ca.json still looks as before.
type object []member

type member struct {
	key   string
	value json.RawMessage
}

func (o *object) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	*o = nil
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		var m member
		m.key, _ = t.(string)
		if err := dec.Decode(&m.value); err != nil {
			return err
		}
		if o.get(m.key) != nil {
			return fmt.Errorf("%q stands in it twice", m.key)
		}
		*o = append(*o, m)
	}
	return nil
}

func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, key...), ':'), m.value...)
	}
	return append(b, '}'), nil
}

// get returns a member's value, nil when there is none.
func (o object) get(key string) json.RawMessage {
	for _, m := range o {
		if m.key == key {
			return m.value
		}
	}
	return nil
}

func (o object) text(key string) string {
	var s string
	json.Unmarshal(o.get(key), &s) // "" for what is no string
	return s
}

// set gives a member a value, and reports whether it had another one.
func (o *object) set(key string, value any) (changed bool, err error) {
	data, err := json.Marshal(value)
	if err != nil {
		return false, err
	}
	for i, m := range *o {
		if m.key == key {
			(*o)[i].value = data
			return !sameJSON(m.value, data), nil
		}
	}
	*o = append(*o, member{key, data})
	return true, nil
}

func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func parseConfig(data []byte) (object, error) {
	var o object
	if !json.Valid(data) {
		return nil, errors.New("not JSON")
	}
	err := json.Unmarshal(data, &o)
	return o, err
}

// format returns the text of a ca.json as step writes it.
func (o object) format() ([]byte, error) {
	data, err := json.MarshalIndent(o, "", "\t")
	return append(data, '\n'), err
}

type policy struct {
	Allow struct {
		DNS []string `json:"dns"`
	} `json:"allow"`
	Wildcards bool `json:"allowWildcardNames"`
}

// policyOf returns the policy for X.509: the domain, every name one label
// below, which is what an asterisk means to step-ca, and those names below
// that are given. Addresses are for nobody.
func policyOf(s ca.Settings) policy {
	var p policy
	p.Wildcards = true
	p.Allow.DNS = []string{s.Domain, "*." + s.Domain}
	for _, name := range s.Names {
		rest, below := strings.CutSuffix(name, "."+s.Domain)
		if below && strings.Contains(rest, ".") && !slices.Contains(p.Allow.DNS, name) {
			p.Allow.DNS = append(p.Allow.DNS, name)
		}
	}
	return p
}

// The challenge is the one in which the CA comes to the port that serves; with
// it, no wildcard can be ordered.
var challenges = []string{"tls-alpn-01"}

// editConfig returns ca.json as settings want it, and what of it was another.
// An empty intermediate leaves the intermediate as it is.
func editConfig(data []byte, s ca.Settings, intermediate, key string) (text []byte, changes []string, err error) {
	o, err := parseConfig(data)
	if err != nil {
		return nil, nil, err
	}
	set := func(o *object, what, key string, value any) {
		changed, setErr := o.set(key, value)
		if setErr != nil && err == nil {
			err = setErr
		}
		if changed && !slices.Contains(changes, what) {
			changes = append(changes, what)
		}
	}
	set(&o, "port", "address", ":"+strconv.Itoa(s.Port))
	set(&o, "names", "dnsNames", s.ServerNames())
	if intermediate != "" {
		set(&o, "intermediate", "crt", intermediate)
		set(&o, "intermediate", "key", key)
	}
	var authority object
	if err := json.Unmarshal(o.get("authority"), &authority); err != nil {
		return nil, nil, fmt.Errorf("authority: %w", err)
	}
	rules := object{}
	if have := authority.get("policy"); have != nil {
		if err := json.Unmarshal(have, &rules); err != nil {
			return nil, nil, fmt.Errorf("authority.policy: %w", err)
		}
	}
	set(&rules, "policy", "x509", policyOf(s))
	set(&authority, "policy", "policy", rules)
	var provisioners []object
	if err := json.Unmarshal(authority.get("provisioners"), &provisioners); err != nil {
		return nil, nil, fmt.Errorf("authority.provisioners: %w", err)
	}
	i := slices.IndexFunc(provisioners, isACME)
	if i < 0 {
		i = len(provisioners)
		provisioners = append(provisioners, newACME())
	}
	set(&provisioners[i], "ACME challenges", "challenges", challenges)
	set(&authority, "ACME challenges", "provisioners", provisioners)
	set(&o, "authority", "authority", authority)
	changes = slices.DeleteFunc(changes, func(c string) bool { return c == "authority" })
	if err != nil {
		return nil, nil, err
	}
	if len(changes) == 0 {
		return data, nil, nil
	}
	text, err = o.format()
	return text, changes, err
}

func isACME(o object) bool {
	return strings.EqualFold(o.text("type"), "ACME") && o.text("name") == ca.ACME
}

func newACME() object {
	return object{{"type", json.RawMessage(`"ACME"`)}, {"name", json.RawMessage(`"` + ca.ACME + `"`)}}
}

// completeConfig adds to the ca.json of a CA that was there before what phx needs
// and is not there: the CA's addresses, and names of several labels, see
// [allowNames]. One that is just being adopted also gets the ACME provisioner, and a
// policy if there is none.
func completeConfig(data []byte, s ca.Settings, adopting bool) (text []byte, changes []string, err error) {
	o, err := parseConfig(data)
	if err != nil {
		return nil, nil, err
	}
	var authority object
	if err := json.Unmarshal(o.get("authority"), &authority); err != nil {
		return nil, nil, fmt.Errorf("authority: %w", err)
	}
	if adopting {
		added, err := addACME(&authority)
		if err != nil {
			return nil, nil, err
		}
		changes = append(changes, added...)
	}
	added, err := addAddresses(&o, s)
	if err != nil {
		return nil, nil, err
	}
	changes = append(changes, added...)
	if adopting && authority.get("policy") == nil {
		authority.set("policy", map[string]any{"x509": policyOf(s)})
		added = policyOf(s).Allow.DNS
	} else if added, err = allowNames(&authority, s); err != nil {
		return nil, nil, err
	}
	if len(added) > 0 {
		changes = append(changes, "policy: "+strings.Join(added, ", "))
	}
	if len(changes) == 0 {
		return data, nil, nil
	}
	o.set("authority", authority)
	text, err = o.format()
	return text, changes, err
}

// addACME adds the ACME provisioner, unless it is there.
func addACME(authority *object) (changes []string, err error) {
	var provisioners []object
	if err := json.Unmarshal(authority.get("provisioners"), &provisioners); err != nil {
		return nil, fmt.Errorf("authority.provisioners: %w", err)
	}
	if slices.ContainsFunc(provisioners, isACME) {
		return nil, nil
	}
	p := newACME()
	p.set("challenges", challenges)
	authority.set("provisioners", append(provisioners, p))
	return []string{"ACME provisioner " + ca.ACME}, nil
}

// addAddresses adds the CA's addresses to the names of its certificate.
func addAddresses(o *object, s ca.Settings) (changes []string, err error) {
	var names []string
	if err := json.Unmarshal(o.get("dnsNames"), &names); err != nil {
		return nil, fmt.Errorf("dnsNames: %w", err)
	}
	for _, address := range s.Addresses() {
		if ip := address.String(); !slices.Contains(names, ip) {
			names = append(names, ip)
			changes = append(changes, "name "+ip)
		}
	}
	if len(changes) > 0 {
		_, err = o.set("dnsNames", names)
	}
	return changes, err
}

// allowNames adds the names of several labels to a policy that allows *.DOMAIN,
// which means one label, and returns those that were missing. Another policy is left
// alone: who has written it knows what it is for.
func allowNames(authority *object, s ca.Settings) (added []string, err error) {
	var policy, x509, allow object
	for _, level := range []struct {
		in   *object
		key  string
		into *object
	}{{authority, "policy", &policy}, {&policy, "x509", &x509}, {&x509, "allow", &allow}} {
		raw := level.in.get(level.key)
		if raw == nil || string(raw) == "null" {
			return nil, nil
		}
		if err := json.Unmarshal(raw, level.into); err != nil {
			return nil, fmt.Errorf("authority.policy: %s: %w", level.key, err)
		}
	}
	var names []string
	if err := json.Unmarshal(allow.get("dns"), &names); err != nil || !slices.Contains(names, "*."+s.Domain) {
		return nil, nil
	}
	for _, name := range policyOf(s).Allow.DNS[2:] {
		if !slices.Contains(names, name) {
			added = append(added, name)
		}
	}
	if len(added) == 0 {
		return nil, nil
	}
	allow.set("dns", append(names, added...))
	x509.set("allow", allow)
	policy.set("x509", x509)
	authority.set("policy", policy)
	return added, nil
}

// keepRest returns settings with what those who do not know all of the configuration
// leave out, as ca.json has it: names that may be signed, and, unless the address is
// another one, the other addresses.
func keepRest(data []byte, s ca.Settings) ca.Settings {
	var have struct {
		DNSNames  []string
		Authority struct{ Policy struct{ X509 policy } }
	}
	if json.Unmarshal(data, &have) != nil {
		return s
	}
	s.Names = have.Authority.Policy.X509.Allow.DNS
	if slices.Contains(have.DNSNames, s.Addr.String()) {
		for _, name := range have.DNSNames {
			if address, err := netip.ParseAddr(name); err == nil && !address.IsLoopback() && address != s.Addr {
				s.Also = append(s.Also, address)
			}
		}
	}
	return s
}

// files are the places that a ca.json names.
type files struct {
	root, intermediate, key string
	address                 string
	adminAPI                bool
	tokens                  []provisioner // that make one-time tokens
}

type provisioner struct{ name, encryptedKey string }

func filesOf(data []byte) (files, error) {
	o, err := parseConfig(data)
	if err != nil {
		return files{}, err
	}
	f := files{root: o.text("root"), intermediate: o.text("crt"), key: o.text("key"), address: o.text("address")}
	if f.root == "" { // several roots: the first is the CA's own
		var roots []string
		if json.Unmarshal(o.get("root"), &roots) == nil && len(roots) > 0 {
			f.root = roots[0]
		}
	}
	var authority object
	if err := json.Unmarshal(o.get("authority"), &authority); err != nil {
		return files{}, fmt.Errorf("authority: %w", err)
	}
	json.Unmarshal(authority.get("enableAdmin"), &f.adminAPI)
	var provisioners []object
	if raw := authority.get("provisioners"); raw != nil {
		if err := json.Unmarshal(raw, &provisioners); err != nil {
			return files{}, fmt.Errorf("authority.provisioners: %w", err)
		}
	}
	for _, p := range provisioners {
		if strings.EqualFold(p.text("type"), "JWK") && p.text("encryptedKey") != "" {
			f.tokens = append(f.tokens, provisioner{p.text("name"), p.text("encryptedKey")})
		}
	}
	return f, nil
}
