package scripts

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a script names at its top is fetched by the library beside it, or by the one that phx ships.
func TestAssets(t *testing.T) {
	many := "# Assets:"
	for i := range maxAssets + 4 {
		many += fmt.Sprintf(" a%d", i)
	}
	long := strings.Repeat("x", 65)
	text := map[string]string{
		"shipped/phoenix_assets.sh":                                   "",
		"shipped/phoenix_hypervisor_feature_install_own.sh":           "#!/bin/sh\n# Usage\n#\n# Assets: step-ca step",
		"users/phoenix_hypervisor_feature_install_two.sh":             "#!/bin/bash\n# Assets: a\n# Assets: b a\n",
		"users/phoenix_hypervisor_feature_install_none.sh":            "# Assets are fine\nset -e\n# Assets: late\n",
		"users/phoenix_hypervisor_feature_install_former.sh":          "# " + Helpers + "\n# Assets: a\n",
		"users/phoenix_hypervisor_feature_install_words.sh":           "# Assets: ../x --help A $(b) a_b fine " + long,
		"users/phoenix_hypervisor_feature_install_many.sh":            many,
		"users/lxc_setup/phoenix_hypervisor_feature_install_below.sh": "#!/bin/sh\n#Assets:x\n",
		"theirs/phoenix_assets.sh":                                    "",
		"theirs/phoenix_hypervisor_feature_install_beside.sh":         "# Assets: a\n",
	}
	root := tree(t, text)
	users := filepath.Join(root, "users")
	dirs := Dirs{users, filepath.Join(root, "shipped"), filepath.Join(root, "theirs")}
	for feature, want := range map[string][]string{
		"own": {"shipped step-ca", "shipped step"}, "two": {"shipped a", "shipped b"}, "none": nil, "former": nil,
		"words": {"shipped a_b", "shipped fine"}, "below": {"shipped x"}, "beside": {"theirs a"},
		"many": nil,
	} {
		s, err := dirs.Feature(feature)
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for _, a := range dirs.Assets(s) {
			dir, err := filepath.Rel(root, filepath.Dir(a.Library))
			if err != nil {
				t.Fatal(err)
			}
			have = append(have, dir+" "+a.Name)
		}
		if feature == "many" {
			if len(have) != maxAssets {
				t.Errorf("%d of many", len(have))
			}
		} else if !slices.Equal(have, want) {
			t.Errorf("%s: %q, want %q", feature, have, want)
		}
		if without := (Dirs{users}).Assets(s); feature != "own" && feature != "beside" && len(without) > 0 {
			t.Errorf("%s: %v, and there is nothing to fetch them with", feature, without)
		}
	}
}
