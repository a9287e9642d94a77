package main

import (
	"fmt"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/ca"
)

func TestUsageHasTheDefaultsOfTheCA(t *testing.T) {
	for _, want := range []string{
		fmt.Sprintf("where it listens; default %d (", ca.DefaultPort),
		fmt.Sprintf("its name; default %s (", ca.DefaultName),
	} {
		if !strings.Contains(usage, want) {
			t.Errorf("the usage text does not say: %s", want)
		}
	}
}
