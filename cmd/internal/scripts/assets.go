package scripts

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// An Asset is a program that a feature script puts into containers, and that can be
// fetched before the script runs.
type Asset struct {
	Library string // the file that the scripts share and that fetches it
	Name    string
}

// maxAssets is how many a script can name.
const maxAssets = 16

var assetForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// Assets returns what a script names in a line "# Assets: NAME…" of the comment at
// its top: nothing for a script of before, and where there is nothing to fetch it
// with, beside the script or in one of the directories.
func (d Dirs) Assets(s *Script) []Asset {
	library := d.library(s)
	if s.Former || library == "" {
		return nil
	}
	var assets []Asset
	for line := range bytes.Lines(s.Text) {
		comment, ok := strings.CutPrefix(string(line), "#")
		if !ok {
			break
		}
		names, ok := strings.CutPrefix(strings.TrimSpace(comment), "Assets:")
		if !ok {
			continue
		}
		for name := range strings.FieldsSeq(names) {
			a := Asset{library, name}
			if assetForm.MatchString(name) && !slices.Contains(assets, a) && len(assets) < maxAssets {
				assets = append(assets, a)
			}
		}
	}
	return assets
}

// library returns the path of the file that the scripts share, "" where there is none.
func (d Dirs) library(s *Script) string {
	for _, dir := range append(Dirs{filepath.Dir(s.Path)}, d...) {
		path := filepath.Join(dir, shipped)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}
