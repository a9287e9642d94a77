// Command bom writes what the programs of a Debian package are made of: a CycloneDX bill of materials, and
// the licences that have to come with them. It reads both from the programs themselves and from the modules
// that go.mod pins, and must not know what the programs do.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

const usage = `Usage: bom --version VERSION --arch ARCH --sbom FILE --copyright FILE PROGRAM...

Writes the bill of materials of the Debian package phx, with the Go PROGRAMs in it, as CycloneDX JSON, and
its copyright file. Works in a directory of the module that the programs were built from. SOURCE_DATE_EPOCH,
in seconds, is the time of the bill.
`

func main() {
	version := flag.String("version", "", "")
	arch := flag.String("arch", "", "")
	sbom := flag.String("sbom", "", "")
	copyright := flag.String("copyright", "", "")
	flag.Usage = func() { fmt.Fprint(flag.CommandLine.Output(), usage) }
	flag.Parse()
	if *version == "" || *arch == "" || *sbom == "" || *copyright == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := write(*version, *arch, *sbom, *copyright, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bom:", err)
		os.Exit(1)
	}
}

// module is one that is linked into a program; Go's own packages are the module "std".
type module struct {
	path, version string
	sum           string // as in go.sum
	licenses      []license
}

type license struct {
	id   string // of SPDX
	text string
}

// purl returns the package URL of the module.
func (m module) purl() string { return "pkg:golang/" + m.path + "@" + m.version }

func write(version, arch, sbom, copyright string, programs []string) error {
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	directories, err := moduleDirectories()
	if err != nil {
		return err
	}
	self := "pkg:deb/debian/phx@" + version + "?arch=" + arch
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{
		Timestamp: time.Unix(epoch, 0).UTC().Format(time.RFC3339),
		Component: &cdx.Component{BOMRef: self, Type: cdx.ComponentTypeApplication, Name: "phx", Version: version,
			PackageURL: self, Licenses: licenses([]license{{id: "Apache-2.0"}})},
	}
	var components []cdx.Component
	var refs []string
	dependencies := []cdx.Dependency{}
	modules := map[string]module{}
	for _, path := range programs {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		uses := []string{}
		linked := []module{{path: "std", version: strings.TrimPrefix(info.GoVersion, "go")}}
		for _, dep := range info.Deps {
			if dep.Replace != nil {
				dep = dep.Replace
			}
			linked = append(linked, module{path: dep.Path, version: dep.Version, sum: dep.Sum})
		}
		for _, m := range linked {
			if _, known := modules[m.purl()]; !known {
				dir, ok := directories[m.path+"@"+m.version]
				if !ok {
					return fmt.Errorf("%s: %s %s is not what is here: build it again", path, m.path, m.version)
				}
				if m.licenses, err = readLicenses(dir); err != nil {
					return fmt.Errorf("%s %s: %w", m.path, m.version, err)
				}
				modules[m.purl()] = m
			}
			uses = append(uses, m.purl())
		}
		slices.Sort(uses)
		digest := sha256.Sum256(content)
		components = append(components, cdx.Component{BOMRef: name, Type: cdx.ComponentTypeApplication, Name: name,
			Version: info.Main.Version, Hashes: sha256Of(digest[:])})
		refs = append(refs, name)
		dependencies = append(dependencies, cdx.Dependency{Ref: name, Dependencies: &uses})
	}
	dependencies = append(dependencies, cdx.Dependency{Ref: self, Dependencies: &refs})
	sorted := slices.Sorted(maps.Keys(modules))
	for _, purl := range sorted {
		m := modules[purl]
		c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.path, Version: m.version,
			PackageURL: purl, Licenses: licenses(m.licenses)}
		if digest, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:")); err == nil && m.sum != "" {
			c.Hashes = sha256Of(digest)
		}
		components = append(components, c)
	}
	bom.Components, bom.Dependencies = &components, &dependencies
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return err
	}
	if err := os.WriteFile(sbom, out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(copyright, []byte(copyrightOf(sorted, modules)), 0o644)
}

func sha256Of(digest []byte) *[]cdx.Hash {
	return &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(digest)}}
}

func licenses(of []license) *cdx.Licenses {
	var all cdx.Licenses
	for _, l := range of {
		all = append(all, cdx.LicenseChoice{License: &cdx.License{ID: l.id}})
	}
	return &all
}

// moduleDirectories returns where Go's own packages and the modules that go.mod pins lie, by PATH@VERSION.
func moduleDirectories() (map[string]string, error) {
	out, err := goCommand("env", "GOVERSION", "GOROOT")
	if err != nil {
		return nil, err
	}
	version, root, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	directories := map[string]string{"std@" + strings.TrimPrefix(version, "go"): root}
	if out, err = goCommand("list", "-m", "-json", "all"); err != nil {
		return nil, err
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var m struct{ Path, Version, Dir string }
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return directories, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list -m all: %w", err)
		}
		directories[m.Path+"@"+m.Version] = m.Dir
	}
}

func goCommand(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return out, err
}

var (
	licenseFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying)(\.(md|txt))?$`)
	noticeFile  = regexp.MustCompile(`(?i)^notice(\.(md|txt))?$`)

	// A licence is known by what only its text says. A module with another one waits for somebody to read it.
	known = []struct {
		id   string
		text *regexp.Regexp
	}{
		{"Apache-2.0", regexp.MustCompile(`Apache License\s+Version 2\.0, January 2004`)},
		{"BSD-3-Clause", regexp.MustCompile(`(?s)Redistributions in binary form must.*Neither the name`)},
		{"BSD-2-Clause", regexp.MustCompile(`Redistributions in binary form must`)},
		{"MIT", regexp.MustCompile(`(?s)Permission is hereby granted, free of charge.*distribute, sublicense`)},
	}
)

// readLicenses reads the licences of the module in dir, and what else has to be passed on with it.
func readLicenses(dir string) ([]license, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []license
	var notices string
	for _, e := range entries {
		isLicense, isNotice := licenseFile.MatchString(e.Name()), noticeFile.MatchString(e.Name())
		if e.Type() != fs.FileMode(0) || !isLicense && !isNotice {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(content), "\r\n", "\n"))
		if isNotice {
			notices += "\n\n" + text
			continue
		}
		before := len(found)
		for _, k := range known {
			if k.text.MatchString(text) && (k.id != "BSD-2-Clause" || !slices.ContainsFunc(found[before:],
				func(l license) bool { return l.id == "BSD-3-Clause" })) {
				found = append(found, license{id: k.id})
			}
		}
		if len(found) == before {
			return nil, fmt.Errorf("%s: a licence that is not known: read it, and add it to the known ones of bom",
				filepath.Join(dir, e.Name()))
		}
		found[before].text = text
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: no file with a licence", dir)
	}
	found[0].text += notices
	return found, nil
}

// copyrightOf returns the file copyright of the package.
func copyrightOf(sorted []string, modules map[string]module) string {
	var b strings.Builder
	b.WriteString(`phx
===

Copyright: the authors of phx
License: Apache-2.0

 On Debian systems, the text of the Apache License 2.0 is in
 /usr/share/common-licenses/Apache-2.0.

What is linked into the programs
================================

`)
	users := map[string][]string{}
	var texts []string
	for _, purl := range sorted {
		m := modules[purl]
		var ids []string
		for _, l := range m.licenses {
			ids = append(ids, l.id)
			text := l.text
			if text == "" {
				continue
			}
			if _, known := users[text]; !known {
				texts = append(texts, text)
			}
			users[text] = append(users[text], m.path)
		}
		fmt.Fprintf(&b, "%s %s: %s\n", m.path, m.version, strings.Join(ids, " and "))
	}
	for _, text := range texts {
		fmt.Fprintf(&b, "\n%s\n%s:\n\n%s\n", strings.Repeat("-", 32), strings.Join(users[text], ", "), shorten(text))
	}
	return b.String()
}

// shorten leaves out the Apache License, whose text is on every Debian system, but not what stands behind it.
func shorten(text string) string {
	terms, rest, ok := strings.Cut(text, "END OF TERMS AND CONDITIONS")
	if !ok || !strings.Contains(terms, "Apache License") {
		return text
	}
	if _, after, ok := strings.Cut(rest, "limitations under the License."); ok {
		rest = after
	}
	return strings.TrimSpace("License: Apache-2.0, as above\n\n" + strings.TrimSpace(rest))
}
