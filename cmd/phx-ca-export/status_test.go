package main

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
)

// Who has taken a connection and then broken it off has been reached.
func TestIsNotReached(t *testing.T) {
	for want, errs := range map[bool][]error{
		true:  {fmt.Errorf("health: %w", &net.OpError{Op: "dial", Err: syscall.ETIMEDOUT})},
		false: {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, errors.New("500 Internal Server Error")},
	} {
		for _, err := range errs {
			if have := isNotReached(err); have != want {
				t.Errorf("%v: %t", err, have)
			}
		}
	}
}
