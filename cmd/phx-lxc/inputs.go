package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

// What a script depends on: it runs again when any of it changes.

// readScripts reads the configured scripts, in order.
func (j *job) readScripts() ([]script, error) {
	var all []script
	for _, feature := range j.c.Features {
		s, err := j.readFeature(feature)
		if err != nil {
			return nil, err
		}
		all = append(all, *s)
	}
	if !j.runsApplication() {
		return all, nil
	}
	s, err := j.readApplication()
	if err != nil {
		return nil, err
	}
	return append(all, *s), nil
}

func (j *job) readFeature(name string) (*script, error) {
	s, err := j.options.scripts.Feature(name)
	if err != nil {
		return nil, err
	}
	inputs, err := sharedInputs(s)
	if err != nil {
		return nil, err
	}
	inputs = append(inputs, s.Text, []byte(j.c.BootstrapCAURL))
	for _, variable := range j.scriptEnv() {
		// Others must not run again, in clones above all, because of an address.
		if name, _, _ := strings.Cut(variable, "="); bytes.Contains(s.Text, []byte(name)) {
			inputs = append(inputs, []byte(variable))
		}
	}
	if bytes.Contains(s.Text, []byte(rootsVariable)) {
		roots, err := j.roots()
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, []byte(roots))
	}
	own, err := j.c.UnknownKeys()
	if err != nil {
		return nil, err
	}
	feature := &script{Script: s, name: name, feature: true}
	return feature, j.hash(feature, inputs, own)
}

func (j *job) readApplication() (*script, error) {
	s, err := j.options.scripts.Application(j.c.ApplicationScript)
	if err != nil {
		return nil, err
	}
	// With the features' inputs: a service has to take a program that they have
	// replaced.
	inputs, err := sharedInputs(s)
	if err != nil {
		return nil, err
	}
	object, err := j.c.ScriptInput()
	if err != nil {
		return nil, err
	}
	inputs = append(inputs, s.Text, object)
	for _, variable := range j.scriptEnv() {
		inputs = append(inputs, []byte(variable))
	}
	application := &script{Script: s, name: j.c.ApplicationScript}
	return application, j.hash(application, inputs, nil)
}

// runsApplication reports whether phx-lxc runs the container's application
// script: phx-nginx and phx-traefik replace two of them.
func (j *job) runsApplication() bool {
	name := j.c.ApplicationScript
	return name != "" && name != config.GatewayScript && name != config.ProxyScript
}

// sharedInputs are files that scripts read beside their own text: the library
// that they share, the pinned releases, and the checksums of the programs that
// were provided.
func sharedInputs(s *scripts.Script) ([][]byte, error) {
	paths := []string{s.Shared("phoenix_assets.sh"), s.Shared("phoenix_assets.tsv")}
	if assets := os.Getenv("PHX_ASSETS"); assets != "" {
		paths = append(paths, filepath.Join(assets, "SHA256SUMS"))
	}
	var inputs [][]byte
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		inputs = append(inputs, text)
	}
	return inputs, nil
}

// hash sets the hash of a script. A script of before reads the whole file, and
// asks in it for a key of the container and then for one beside the containers:
// those count that its text names, of own and of the file. What the file says of
// other containers does not count: they change without any effect on this one.
// The keys count from an empty list on, so that one that is new is known from a
// record of the time when none counted.
func (j *job) hash(s *script, inputs [][]byte, own map[string]json.RawMessage) error {
	s.hash = pve.Hash(inputs...)
	if !s.Former {
		return nil
	}
	file, err := j.config()
	if err != nil {
		return err
	}
	named := map[string]json.RawMessage{}
	for _, keys := range []map[string]json.RawMessage{file.Root, own} {
		for key, value := range keys {
			if hasWord(s.Text, key) {
				named[key] = value
			}
		}
	}
	text, err := json.Marshal(named)
	if err != nil {
		return err
	}
	s.formerHash, s.hash = s.hash, pve.Hash(append(inputs, text)...)
	return nil
}

// hasWord reports whether a text has a key as a word of its own.
func hasWord(text []byte, key string) bool {
	isLetter := func(i int) bool {
		return i >= 0 && i < len(text) && (text[i] == '_' || text[i] >= '0' && text[i] <= '9' ||
			text[i]|0x20 >= 'a' && text[i]|0x20 <= 'z')
	}
	for at := 0; key != ""; {
		i := bytes.Index(text[at:], []byte(key))
		if i < 0 {
			break
		}
		if at += i; !isLetter(at-1) && !isLetter(at+len(key)) {
			return true
		}
		at++
	}
	return false
}

// scriptEnv is what a feature or an application script finds in its
// environment.
func (j *job) scriptEnv() []string {
	name, port := "", ""
	if s := j.c.TraefikService; s != nil {
		name, port = s.Name, strconv.Itoa(s.Port)
	}
	return []string{
		"PHX_CTID=" + j.ct.ID(),
		"PHX_DOMAIN=" + j.plan.Domain,
		"PHX_IP=" + address(j.c),
		"PHX_NAME=" + j.c.Name,
		"PHX_SERVICE_NAME=" + name,
		"PHX_SERVICE_PORT=" + port,
	}
}

// rootsVariable has the SHA-256 of the root certificates that are pinned on the
// host, joined by commas: a feature script that names it runs again when they
// change.
const rootsVariable = "PHX_CA_ROOTS"

// roots returns the variable, whose value is empty when nothing is pinned yet.
func (j *job) roots() (string, error) {
	pin, err := cahost.ReadPin(j.host)
	if err != nil || pin == nil {
		return rootsVariable + "=", err
	}
	return rootsVariable + "=" + strings.Join(slices.Sorted(slices.Values(pin.Pins())), ","), nil
}

// runEnv is the environment of a script that is run.
func (j *job) runEnv(s *script) ([]string, error) {
	env := j.scriptEnv()
	if s.Former { // else it does nothing in a dry run of its own kind, and exits 0
		env = append(env, "DRY_RUN=false", "PHOENIX_DRY_RUN=false")
		if os.Getenv("PHOENIX_DEBUG") == "true" { // which in a container only what is named here can be
			env = append(env, "PHOENIX_DEBUG=true")
		}
	}
	if !s.feature || !bytes.Contains(s.Text, []byte(rootsVariable)) {
		return env, nil
	}
	roots, err := j.roots()
	return append(env, roots), err
}
