package main

import (
	"fmt"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/ca"
)

func TestUsageHasTheDefaultsOfTheCA(t *testing.T) {
	for _, want := range []string{
		fmt.Sprintf("Where it listens. Default %d.", ca.DefaultPort),
		fmt.Sprintf("Its name below the domain. Default %s.", ca.DefaultName),
	} {
		if !strings.Contains(usage, want) {
			t.Errorf("the usage text does not say: %s", want)
		}
	}
}
