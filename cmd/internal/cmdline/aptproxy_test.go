package cmdline

import (
	"strings"
	"testing"
)

func TestCheckAptProxy(t *testing.T) {
	for _, url := range []string{"http://10.0.0.1:3142", "http://cache:3142", "http://apt.example.com:80",
		"http://[fd00::1]:3142", "http://a:65535"} {
		if err := CheckAptProxy(url); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{"", "http://10.0.0.1", "https://10.0.0.1:3142", "10.0.0.1:3142",
		"http://10.0.0.1:3142/", "http://user:secret@cache:3142", "http://cache:3142/x", "http://cache:3142?x",
		"http://cache:3142#x",
		"http://cache:0", "http://cache:65536", "http://cache:123456", "http://:3142", "http://-x:3142",
		"http://a b:3142", "http://cache:3142\n", "http://cache:3142;x", "http://[10.0.0.1]:3142",
		"http://[fd00::1%25eth0]:3142",
		"http://fd00::1:3142", "http://[::g]:3142", "HTTP://cache:3142", "DIRECT", `http://"x":3142`,
		"http://" + strings.Repeat("x", 254) + ":3142", "socks5h://cache:3142"} {
		if CheckAptProxy(url) == nil {
			t.Errorf("%q is a proxy for apt", url)
		}
	}
}
