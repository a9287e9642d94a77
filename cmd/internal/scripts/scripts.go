// Package scripts finds feature, application and health scripts in the
// directories where they may be, and says of a script of before what it needs:
// one that was written for the shell scripts that phx replaces, and reads the
// helper functions and configuration files that lay beside these.
//
// It reads files and runs nothing. It must not know what a container is, nor how
// a script is run.
package scripts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// Dirs are directories of scripts. The first one that has a script is the one
// that counts, except that a script of before never stands in for one that phx
// ships.
type Dirs []string

// shipped is the file that marks a directory of phx's own scripts: what they
// share.
const shipped = "phoenix_assets.sh"

// releases is the file beside it that pins what the scripts download.
const releases = "phoenix_assets.tsv"

// Helpers is the file of functions that the scripts of before share.
const Helpers = "phoenix_hypervisor_common_utils.sh"

// RunDir is the directory in a container in which the scripts of before are run.
const RunDir = "/tmp/phoenix_run"

// Script is a script that has been found.
type Script struct {
	Name string // of its file
	Path string // absolute for a script of before, whose links are resolved
	Text []byte

	// Own says that it lies in a directory of phx's own, and is not one of before:
	// running it again changes nothing that is as it should be.
	Own bool

	// Former says that it is a script of before: it names [Helpers] or [RunDir].
	Former bool

	// Passed is the path of a script of before that was not taken, because phx
	// has one of the same name; "" where there is none.
	Passed string
}

// Shared returns the path of a file that the scripts of s's directory share,
// whether it is there or not.
func (s *Script) Shared(name string) string { return filepath.Join(filepath.Dir(s.Path), name) }

// Feature finds the script of a feature.
func (d Dirs) Feature(feature string) (*Script, error) {
	return d.find(featureScript(feature), "", "lxc_setup")
}

func featureScript(feature string) string {
	return "phoenix_hypervisor_feature_install_" + feature + ".sh"
}

// Application finds an application script.
func (d Dirs) Application(name string) (*Script, error) { return d.find(name, "", "lxc_setup") }

// Health finds a script that checks a container's health.
func (d Dirs) Health(name string) (*Script, error) { return d.find(name, "health_checks", "") }

// Paths returns the paths of all that decides which scripts there are of these
// names, of features, applications and health checks, and what they do: each
// place where one may be, and what those beside it share. It looks at no file.
func (d Dirs) Paths(features, applications, health []string) []string {
	var paths []string
	for _, dir := range d {
		for _, place := range []string{dir, filepath.Join(dir, "lxc_setup")} {
			for _, feature := range features {
				paths = append(paths, filepath.Join(place, featureScript(feature)))
			}
			for _, name := range applications {
				paths = append(paths, filepath.Join(place, name))
			}
		}
		for _, name := range health {
			paths = append(paths, filepath.Join(dir, "health_checks", name), filepath.Join(dir, name))
		}
		for _, name := range []string{shipped, releases, Helpers, filepath.Join("lxc_setup", Helpers)} {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	return paths
}

// find looks for a script in the sub-directories below of each directory.
func (d Dirs) find(name string, below ...string) (*Script, error) {
	var places []string
	var first *Script
	for _, dir := range d {
		for _, sub := range below {
			place := filepath.Join(dir, sub)
			places = append(places, place)
			s, err := read(filepath.Join(place, name))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				return nil, err
			case first == nil && !s.Former:
				return s, nil
			case first == nil:
				first = s
			case s.Own:
				s.Passed = first.Path
				return s, nil
			}
		}
	}
	if first != nil {
		return first, nil
	}
	return nil, remedy.Errorf("put it there, or name its directory with --scripts or PHX_SCRIPTS",
		"%s is in none of %s", name, strings.Join(places, ", "))
}

// read reads a script.
func read(path string) (*Script, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a file", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &Script{Name: filepath.Base(path), Path: path, Text: text}
	s.Former = bytes.Contains(text, []byte(Helpers)) || bytes.Contains(text, []byte(RunDir))
	if _, err := os.Stat(s.Shared(shipped)); err == nil {
		s.Own = !s.Former
	}
	if s.Former {
		if s.Path, err = filepath.EvalSymlinks(path); err == nil {
			s.Path, err = filepath.Abs(s.Path)
		}
	}
	return s, err
}

// Executable returns an error unless the script's file may be executed.
func (s *Script) Executable() error {
	info, err := os.Stat(s.Path)
	if err == nil && info.Mode()&0o111 == 0 {
		err = remedy.Errorf("run: "+remedy.Quote([]string{"chmod", "+x", s.Path}), "%s: not executable", s.Path)
	}
	return err
}
