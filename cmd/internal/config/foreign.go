package config

import (
	"strings"

	"github.com/tidwall/gjson"
	"github.com/xrash/smetrics"
)

// A foreignKey is a key of a container that belongs to other programs. phx does
// nothing with it; application scripts may read it.
type foreignKey struct {
	name    string // "*" at the end stands for anything
	scripts bool   // it is there for feature or application scripts
	why     string // whose it is

	// warning says what the file may ask for, and phx does not do; "" when there is
	// nothing to miss. It is for values that ask for something, see [asks].
	warning string
}

var foreignKeys = []foreignKey{
	{name: "vllm", scripts: true, why: "for application scripts that set up vLLM"},
	{name: "vllm_*", scripts: true, why: "for application scripts that set up vLLM"},
	{name: "nvidia_*", scripts: true, why: "for feature scripts that install NVIDIA's driver"},
	{name: "portainer_*", why: "Portainer's: phx sets up none of it"},
	{name: "trigger_sync_on_completion", why: "Portainer's: phx sets up none of it",
		warning: "phx does not bring Portainer's stacks up to date"},
	{name: "public_interface", why: "phx opens no ports but those of firewall.rules",
		warning: "phx opens no ports for it: what ports 80 and 443 need is in firewall.rules " +
			`{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "80,443"}`},
	{name: "template_file", why: "no script has ever used it",
		warning: "a container is made from template or clone_from_ctid, and no script has ever used this"},
	{name: "ports", why: "a container has an address of its own, and needs no ports mapped"},
	{name: "tests", why: "for tests of the installation before phx"},
	{name: "integration_tests", why: "for tests of the installation before phx"},
	{name: "run_integration_tests", why: "for tests of the installation before phx"},
	{name: "$*", why: "for editors and validators"},
	{name: "_*", why: "a remark"},
}

// foreign returns the foreign key that key is, or nil.
func foreign(key string) *foreignKey {
	for i := range foreignKeys {
		k := &foreignKeys[i]
		if prefix, any := strings.CutSuffix(k.name, "*"); k.name == key || any && strings.HasPrefix(key, prefix) {
			return k
		}
	}
	return nil
}

// asks reports whether the value of a foreign key asks for something: it is
// neither false nor an object whose enabled is false.
func asks(v gjson.Result) bool {
	return v.Type != gjson.False && !(v.IsObject() && v.Get("enabled").Type == gjson.False)
}

// unknownKey returns the warning for a container's key that nobody knows.
func unknownKey(key string) string {
	if meant := meantKey(key); meant != "" {
		return "unknown key, ignored: is " + meant + " meant?"
	}
	return "unknown key, ignored"
}

// meantKey returns the key of a container of which key is a misspelling: a letter,
// or of a long key two, are wrong, missing or too many. It is "" when there is
// none.
func meantKey(key string) string {
	meant, least := "", 2
	if len(key) >= 6 {
		least = 3
	}
	for _, k := range containerKeys {
		if diff := len(k.name) - len(key); diff <= -least || diff >= least {
			continue
		}
		if n := smetrics.WagnerFischer(key, k.name, 1, 1, 1); n < least {
			meant, least = k.name, n
		}
	}
	return meant
}
