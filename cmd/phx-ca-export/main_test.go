package main

import (
	"fmt"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/ca"
)

func TestUsageHasTheDefaultsOfTheCA(t *testing.T) {
	for _, want := range []string{
		fmt.Sprintf("port where the CA listens; default %d", ca.DefaultPort),
		fmt.Sprintf("name of the CA below the domain; default %s", ca.DefaultName),
	} {
		if !strings.Contains(usage, want) {
			t.Errorf("the usage text does not say: %s", want)
		}
	}
}
