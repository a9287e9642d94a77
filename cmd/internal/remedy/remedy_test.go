package remedy

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestSplit(t *testing.T) {
	missing := Errorf("run: chmod +x a.sh", "%s: not executable", "a.sh")
	for _, c := range []struct {
		err          error
		what, remedy string
	}{
		{missing, "a.sh: not executable", "run: chmod +x a.sh"},
		{fmt.Errorf("feature a: %w", missing), "feature a: a.sh: not executable", "run: chmod +x a.sh"},
		{fmt.Errorf("%w; no more", missing), "a.sh: not executable: run: chmod +x a.sh; no more", ""},
		{errors.New("a: b"), "a: b", ""},
	} {
		if what, remedy := Split(c.err); what != c.what || remedy != c.remedy {
			t.Errorf("%q is split into %q and %q", c.err, what, remedy)
		}
	}
}

func TestEach(t *testing.T) {
	a, b, c := errors.New("a"), Errorf("c", "b"), errors.New("d")
	if have := Each(errors.Join(errors.Join(a, b), nil, c)); !slices.Equal(have, []error{a, b, c}) {
		t.Errorf("%v", have)
	}
	if have := Each(errors.Join(nil, nil)); have != nil {
		t.Errorf("%v for nothing", have)
	}
}

func TestQuote(t *testing.T) {
	got := Quote([]string{"pct", "set", "103", "--description", "it's\n$(x)", ""})
	if want := `pct set 103 --description 'it'\''s` + "\n" + `$(x)' ''`; got != want {
		t.Errorf("%s", got)
	}
}
