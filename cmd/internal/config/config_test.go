package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/hostdir"
)

// base is a file without mistakes. Each case of TestMistakes changes one part
// of it, and marks with ¦ where the mistake is to be found.
const base = `{
  "nvidia_driver_version": "580.76.05",
  "lxc_configs": {
    "900": {
      "name": "Copy-Base",
      "template": "local:vztmpl/debian.tar.zst",
      "memory_mb": 2048,
      "cores": 2,
      "storage_pool": "local-lvm",
      "storage_size_gb": 16,
      "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.200/24", "gw": "10.0.0.1"},
      "mac_address": "BC:24:11:00:09:00",
      "unprivileged": true,
      "template_snapshot_name": "final-form"
    },
    "103": {
      "name": "Step-CA",
      "clone_from_ctid": "900",
      "memory_mb": 512,
      "cores": 1,
      "storage_pool": "local-lvm",
      "storage_size_gb": 16,
      "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.10/24", "gw": "10.0.0.1"},
      "mac_address": "BC:24:11:00:01:03",
      "application_script": "phoenix_hypervisor_lxc_103.sh",
      "traefik_service": {"name": "ca", "port": 9000},
      "extra": 0
    },
    "102": {
      "name": "Traefik-Internal",
      "clone_from_ctid": 900,
      "memory_mb": 512,
      "cores": 1,
      "storage_pool": "local-lvm",
      "storage_size_gb": 16,
      "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.12/24", "gw": "10.0.0.1"},
      "features": ["base_setup"],
      "dependencies": ["103", 1002]
    }
  }
}
`

// goodKey is the key of a line of ssh_public_keys.
const goodKey = "AAAAC3NzaC1lZDI1NTE5AAAAIKbO7b6Oe0T1Qh5l1D0gYQ9cQ0sFbVfQ0pR2w2m3n4oK"

func TestMistakes(t *testing.T) {
	const (
		ca    = "lxc_configs.103."
		extra = `"extra": 0` // in container 103
		root  = `"nvidia_driver_version": "580.76.05"`

		before900 = "\n      \"storage_size_gb\": 16,\n      \"network_config\": {\"name\": \"eth0\", " +
			"\"bridge\": \"vmbr0\", \"ip\": \"10.0.0.200" // in container 900, before its address
	)
	expectMistakes(t, []mistakeCase{
		// The file as a whole.
		{base, "¦", "the file is empty"},
		{base, "¦ \n\t", "the file is empty"},
		{base, "¦\ufeff" + base, "byte order mark"},
		{base, "¦\xff\xfe{\x00}\x00", "UTF-16"},
		{`Step-CA`, "Step¦\xffCA", "not UTF-8"},
		{base, "¦[]", "must be an object, not a list"},
		{base, "¦null", "must be an object, not null"},
		{base, "¦{}", "lxc_configs: missing"},
		{base, `{"lxc_configs": ¦[]}`, "lxc_configs: must be an object, not a list"},
		{base, `{"lxc_configs": {}} ¦x`, "not JSON: invalid character 'x' after top-level value"},
		{base, `{"lxc_configs": {¦'900': {}}}`, "not JSON: invalid character '\\''"},
		{base, `{"lxc_configs": {}¦`, "not JSON: the file ends too early"},
		{base, "{\n \"lxc_configs\": {}¦,\n}", "not JSON: no comma may stand before '}'"},
		{"512,\n      \"cores\": 1", "512\n      ¦\"cores\": 1", "not JSON"},
		{`512`, `0¦512`, "not JSON"},
		{`Step-CA`, "Step¦\nCA", "not JSON"},
		{extra, `"tests": ` + strings.Repeat("[", maxDepth-3) + "¦[" + strings.Repeat("]", maxDepth-2),
			"nested deeper than 100 levels"},

		// Keys given twice.
		{extra, `¦"cores": 4`, ca + "cores: key given twice, first on line 20"},
		{extra, `¦"\u0063ores": 4`, ca + "cores: key given twice"},
		{`"102": {`, `¦"103": {`, "lxc_configs.103: key given twice, first on line 16"},
		{extra, `"tests": [{"a": 1, ¦"a": 2}]`, ca + "tests.0.a: key given twice"},
		{extra, `"vllm_engine_config": {"b": {"a": 1, ¦"a": 2}}`, ca + "vllm_engine_config.b.a: key given twice"},
		{`"nvidia_driver_version": "580.76.05"`, `"x y": {"a": 1, ¦"a": 2}`, `"x y".a: key given twice`},

		// Container ids.
		{`"102": {`, `"99": ¦{`, `lxc_configs.99: "99" is not a container id`},
		{`"102": {`, `"1000000000": ¦{`, `"1000000000" is not a container id`},
		{`"102": {`, `"0102": ¦{`, "without leading zeros"},
		{`"102": {`, `"traefik": ¦{`, `"traefik" is not a container id`},
		{`"102": {`, `"-102": ¦{`, "is not a container id"},
		{`"102": {`, `"": ¦{`, "is not a container id"},

		// What is missing.
		{"\"103\": {\n      \"name\": \"Step-CA\",", `"103": ¦{`, ca + "name: missing"},
		{"\"103\": {\n      \"name\": \"Step-CA\",\n      \"clone_from_ctid\": \"900\",", `"103": ¦{"name": "x",`,
			ca + "template: missing: a container is made from a template or from clone_from_ctid"},
		{`{"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.10/24", "gw": "10.0.0.1"}`,
			`¦{"name": "eth0", "bridge": "vmbr0"}`, ca + "network_config.ip: missing"},

		// Types are not coerced.
		{`"Step-CA"`, `¦103`, ca + "name: must be a string, not a number"},
		{`"Step-CA"`, `¦null`, ca + "name: must be a string, not null"},
		{`"Step-CA"`, `¦""`, ca + "name: must not be empty"},
		{`"memory_mb": 2048`, `"memory_mb": ¦"2048"`, "lxc_configs.900.memory_mb: must be a number, not a string"},
		{`"memory_mb": 2048`, `"memory_mb": ¦2048.5`, "must be a whole number, not 2048.5"},
		{`"memory_mb": 2048`, `"memory_mb": ¦2e3`, "must be a whole number, not 2e3"},
		{`"memory_mb": 2048`, `"memory_mb": ¦true`, "must be a number, not a boolean"},
		{`"memory_mb": 2048`, `"memory_mb": ¦8`, "must be at least 16, not 8"},
		{`"memory_mb": 2048`, `"memory_mb": ¦99999999999999999999`, "must be from 16 to 2147483647"},
		{`"cores": 2`, `"cores": ¦0`, "must be from 1 to 8192, not 0"},
		{`"cores": 2`, `"cores": ¦8193`, "must be from 1 to 8192, not 8193"},
		{`"cores": 2`, `"cores": ¦-1`, "must be from 1 to 8192, not -1"},
		{`"storage_pool": "local-lvm",` + before900,
			strings.Replace(`"storage_pool": "local-lvm",`+before900, "16", "¦0", 1), "must be from 1 to"},
		{`"unprivileged": true`, `"unprivileged": ¦1`, "must be true or false, not a number"},
		{`"unprivileged": true`, `"unprivileged": ¦"true"`, "must be true or false, not a string"},
		{extra, `"swap_mb": ¦-1`, ca + "swap_mb: must be at least 0, not -1"},
		{extra, `"boot_order": ¦"1"`, ca + "boot_order: must be a number"},
		{extra, `"boot_delay": ¦-5`, ca + "boot_delay: must be at least 0"},
		{extra, `"features": ¦"base_setup"`, ca + "features: must be a list, not a string"},
		{extra, `"features": ["a", ¦1]`, ca + "features.1: must be a string, not a number"},
		{extra, `"health_check": ¦"true"`, ca + "health_check: must be an object, not a string"},
		{`{"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.10/24", "gw": "10.0.0.1"}`, `¦"eth0"`,
			ca + "network_config: must be an object"},
		{`"extra": 0` + "\n    }", `"extra": 0` + "\n    }, \"104\": ¦7",
			"lxc_configs.104: must be an object, not a number"},

		// Names.
		{`"Step-CA"`, `¦"Step_CA"`, ca + `name: "Step_CA" is not a host name`},
		{`"Step-CA"`, `¦"-step"`, "is not a host name"},
		{`"Step-CA"`, `¦"step-"`, "is not a host name"},
		{`"Step-CA"`, `¦"a..b"`, "is not a host name"},
		{`"Step-CA"`, `¦"a b"`, "is not a host name"},
		{`"Step-CA"`, `¦"` + strings.Repeat("a", 64) + `"`, "is not a host name"},
		{`"Step-CA"`, `¦"` + strings.Repeat("a.", 130) + `a"`, "is not a host name"},
		{`"Step-CA"`, `¦"a\u0007b"`, "must not contain control characters such as U+0007"},
		{`"Step-CA"`, `¦"a\nb"`, "must not contain control characters such as U+000A"},
		{`"storage_pool": "local-lvm",` + before900,
			`"storage_pool": ¦"local lvm",` + before900,
			"is not the name of a storage"},
		{`"final-form"`, `¦"current"`, "is not a name for a snapshot"},
		{`"final-form"`, `¦"1bad"`, "is not a name for a snapshot"},
		{`"final-form"`, `¦"x"`, "is not a name for a snapshot"},
		{`"final-form"`, `¦"` + strings.Repeat("a", 41) + `"`, "is not a name for a snapshot"},
		{`"local:vztmpl/debian.tar.zst"`, `¦"-"`, "is not a template"},
		{`"local:vztmpl/debian.tar.zst"`, `¦"/var/../etc/x"`, "is not a template"},
		{`"local:vztmpl/debian.tar.zst"`, `¦"lo cal:x"`, "is not a template"},

		// Scripts are names, not paths.
		{`"base_setup"`, `¦"../base_setup"`, "lxc_configs.102.features.0: \"../base_setup\" is not a plain name"},
		{`"base_setup"`, `¦"a/b"`, "is not a plain name"},
		{`"base_setup"`, `¦".hidden"`, "is not a plain name"},
		{`"base_setup"`, `¦"-rf"`, "is not a plain name"},
		{`"base_setup"`, `¦"a b"`, "is not a plain name"},
		{`"base_setup"`, `"base_setup", ¦"base_setup"`, "features.1: base_setup is named twice"},
		{`"phoenix_hypervisor_lxc_103.sh"`, `¦"/etc/x.sh"`, "is not a plain name"},
		{extra, `"health_checks": [{"name": "x", "script": ¦"bin/x.sh"}]`, ca + "health_checks.0.script: "},

		// Where a container comes from.
		{`"clone_from_ctid": "900"`, `"clone_from_ctid": ¦"901"`,
			ca + "clone_from_ctid: there is no container 901 in the file to clone"},
		{`"clone_from_ctid": "900"`, `"clone_from_ctid": ¦"nine"`,
			ca + `clone_from_ctid: "nine" is not a container id`},
		{`"clone_from_ctid": "900"`, `"clone_from_ctid": ¦true`,
			ca + "clone_from_ctid: must be a container id, not a boolean"},
		{`"clone_from_ctid": 900`, `"clone_from_ctid": ¦103`,
			"container 103 has neither template_snapshot_name nor is_template"},
		{extra, `"full_clone": ¦false`, ca + "full_clone: must not be false: container 900 is not is_template"},
		{extra, `"full_clone": ¦1`, ca + "full_clone: must be true or false"},
		{`"template_snapshot_name": "final-form"`, `"template_snapshot_name": "final-form", "full_clone": ¦true`,
			"lxc_configs.900.full_clone: there is no clone_from_ctid"},
		{`"application_script": "phoenix_hypervisor_lxc_103.sh",`,
			`"application_script": "phoenix_hypervisor_lxc_103.sh", "is_template": ¦true,`,
			ca + "is_template: a template never runs, so it cannot have the application script"},
		{extra, `"is_template": ¦"yes"`, ca + "is_template: must be true or false"},
		{`"features": ["base_setup"]`,
			`"is_template": ¦true, "mount_points": [{"host_path": "/a", "container_path": "/b"}]`,
			"lxc_configs.102.is_template: there are mount_points"},
		{`"clone_from_ctid": "900"`, `"template": "x.tar.zst", "clone_from_ctid": ¦"900"`,
			ca + "clone_from_ctid: there is a template too"},
		{`"clone_from_ctid": 900`, `"clone_from_ctid": ¦900.0`, `"900.0" is not a container id`},

		// Network.
		{`"10.0.0.10/24"`, `¦"10.0.0.10"`,
			ca + `network_config.ip: "10.0.0.10" is not an IPv4 address with its prefix length`},
		{`"10.0.0.10/24"`, `¦"10.0.0.256/24"`, "is not an IPv4 address"},
		{`"10.0.0.10/24"`, `¦"10.0.0.010/24"`, "is not an IPv4 address"},
		{`"10.0.0.10/24"`, `¦"10.0.0.10/33"`, "is not an IPv4 address"},
		{`"10.0.0.10/24"`, `¦"10.0.0.10/7"`, "the prefix length must be from 8 to 32"},
		{`"10.0.0.10/24"`, `¦"fd00::1/64"`, "is not an IPv4 address"},
		{`"10.0.0.10/24"`, `¦"10.0.0.0/24"`, "10.0.0.0 is not an address of a host in 10.0.0.0/24"},
		{`"10.0.0.10/24"`, `¦"10.0.0.255/24"`, "10.0.0.255 is not an address of a host in 10.0.0.0/24"},
		{`"10.0.0.10/24"`, `¦"127.0.0.1/8"`, "is not an address of a host"},
		{`"10.0.0.10/24", "gw": "10.0.0.1"`, `"10.0.0.10/24", "gw": ¦"10.0.1.1"`,
			ca + "network_config.gw: 10.0.1.1 is outside of 10.0.0.0/24"},
		{`"10.0.0.10/24", "gw": "10.0.0.1"`, `"10.0.0.10/24", "gw": ¦"10.0.0.10"`,
			"10.0.0.10 is the container's own address"},
		{`"10.0.0.10/24", "gw": "10.0.0.1"`, `"10.0.0.10/24", "gw": ¦"10.0.0.255"`, "is not an address of a host"},
		{`"10.0.0.10/24", "gw": "10.0.0.1"`, `"10.0.0.10/24", "gw": ¦"10.0.0.1/24"`, "is not an IPv4 address"},
		{`"traefik_service": {"name": "ca", "port": 9000}`,
			`"traefik_service": {"name": ¦"ca..internal", "port": 9000}`,
			ca + "traefik_service.name: \"ca..internal\" is not a host name"},
		{`"traefik_service": {"name": "ca", "port": 9000}`,
			`"traefik_service": {"name": "ca", "port": 1, "insecure": ¦true}`,
			ca + "traefik_service.insecure: the CA's certificate is always verified"},
		{`"traefik_service": {"name": "ca", "port": 9000}`,
			`"traefik_service": {"name": "ca", "port": 1, "server_name": ¦"x"}`,
			ca + "traefik_service.server_name: the CA's certificate is for NAME.DOMAIN"},
		{`"features": ["base_setup"]`, `"traefik_service": {"name": "x", "port": 80, "insecure": ¦true}`,
			"lxc_configs.102.traefik_service.insecure: with http there is no certificate"},
		{`"features": ["base_setup"]`,
			`"traefik_service": {"server_name": ¦"x.y", "name": "x", "port": 80, "scheme": "http"}`,
			"lxc_configs.102.traefik_service.server_name: with http there is no certificate"},
		{`"features": ["base_setup"]`,
			`"traefik_service": {"server_name": ¦"*.y", "name": "x", "port": 80, "scheme": "https"}`,
			"lxc_configs.102.traefik_service.server_name: \"*.y\" is not a host name"},
		{`"traefik_service": {"name": "ca", "port": 9000}`, `"traefik_service": {"name": "ca", "port": ¦"9000"}`,
			ca + "traefik_service.port: must be a number"},
		{`"traefik_service": {"name": "ca", "port": 9000}`, `"traefik_service": {"name": "ca", "port": ¦65536}`,
			"must be from 1 to 65535"},
		{`"traefik_service": {"name": "ca", "port": 9000}`,
			`"traefik_service": {"name": "ca", "port": 1, "scheme": ¦"h2c"}`, "is not http or https"},
		{`"traefik_service": {"name": "ca", "port": 9000}`, `"traefik_service": ¦{"port": 9000}`,
			ca + "traefik_service.name: missing"},
		{`"features": ["base_setup"]`, `"traefik_service": {"name": ¦"CA", "port": 80}`,
			"lxc_configs.102.traefik_service.name: ca is the service of container 103 already"},
		{`"ip": "10.0.0.10/24", "gw": "10.0.0.1"},` +
			"\n      \"mac_address\": \"BC:24:11:00:01:03\",\n      \"application_script\": " +
			"\"phoenix_hypervisor_lxc_103.sh\",\n      \"traefik_service\": {\"name\": \"ca\"",
			`"ip": ¦"dhcp"}, "application_script": "phoenix_hypervisor_lxc_103.sh", "traefik_service": {"name": "ca"`,
			"must be a fixed address, not dhcp"},

		// What the root says is served.
		{root, `"services": ¦{}`, "services: must be a list, not an object"},
		{root, `"services": [¦7]`, "services.0: must be an object, not a number"},
		{root, `"services": [¦{"name": "nas"}]`, "services.0.url: missing"},
		{root, `"services": [¦{"url": "http://10.0.0.9:80"}]`, "services.0.name: missing"},
		{root, `"services": [{"name": "nas", "url": "http://10.0.0.9:80", "insecur": ¦true}]`,
			"services.0.insecur: unknown key"},
		{root, `"services": [{"name": ¦"a b", "url": "http://10.0.0.9:80"}]`,
			`services.0.name: "a b" is not a host name`},
		{root, `"services": [{"name": "nas", "url": ¦"http://nas.lan:80"}]`,
			`services.0.url: "http://nas.lan:80" is not http:// or https:// with an IP address and a port`},
		{root, `"services": [{"name": "nas", "url": ¦"http://10.0.0.9"}]`, "with an IP address and a port"},
		{root, `"services": [{"name": "nas", "url": ¦"http://10.0.0.9:80/"}]`, "with an IP address and a port"},
		{root, `"services": [{"name": "nas", "url": ¦"http://10.0.0.9:0"}]`, "with an IP address and a port"},
		{root, `"services": [{"name": "nas", "url": ¦"ftp://10.0.0.9:21"}]`, "with an IP address and a port"},
		{root, `"services": [{"name": "nas", "url": ¦"http://[fe80::1%eth0]:80"}]`, "with an IP address and a port"},
		{root, `"services": [{"name": "nas", "url": ¦"http://fd00::1:80"}]`, "with an IP address and a port"},
		{root, `"services": [{"name": "nas", "url": ¦"http://127.0.0.1:8080"}]`, "not the address of another machine"},
		{root, `"services": [{"name": "nas", "url": ¦"http://[::ffff:10.0.0.9]:80"}]`,
			"is the IPv4 address 10.0.0.9"},
		{root, `"services": [{"name": "nas", "url": "http://10.0.0.9:80", "insecure": ¦true}]`,
			"services.0.insecure: with http there is no certificate"},
		{root, `"services": [{"name": "nas", "url": ¦"https://10.0.0.10:9000"}]`,
			"services.0.url: 10.0.0.10 is the address of container 103"},
		{root, `"services": [{"name": ¦"CA", "url": "https://10.0.0.9:9000"}]`,
			"services.0.name: ca is the service of container 103 already"},
		{root, `"services": [{"name": "nas", "url": "https://10.0.0.9:1"}, ` +
			`{"name": ¦"nas", "url": "https://10.0.0.9:2"}]`,
			"services.1.name: nas is services.0 already"},
		{root, `"dashboard": ¦{"name": "traefik"}`, "dashboard.allow: missing"},
		{root, `"dashboard": ¦{"allow": ["10.0.0.1"]}`, "dashboard.name: missing"},
		{root, `"dashboard": {"name": "traefik", "allow": ¦[]}`, "dashboard.allow: must not be empty"},
		{root, `"dashboard": {"name": "traefik", "allow": ["10.0.0.1", ¦"10.0.0.1/24"]}`,
			`dashboard.allow.1: "10.0.0.1/24" is not an IP address or a network`},
		{root, `"dashboard": {"name": ¦"ca", "allow": ["fd00::/8"]}`,
			"dashboard.name: ca is the service of container 103 already"},
		{root, `"dashboard": {"name": "traefik", "allow": ["10.0.0.1"], "allowed": ¦[]}`,
			"dashboard.allowed: unknown key"},

		{`"10.0.0.12/24"`, `¦"10.0.0.10/24"`,
			"lxc_configs.102.network_config.ip: 10.0.0.10 is the address of container 103 already"},
		{`"10.0.0.12/24"`, `¦"10.0.0.10/25"`, "10.0.0.10 is the address of container 103 already"},
		{`"BC:24:11:00:01:03"`, `¦"bc:24:11:00:09:00"`,
			ca + "mac_address: BC:24:11:00:09:00 is the address of container 900 already"},
		{`"BC:24:11:00:01:03"`, `¦"BC:24:11:00:01"`, "is not a MAC address"},
		{`"BC:24:11:00:01:03"`, `¦"BC-24-11-00-01-03"`, "is not a MAC address"},
		{`"BC:24:11:00:01:03"`, `¦"BD:24:11:00:01:03"`, "is a multicast address"},
		{`"BC:24:11:00:01:03"`, `¦"00:00:00:00:00:00"`, "must not be all zeros"},
		{`"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.10/24"`,
			`"name": ¦"eth0,x=y", "bridge": "vmbr0", "ip": "10.0.0.10/24"`, "is not the name of an interface"},
		{`"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.10/24"`,
			`"name": "eth0", "bridge": ¦"vmbr000000000000", "ip": "10.0.0.10/24"`, "is not the name of an interface"},
		{`"ip": "10.0.0.10/24"`, `"nameservers": ["1.1.1.1", ¦"x"], "ip": "10.0.0.10/24"`,
			ca + `network_config.nameservers.1: "x" is not an IP address`},
		{`"ip": "10.0.0.10/24"`, `"nameservers": ¦"1.1.1.1 8.8.8", "ip": "10.0.0.10/24"`,
			`network_config.nameservers: "8.8.8" is not an IP address`},

		// Mount points and volumes.
		{extra, `"mount_points": [{"host_path": ¦"srv/x", "container_path": "/x"}]`,
			ca + `mount_points.0.host_path: "srv/x" is not an absolute path`},
		{extra, `"mount_points": [{"host_path": ¦"/srv/../etc", "container_path": "/x"}]`,
			"must not contain /./ or /../"},
		{extra, `"mount_points": [{"host_path": "/srv", "container_path": ¦"/x,ro=0"}]`, "must not contain a comma"},
		{extra, `"mount_points": [{"host_path": ¦"/srv/a=b", "container_path": "/x"}]`,
			"must not contain a comma or an equals sign"},
		{extra, `"mount_points": [{"host_path": "/srv", "container_path": ¦"/"}]`, "must not be the root directory"},
		{extra, `"mount_points": [{"host_path": "/srv", "container_path": ¦"/x "}]`, "must not end with a blank"},
		{extra,
			`"mount_points": [{"host_path": "/srv", "container_path": "/x"}, ` +
				`{"host_path": "/srv", "container_path": ¦"/x/"}]`,
			ca + "mount_points.1.container_path: something else is mounted at /x already"},
		{extra, `"mount_points": [{"host_path": "/srv", "container_path": "/x", "readonly": ¦true}]`,
			ca + "mount_points.0.readonly: unknown key"},
		{extra, `"mount_points": [¦{"host_path": "/srv"}]`, ca + "mount_points.0.container_path: missing"},
		{extra, `"mount_points": [{"host_path": "/srv/x", "container_path": "/x", "owner_uid": ¦65536}]`,
			"must be from 0 to 65535"},
		{extra, `"volumes": [{"name": "v", "pool": "p1", "size_gb": ¦0, "mount_point": "/v"}]`,
			ca + "volumes.0.size_gb: must be from 1"},
		{extra, `"volumes": [¦{"size_gb": 1, "mount_point": "/v"}]`, ca + "volumes.0.pool: missing"},
		{extra,
			`"zfs_volumes": [{"pool": "p1", "size_gb": 1, "mount_point": "/v"}], ` +
				`"volumes": [{"pool": "p1", "size_gb": 1, "mount_point": ¦"/v"}]`,
			ca + "volumes.0.mount_point: something else is mounted at /v already"},

		// What pct and LXC have to understand.
		{extra, `"pct_options": [¦"nesting"]`, ca + `pct_options.0: "nesting" is not of the form key=value`},
		{extra, `"pct_options": [¦"nest=1"]`, `pct knows no feature "nest"`},
		{extra, `"pct_options": [¦"nesting=2"]`, "nesting must be 0 or 1"},
		{extra, `"pct_options": ["nesting=1", ¦"nesting=0"]`, "nesting is given twice"},
		{extra, `"pct_options": [¦"mount=nfs,cifs"]`, `"cifs" is not of the form key=value`},
		{extra, `"lxc_options": [¦"lxc.no_new_privs=1"]`,
			ca + "lxc_options.0: Proxmox VE does not accept lxc.no_new_privs"},
		{extra, `"lxc_options": [¦"nesting=1"]`, "is not of the form lxc.key=value"},
		{extra, `"lxc_options": [¦"lxc.apparmor.profile unconfined"]`, "is not of the form lxc.key=value"},
		{extra, `"lxc_options": [¦"lxc.Apparmor.profile=x"]`, "is not of the form lxc.key=value"},
		{extra, `"lxc_options": [¦"lxc.rootfs.path=/x"]`, "Proxmox VE makes it from storage_pool"},
		{extra, `"lxc_options": [¦"lxc.limit.nofile=1"]`, "is called lxc.prlimit.* now"},
		{extra, `"lxc_options": [¦"lxc.mount.auto=x\nrootfs: y"]`, "control characters"},
		{extra, `"apparmor_profile": ¦"../x"`, ca + "apparmor_profile: "},
		{extra, `"gpu_assignment": ¦"0,x"`, ca + "gpu_assignment: \"0,x\" is not a list of GPUs"},
		{extra, `"gpu_assignment": ¦"0,0"`, "GPU 0 is named twice"},
		{extra, `"gpu_assignment": ¦0`, "must be a string"},
		{extra, `"id_maps": [¦"x 0 100000 65536"]`, ca + "id_maps.0: "},
		{extra, `"id_maps": [¦"u 0 4294967295 65536"]`, "goes beyond the last id"},
		{extra, `"bootstrap_ca_url": ¦"http://10.0.0.10"`, ca + "bootstrap_ca_url: "},
		{extra, `"health_check": ¦{"retries": 1}`, ca + "health_check.command: missing"},
		{extra, `"health_check": {"command": "true", "retries": ¦0}`,
			ca + "health_check.retries: must be from 1 to 1000"},
		{extra, `"health_check": {"command": ¦"sh -c 'curl localhost'"}`,
			ca + "health_check.command: no shell reads this"},
		{extra, `"health_check": {"command": ¦"curl \"localhost\""}`, "no shell reads this"},
		{extra, `"health_check": {"command": ¦"a\\ b"}`, "no shell reads this"},
		{extra, `"health_check": {"command": ¦"echo $HOME"}`, "no shell reads this"},
		{extra, `"health_check": {"command": ¦"a;b"}`, "no shell reads this"},
		{extra, `"health_check": {"command": ¦"a | b"}`, "no shell reads this"},
		{extra, `"health_check": {"command": ¦"a && b"}`, "no shell reads this"},
		{extra, `"health_check": {"command": ¦"a &"}`, "no shell reads this"},
		{extra, `"health_check": {"command": ¦"a >/dev/null"}`, "no shell reads this"},
		{extra, `"health_check": {"command": ¦"  "}`, "must not be blank"},
		{`"ip": "10.0.0.12/24", "gw": "10.0.0.1"},`,
			`"ip": ¦"dhcp"}, "application_script": "phoenix_hypervisor_lxc_102.sh",`,
			"lxc_configs.102.network_config.ip: must be a fixed address, not dhcp"},
		{`"name": "Traefik-Internal"`, `"name": ¦"` + strings.Repeat("a", maxString+1) + `"`,
			"is 65537 bytes long; at most 65536 are allowed"},
		{extra, `"lxc_options": ["lxc.cap.drop=a", ¦"lxc.cap.keep=` + strings.Repeat("a,", 64) + `a"]`,
			"Linux has no more than 64 capabilities"},
		{extra, `"mount_points": [` + numbered(256, `{"host_path": "/a", "container_path": "/%d"}`) +
			`, {"host_path": "/a", "container_path": ¦"/x"}]`, "pct has no more than 256 mount points"},
		{extra, `"features": [` + numbered(100, `"a%d"`) + `, ¦"a99"]`, "a99 is named twice"},
		{extra, `"health_checks": [{"script": "x.sh", "args": ¦"` + strings.Repeat("a ", 101) + `"}]`,
			"has 101 arguments; at most 100"},
		{extra, `"health_checks": [{"script": "x.sh", "args": ¦"$(reboot)"}]`,
			ca + "health_checks.0.args: no shell reads this"},

		// Options of pct.
		{extra, `"ostype": ¦"windows"`, ca + `ostype: "windows" is not a type of system that pct knows`},
		{extra, `"arch": ¦"x86"`, ca + `arch: "x86" is not an architecture that pct knows`},
		{extra, `"nodename": ¦"pve1.example"`, ca + "nodename: "},
		{extra, `"ssh_public_keys": ¦["ssh-ed25519 ` + goodKey + ` a"]`,
			ca + "ssh_public_keys: pct sets them only when"},
		{extra, `"cpulimit": ¦8193`, ca + "cpulimit: must be from 0 to 8192, not 8193"},
		{extra, `"cpulimit": ¦"2"`, ca + "cpulimit: must be a number, not a string"},
		{extra, `"cpulimit": ¦-0.5`, "must be from 0 to 8192, not -0.5"},
		{extra, `"cpulimit": ¦1e999`, "must be from 0 to 8192, not 1e999"},
		{extra, `"cpuunits": ¦500001`, ca + "cpuunits: must be from 0 to 500000"},
		{extra, `"timezone": ¦"../etc/passwd"`, ca + `timezone: "../etc/passwd" is not a time zone`},
		{extra, `"timezone": ¦"Europe/"`, "is not a time zone"},
		{extra, `"tags": ¦"web"`, ca + "tags: must be a list"},
		{extra, `"tags": ["web", ¦"WEB"]`, ca + "tags.1: web is named twice"},
		{extra, `"tags": [¦"a;b"]`, ca + `tags.0: "a;b" is not a tag`},
		{extra, `"tags": [¦"-a"]`, "is not a tag"},
		{extra, `"tags": [` + numbered(100, `"a%d"`) + `, ¦"b"]`, "at most 100 tags are allowed"},
		{extra, `"description_text": ¦["a"]`, ca + "description_text: must be a string"},
		{extra, `"description_text": ¦"a\n phx: +mac=0"`, ca + `description_text: no line may begin with "phx:"`},
		{extra, `"description_text": ¦"phx:"`, "no line may begin with"},
		{extra, `"description_text": ¦"a\tb"`, "must not contain control characters but line feeds: there is U+0009"},
		{extra, `"description_text": ¦"a\r\nb"`, "there is U+000D"},
		{extra, `"description_text": ¦"` + strings.Repeat("a", maxNotes+1) + `"`, "is 4097 bytes long; at most 4096"},
		{extra, `"protection": ¦1`, ca + "protection: must be true or false"},
		{extra, `"hookscript": ¦"/root/x.sh"`, ca + `hookscript: "/root/x.sh" is not the volume id of a snippet`},
		{extra, `"hookscript": ¦"local:snippets/../x.sh"`, "is not the volume id"},
		{extra, `"hookscript": ¦"local:vztmpl/x.sh"`, "is not the volume id"},
		{extra, `"devices": [¦"/dev/kvm"]`, ca + "devices.0: must be an object, not a string"},
		{extra, `"devices": [¦{"mode": "0660"}]`, ca + "devices.0.path: missing"},
		{extra, `"devices": [{"path": ¦"/srv/x"}]`, ca + `devices.0.path: "/srv/x" is not below /dev`},
		{extra, `"devices": [{"path": ¦"/dev/../etc"}]`, "must not contain /./ or /../"},
		{extra, `"devices": [{"path": ¦"/dev/a,mode=0777"}]`, "must not contain a comma"},
		{extra, `"devices": [{"path": "/dev/a"}, {"path": ¦"/dev//a"}]`, ca + "devices.1.path: /dev/a is named twice"},
		{extra, `"devices": [{"path": "/dev/a", "mode": ¦"660"}]`, ca + `devices.0.mode: "660" is not an access mode`},
		{extra, `"devices": [{"path": "/dev/a", "mode": ¦"0680"}]`, "is not an access mode"},
		{extra, `"devices": [{"path": "/dev/a", "uid": ¦-1}]`, ca + "devices.0.uid: must be at least 0"},
		{extra, `"devices": [{"path": "/dev/a", "ro": ¦true}]`, ca + "devices.0.ro: unknown key"},
		{extra, `"rootfs_options": {"backup": ¦true}`, ca + "rootfs_options.backup: unknown key"},
		{extra, `"rootfs_options": {"mountoptions": ["noatime", ¦"ro"]}`,
			ca + `rootfs_options.mountoptions.1: "ro" is not a mount option that pct takes`},
		{extra, `"volumes": [{"pool": "p1", "size_gb": 1, "mount_point": "/v", "quota": ¦"1"}]`,
			ca + "volumes.0.quota: must be true or false"},
		{extra, `"volumes": [{"pool": "p1", "size_gb": 1, "mount_point": "/v", "mountoptions": ["nodev", ¦"nodev"]}]`,
			"nodev is named twice"},
		{extra, `"mount_points": [{"host_path": "/srv/x", "container_path": "/x", "quota": ¦true}]`,
			ca + "mount_points.0.quota: unknown key"},
		{`"template": "local:vztmpl/debian.tar.zst"`,
			`"template": "local:vztmpl/debian.tar.zst", "ssh_public_keys": [¦"ssh-ed25519 AAAA"]`,
			"lxc_configs.900.ssh_public_keys.0: is no public key of OpenSSH"},
		{`"template": "local:vztmpl/debian.tar.zst"`,
			`"template": "local:vztmpl/debian.tar.zst", "ssh_public_keys": [¦"ssh-rsa ` + goodKey + `"]`,
			"is no public key of OpenSSH"},
		{`"template": "local:vztmpl/debian.tar.zst"`,
			`"template": "local:vztmpl/debian.tar.zst", "ssh_public_keys": ¦"keys.pub"`, "is not an absolute path"},

		// Maps of ids.
		{extra, `"id_maps": ¦["u 0 100000 65536", {"type": "gid", "host_id": 33, "container_id": 33}]`,
			ca + "id_maps: has both forms"},
		{extra, `"id_maps": [{"type": ¦"group", "host_id": 33, "container_id": 33}]`,
			`"group" is not uid, gid or both`},
		{extra, `"id_maps": [¦{"type": "gid", "container_id": 33}]`, ca + "id_maps.0.host_id: missing"},
		{extra, `"id_maps": [{"type": "gid", "host_id": 33, "container_id": ¦65536}]`, "must be from 0 to 65535"},
		{extra, `"id_maps": [{"type": "gid", "host_id": 33, "container_id": 65535, "size": ¦2}]`,
			"2 ids from 65535 on go beyond the container's last one"},
		{extra, `"id_maps": [{"type": "gid", "host_id": 33, "container_id": 33, "size": ¦0}]`,
			"must be from 1 to 65536"},
		{extra, `"id_maps": [{"type": "gid", "host_id": 33, "container_id": 33, "count": ¦1}]`, "unknown key"},
		{extra, `"id_maps": [{"type": "gid", "host_id": 33, "container_id": 33, "size": 5}, ` +
			`¦{"type": "both", "host_id": 50, "container_id": 37}]`,
			ca + "id_maps.1: gid 37 of the container has another place in id_maps.0"},
		{extra, `"id_maps": [{"type": "uid", "host_id": 33, "container_id": 33, "size": 5}, ` +
			`¦{"type": "uid", "host_id": 37, "container_id": 50}]`,
			ca + "id_maps.1: uid 37 of the host has another place in id_maps.0"},
		{extra, `"id_maps": [¦{"type": "uid", "host_id": 100050, "container_id": 33}]`,
			ca + "id_maps.0: uid 100050 of the host has another place in the standard map, in which they are those "},
		{extra, `"unprivileged": false, "id_maps": ¦[{"type": "uid", "host_id": 33, "container_id": 33}]`,
			ca + "id_maps: unprivileged is false"},
		{extra, `"lxc_options": ["lxc.idmap=u 0 100000 65536"], ` +
			`"id_maps": ¦[{"type": "uid", "host_id": 33, "container_id": 33}]`,
			"there is lxc.idmap in lxc_options, too"},
		{extra, `"id_maps": ¦[` + numbered(170, `{"type": "gid", "host_id": %[1]d, "container_id": 1%03[1]d0}`) + `]`,
			ca + "id_maps: is a map of gid in 341 parts, and Linux takes 340"},

		// Firewall.
		{extra, `"mount_points": [{"host_path": ¦"/etc", "container_path": "/x", "owner_uid": 1}]`,
			ca + "mount_points.0.host_path: /etc is a directory of the system: all in it would change its owner"},
		{extra, `"mount_points": [{"owner_gid": 0, "container_path": "/x", "host_path": ¦"/usr/share/x/"}]`,
			"/usr/share/x belongs to the system, in /usr"},
		{extra, `"bootstrap_ca_url": ¦"https://[fe80::1%25eth0]:9000"`, "is not an https:// URL"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "source": ¦"fe80::1%x -dport 22"}]}`,
			"is not a list of addresses"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "dest": ¦"fe80::1%x-fe80::2%x"}]}`,
			"is not a list of addresses"},
		{extra, `"firewall": {"macfilter": ¦1}`, ca + "firewall.macfilter: must be true or false"},
		{extra, `"firewall": {"ipfilter": ¦"1"}`, ca + "firewall.ipfilter: must be true or false"},
		{`"ip": "10.0.0.12/24", "gw": "10.0.0.1"},`, `"ip": "dhcp"}, "firewall": {"ipfilter": ¦true},`,
			"firewall.ipfilter: needs a fixed address"},
		{extra, `"firewall": {"policy_in": ¦"drop"}`, ca + `firewall.policy_in: "drop" is not ACCEPT, DROP or REJECT`},
		{extra, `"firewall": {"policy_out": ¦"REJECT "}`, ca + "firewall.policy_out: "},
		{extra, `"firewall": {"enable": ¦true}`, ca + "firewall.enable: unknown key"},
		{extra, `"firewall": {"rules": [{"type": ¦"IN", "action": "ACCEPT"}]}`, ca + "firewall.rules.0.type: "},
		{extra, `"firewall": {"rules": [{"type": "in", "action": ¦"accept"}]}`,
			ca + `firewall.rules.0.action: "accept" is not ACCEPT, DROP or REJECT`},
		{extra, `"firewall": {"rules": [{"type": "group", "action": ¦"a b"}]}`, "is not the name of a group"},
		{extra, `"firewall": {"rules": [¦{"type": "in"}]}`, "firewall.rules.0.action: missing"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "iface": ¦"net0"}]}`,
			"firewall.rules.0.iface: unknown key"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "port": ¦"80"}]}`, "a port needs a proto"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": ¦"80-85"}]}`,
			"is not a list of ports"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": ¦"85:80"}]}`,
			"is not a list of ports"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": ¦0}]}`,
			"must be from 1 to 65535"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "proto": ¦"tcp,udp"}]}`, "one protocol"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "source": ¦"any"}]}`,
			"is not a list of addresses"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "source": ¦"10.0.0.0/33"}]}`,
			"is not a list of addresses"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "dest": ¦"10.0.0.9-10.0.0.1"}]}`,
			"is not a list of addresses"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "comment": ¦"a\nIN ACCEPT"}]}`,
			"control characters"},

		// Across containers.
		{`"features": ["base_setup"]`, `"application_script": ¦"phoenix_hypervisor_lxc_103.sh"`,
			"lxc_configs.102.application_script: phoenix_hypervisor_lxc_103.sh is the script of container 103 already"},
		{`["103", 1002]`, `["103", ¦"102"]`, "lxc_configs.102.dependencies.1: cycle: 102 -> 102"},
		{`["103", 1002]`, `["103", ¦"0103"]`, "lxc_configs.102.dependencies.1: \"0103\" is not a container id"},
		{`["103", 1002]`, `[¦{}]`, "lxc_configs.102.dependencies.0: must be a container id, not an object"},
	})
}

// A mistakeCase puts new in the place of old in [base]: there is one mistake then,
// at the mark, whose path and message contain want.
type mistakeCase struct{ old, new, want string }

func expectMistakes(t *testing.T, tests []mistakeCase) {
	t.Helper()
	for i, tt := range tests {
		text := strings.Replace(base, tt.old, tt.new, 1)
		if text == base {
			t.Errorf("case %d: nothing to replace: %q", i, tt.old)
			continue
		}
		at := strings.Index(text, "¦")
		before := text[:at]
		text = before + text[at+len("¦"):]
		line := strings.Count(before, "\n") + 1
		col := at - strings.LastIndex(before, "\n")

		holdSchema(t, text)
		_, err := Parse("f.json", []byte(text))
		var wrong *Error
		if !errors.As(err, &wrong) {
			t.Errorf("%q: no mistake found, want %s", tt.new, tt.want)
			continue
		}
		found := false
		for _, m := range wrong.Mistakes {
			s := fmt.Sprintf("%s: %s", m.Path, m.Msg)
			if m.Path == "" {
				s = m.Msg
			}
			if strings.Contains(s, tt.want) {
				found = true
				if m.Line != line || m.Col != col {
					t.Errorf("%q: at %d:%d, want %d:%d: %s", tt.new, m.Line, m.Col, line, col, s)
				}
			}
		}
		if !found || len(wrong.Mistakes) != 1 {
			t.Errorf("%q: want only %q, found\n%v", tt.new, tt.want, err)
		}
	}
}

// numbered returns n elements of a list, made from a format with their index.
func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func parse(t *testing.T, text string) *File {
	t.Helper()
	holdSchema(t, text)
	f, err := Parse("f.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// mistakes returns what is wrong in text, one line for each.
func mistakes(t *testing.T, text string) []string {
	t.Helper()
	holdSchema(t, text)
	_, err := Parse("f.json", []byte(text))
	var wrong *Error
	if !errors.As(err, &wrong) {
		t.Fatalf("no mistake found: %v", err)
	}
	return strings.Split(wrong.Error(), "\n")
}

func TestAllMistakesAtOnce(t *testing.T) {
	got := mistakes(t, `{"lxc_configs": {
  "102": {"memory_mb": "512", "name": "a_b"},
  "x": {"cores": 0}
}}`)
	want := []string{
		`f.json:2:10: lxc_configs.102.cores: missing: pct needs to know the number of cores`,
		`f.json:2:10: lxc_configs.102.storage_pool: missing: pct needs a storage for the root disk`,
		`f.json:2:10: lxc_configs.102.storage_size_gb: missing: pct needs the size of the root disk, in GiB`,
		`f.json:2:10: lxc_configs.102.network_config: missing: without it the container would have no interface`,
		`f.json:2:10: lxc_configs.102.template: missing: a container is made from a template or from clone_from_ctid`,
		`f.json:2:24: lxc_configs.102.memory_mb: must be a number, not a string`,
		`f.json:2:39: lxc_configs.102.name: "a_b" is not ` + hostName.what,
		`f.json:3:8: lxc_configs.x: "x" is not a container id: a number from 100 to 999999999`,
		`f.json:3:8: lxc_configs.x.name: missing: the container's host name`,
	}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, key := range []string{"memory_mb", "template", "network_config"} {
		missing := "f.json:3:8: lxc_configs.x." + key + ": missing"
		if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, missing) }) {
			t.Errorf("nothing about the missing %s of x", key)
		}
	}
	if got := got[len(got)-1]; got != `f.json:3:18: lxc_configs.x.cores: must be from 1 to 8192, not 0` {
		t.Errorf("last: %s", got)
	}
}

func TestCycles(t *testing.T) {
	got := mistakes(t, strings.Replace(base, `"extra": 0`, `"dependencies": ["102"]`, 1))
	want := []string{"f.json:38:24: lxc_configs.102.dependencies.0: cycle: 103 -> 102 -> 103"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	// A clone source counts as well.
	got = mistakes(t, strings.Replace(base, `"cores": 2`, `"cores": 2, "dependencies": [103]`, 1))
	want = []string{"f.json:18:26: lxc_configs.103.clone_from_ctid: cycle: 900 -> 103 -> 900"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	text := strings.Replace(base, `"clone_from_ctid": "900"`, `"clone_from_ctid": "103"`, 1)
	want = []string{"f.json:18:26: lxc_configs.103.clone_from_ctid: cycle: 103 -> 103"}
	if got := mistakes(t, text); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestCloneSourceWithMountPoints(t *testing.T) {
	got := mistakes(t, strings.Replace(base, `"cores": 2`,
		`"cores": 2, "mount_points": [{"host_path": "/a", "container_path": "/b"}]`, 1))
	for i, line := range []string{"18:26", "31:26"} {
		if i >= len(got) || !strings.HasPrefix(got[i], "f.json:"+line) ||
			!strings.Contains(got[i], "pct can neither snapshot nor clone it") {
			t.Errorf("got %q", got)
		}
	}
}

func TestWarnings(t *testing.T) {
	text := strings.Replace(base, `"unprivileged": true`, `"unprivileged": false`, 1)
	text = strings.Replace(text, `"extra": 0`, `"extra": 0, "unprivileged": true, "vllm_port": 1, "$schema": "", `+
		`"portainer_role": "none", "ports": ["1:2"], "lxc_options": ["lxc.cgroup.x=1"], `+
		`"dependencies": ["900", 900]`, 1)
	text = strings.Replace(text, `"gw": "10.0.0.1"},`, `"gw": "10.0.0.1", "metric": 1},`, 1)
	text = strings.Replace(text, `16,`, `32,`, 1)
	var got []string
	for _, w := range parse(t, text).Warnings {
		got = append(got, w.String())
	}
	want := []string{
		"11:112: lxc_configs.900.network_config.metric: unknown key, ignored",
		"18:26: lxc_configs.103.clone_from_ctid: a clone keeps its source's unprivileged, and 900 has false",
		"18:26: lxc_configs.103.clone_from_ctid: the disk of 900 has 32 GiB: a clone cannot have fewer",
		"27:16: lxc_configs.103.extra: unknown key, ignored",
		"27:132: lxc_configs.103.lxc_options.0: Proxmox VE is about to refuse lxc.cgroup.*: use lxc.cgroup2.*",
		"27:175: lxc_configs.103.dependencies.1: 900 is named twice",
		"31:26: lxc_configs.102.clone_from_ctid: the disk of 900 has 32 GiB: a clone cannot have fewer",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A template has no snapshots and never runs: what asks for these has no effect,
// and is told with its place.
func TestTemplateKeys(t *testing.T) {
	f := parse(t, strings.Replace(base, `"template_snapshot_name": "final-form"`,
		`"template_snapshot_name": "final-form", "enable_lifecycle_snapshots": true, "start_at_boot": true,
      "traefik_service": {"name": "copies", "port": 80}, "is_template": true`, 1))
	c := f.Containers[900]
	if !c.IsTemplate || !c.IsOnlyCloned() || c.TemplateSnapshot != "" || c.LifecycleSnapshots {
		t.Errorf("got %+v", c)
	}
	var got []string
	for _, w := range f.Warnings {
		got = append(got, w.String())
	}
	const at = "15:73: lxc_configs.900.is_template: "
	want := []string{
		at + "a template has no snapshots: neither template_snapshot_name nor enable_lifecycle_snapshots has an effect",
		at + "a template never runs: start_at_boot has no effect",
		at + "a template never runs: its traefik_service is not served",
		"28:16: lxc_configs.103.extra: unknown key, ignored",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s := f.Services("example.org"); len(s) != 1 || s[0].Name != "ca" {
		t.Errorf("services: %+v", s)
	}
	f = parse(t, strings.NewReplacer(`"template_snapshot_name": "final-form"`, `"is_template": true`,
		`"extra": 0`, `"full_clone": false`).Replace(base))
	if full := f.Containers[103].FullClone; full == nil || *full {
		t.Errorf("full_clone: %v", full)
	}
}

// everyKey is the object of a container that has every key, but for those that exclude
// another one.
const everyKey = `{
  "is_template": false,
  "name": "granite-3.3-8b-fp8", "template": "/fastData/template/cache/x.tar.zst",
  "memory_mb": 72000, "swap_mb": 0, "cores": 10, "storage_pool": "quickOS-lxc-disks", "storage_size_gb": 128,
  "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.141/24", "gw": "10.0.0.1",
    "nameservers": "10.0.0.53, 1.1.1.1"},
  "mac_address": "52:54:00:67:89:a1", "unprivileged": true, "start_at_boot": false, "boot_order": 0, "boot_delay": 5,
  "pct_options": ["keyctl=on", "nesting=1,mount=nfs;cifs"],
  "lxc_options": ["lxc.cap.keep=sys_admin,net_admin", "lxc.mount.auto: sys:rw", "lxc.apparmor.profile = unconfined",
    "lxc.cgroup2.devices.allow=c 195:* rwm"],
  "apparmor_profile": "unconfined", "apparmor_manages_nesting": true, "gpu_assignment": "0, 1",
  "id_maps": ["u  0 100000 65536", "g 0 100000 65536"],
  "zfs_volumes": [{"name": "models", "pool": "fastData", "size_gb": 50, "mount_point": "/models/"}],
  "volumes": [{"name": "data", "pool": "quickOS", "size_gb": 1, "mount_point": "/data", "read_only": true,
    "backup": true, "replicate": false, "quota": false, "acl": true, "keepattrs": true,
    "mountoptions": ["noatime", "discard"]}],
  "rootfs_options": {"acl": false, "quota": true, "replicate": true, "mountoptions": []},
  "ostype": "debian", "arch": "amd64", "ssh_public_keys": "/root/keys.pub", "nodename": "pve1", "cpulimit": 1.5,
  "cpuunits": 200, "timezone": "Europe/Vienna", "tags": ["LLM", "gpu"], "description_text": "one\n\n# two: 100 %\n\n",
  "protection": true, "hookscript": "local:snippets/hook.pl", "devices": [{"path": "/dev/dri//renderD128",
    "mode": "0660", "uid": 0, "gid": 104, "deny_write": true}, {"path": "/dev/kvm"}],
  "mount_points": [{"host_path": "/srv/a b", "container_path": "/a//b", "replicate": false, "shared": true},
    {"host_path": "/srv/c", "container_path": "/c", "read_only": true, "owner_uid": 33, "owner_gid": 0}],
  "firewall": {"enabled": true, "macfilter": false, "ipfilter": true, "policy_in": "REJECT",
    "policy_out": "ACCEPT", "rules": [
    {"type": "in", "action": "ACCEPT", "source": "10.0.0.153,10.0.1.0/24", "dest": "10.0.2.1-10.0.2.9",
      "proto": "tcp", "port": "22,80:85,https", "comment": "a # b"},
    {"type": "out", "action": "DROP", "proto": "udp", "port": 53, "comment": ""}, {"type": "group", "action": "web"}]},
  "features": ["base_setup", "nvidia"], "bootstrap_ca_url": "https://10.0.0.10:9000",
  "application_script": "phoenix_hypervisor_lxc_vllm.sh",
  "health_check": {"command": "curl -s --fail http://localhost:8000"},
  "health_checks": [{"name": "up", "script": "up.sh", "args": "--port 80"}, {"script": "b.sh", "args": ["a b", ""]}],
  "enable_lifecycle_snapshots": true, "template_snapshot_name": "final-form", "dependencies": ["101", 1002],
  "traefik_service": {"name": "Granite.3", "port": 8000, "scheme": "https", "insecure": true,
    "server_name": "X.example"}, "trigger_sync_on_completion": true,
  "vllm_args": ["--x"], "ports": [], "tests": {}, "portainer_role": "none", "integration_tests": {},
  "run_integration_tests": true
}`

func TestEveryKey(t *testing.T) {
	const raw = everyKey
	c, err := ParseContainer(801, []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	want := &Container{
		CTID: 801, Name: "granite-3.3-8b-fp8", Template: "/fastData/template/cache/x.tar.zst",
		MemoryMB: 72000, SwapMB: new(0), Cores: 10, StoragePool: "quickOS-lxc-disks", StorageSizeGB: 128,
		Interfaces: []Interface{{Name: "eth0", Bridge: "vmbr0", MAC: "52:54:00:67:89:A1",
			IPv4: Addressing{Prefix: netip.MustParsePrefix("10.0.0.141/24"), Gateway: addr("10.0.0.1")}}},
		Nameservers: []netip.Addr{addr("10.0.0.53"), addr("1.1.1.1")}, Unprivileged: new(true), StartAtBoot: new(false),
		BootOrder: new(0), BootDelay: new(5),
		PctOptions: []string{"keyctl=1", "nesting=1", "mount=nfs;cifs"},
		LXCOptions: []RawOption{{"lxc.cap.keep", "sys_admin"}, {"lxc.cap.keep", "net_admin"},
			{"lxc.mount.auto", "sys:rw"}, {"lxc.apparmor.profile", "unconfined"},
			{"lxc.cgroup2.devices.allow", "c 195:* rwm"}},
		AppArmorProfile: "unconfined", AppArmorManagesNesting: true, GPUs: []int{0, 1},
		IDMaps: []string{"u 0 100000 65536", "g 0 100000 65536"},
		Volumes: []Volume{{Pool: "fastData", SizeGB: 50, MountPoint: "/models"},
			{Pool: "quickOS", SizeGB: 1, MountPoint: "/data", ReadOnly: new(true), MountOptions: MountOptions{
				Backup: new(true), Replicate: new(false), Quota: new(false), ACL: new(true), KeepAttrs: new(true),
				Flags: []string{"noatime", "discard"}}}},
		RootOptions: MountOptions{ACL: new(false), Quota: new(true), Replicate: new(true), Flags: []string{}},
		OSType:      "debian", Arch: "amd64", SSHKeysFile: "/root/keys.pub", NodeName: "pve1",
		CPULimit: new(1.5), CPUUnits: new(200), Timezone: "Europe/Vienna", Tags: []string{"llm", "gpu"},
		Notes: new("one\n\n# two: 100 %"), Protection: new(true), HookScript: "local:snippets/hook.pl",
		Devices: []Device{{Path: "/dev/dri/renderD128", Mode: "0660", UID: new(0), GID: new(104), DenyWrite: true},
			{Path: "/dev/kvm"}},
		MountPoints: []MountPoint{{HostPath: "/srv/a b", ContainerPath: "/a/b",
			MountOptions: MountOptions{Replicate: new(false), Shared: new(true)}},
			{HostPath: "/srv/c", ContainerPath: "/c", ReadOnly: true, OwnerUID: new(33), OwnerGID: new(0)}},
		Firewall: &Firewall{Enabled: true, MACFilter: new(false), IPFilter: new(true), PolicyIn: "REJECT",
			PolicyOut: "ACCEPT", Rules: []FirewallRule{
				{Type: "in", Action: "ACCEPT", Source: "10.0.0.153,10.0.1.0/24",
					Dest: "10.0.2.1-10.0.2.9", Proto: "tcp", Port: "22,80:85,https", Comment: "a # b"},
				{Type: "out", Action: "DROP", Proto: "udp", Port: "53"},
				{Type: "group", Action: "web"}}},
		Features: []string{"base_setup", "nvidia"}, BootstrapCAURL: "https://10.0.0.10:9000",
		ApplicationScript: "phoenix_hypervisor_lxc_vllm.sh",
		HealthCheck:       &HealthCheck{"curl -s --fail http://localhost:8000", 3, 5},
		HealthChecks: []HealthProbe{{"up", "up.sh", []string{"--port", "80"}},
			{"b.sh", "b.sh", []string{"a b", ""}}},
		LifecycleSnapshots: true, TemplateSnapshot: "final-form", Dependencies: []int{101, 1002},
		TraefikService: &TraefikService{
			Name: "granite.3", Port: 8000, Scheme: "https", Insecure: true, ServerName: "x.example"},
		Raw: raw,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c, want)
	}
}

func TestNothingSaid(t *testing.T) {
	c, err := ParseContainer(100, []byte(`{"name": "x", "clone_from_ctid": 900, "memory_mb": 16, "cores": 1,
		"storage_pool": "ab", "storage_size_gb": 1, "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "dhcp"},
		"mac_address": "", "gpu_assignment": "none", "lxc_options": []}`))
	if err != nil {
		t.Fatal(err)
	}
	c.Raw = ""
	want := &Container{CTID: 100, Name: "x", CloneFrom: 900,
		MemoryMB: 16, Cores: 1, StoragePool: "ab", StorageSizeGB: 1,
		Interfaces: []Interface{{Name: "eth0", Bridge: "vmbr0", IPv4: Addressing{Method: "dhcp"}}},
		GPUs:       []int{}, LXCOptions: []RawOption{}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c, want)
	}
}

func TestParseContainerMistake(t *testing.T) {
	_, err := ParseContainer(102, []byte(`{"name": 1}`))
	if err == nil || !strings.Contains(err.Error(), "container 102:1:10: name: must be a string, not a number") {
		t.Errorf("got %v", err)
	}
	_, err = ParseContainer(102, []byte(`[1]`))
	if err == nil || err.Error() != "container 102:1:1: must be an object, not a list" {
		t.Errorf("got %v", err)
	}
}

func TestNeeds(t *testing.T) {
	f := parse(t, base)
	needs, external := f.Needs(f.Containers[102])
	if !slices.Equal(needs, []int{103, 900}) || !slices.Equal(external, []int{1002}) {
		t.Errorf("got %v, %v", needs, external)
	}
	if f.Containers[103].TraefikService.Scheme != "https" {
		t.Error("the CA does not speak plain HTTP")
	}
}

func TestContainerTooLong(t *testing.T) {
	text := func(n int) string {
		tests := strings.Repeat(" ", 1<<20) + `"tests": "` + strings.Repeat("x", n) + `"`
		return strings.Replace(base, `"extra": 0`, tests, 1)
	}
	parse(t, text(MaxContainer-1000))

	// What an event has to escape is longer there.
	const want = "f.json:16:12: lxc_configs.103: is "
	escaped := strings.Replace(base, `"extra": 0`, `"tests": "`+strings.Repeat("\x7f", MaxContainer/6)+`"`, 1)
	if got := mistakes(t, escaped); len(got) != 1 || !strings.Contains(got[0], want) {
		t.Errorf("got %.200q", got)
	}
	if got := mistakes(t, text(MaxContainer)); len(got) != 1 || !strings.Contains(got[0], want) {
		t.Errorf("got %.200q", got)
	}
}

// Objects with many keys are looked through in another way.
func TestManyKeys(t *testing.T) {
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, `"vllm_%d": %d, `, i, i)
	}
	text := strings.Replace(base, `"extra": 0`, b.String()+`"cores": 2, "vllm_3": 0, "vllm_999": 0`, 1)
	if got := mistakes(t, text); len(got) != 3 {
		t.Errorf("got %q", got)
	}
	parse(t, strings.Replace(base, `"name": "Step-CA"`, b.String()+`"name": "Step-CA"`, 1))
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	f, err := Load("../../../scripts/phoenix_lxc_configs.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Containers) != 4 || len(f.Warnings) != 0 {
		t.Errorf("%d containers, warnings: %v", len(f.Containers), f.Warnings)
	}
	for id, c := range f.Containers {
		if c.Unprivileged == nil || !*c.Unprivileged {
			t.Errorf("%d is not unprivileged", id)
		}
		for _, m := range c.MountPoints {
			if !m.ReadOnly {
				t.Errorf("%d: %s is writable", id, m.ContainerPath)
			}
		}
		if c.StorageSizeGB != f.Containers[900].StorageSizeGB {
			t.Errorf("%d would have to be resized after it was cloned", id)
		}
	}
}

// What phx-plan accepts as an interface, the other programs take from its plan.
func TestPlanOfEveryInterface(t *testing.T) {
	text := strings.Replace(base, `"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.10/24"`,
		`"name": "0_eth", "bridge": "vmbr0", "ip": "10.0.0.10/24"`, 1)
	plan := parse(t, text).Plan("example.org")
	if err := plan.Check(); err != nil {
		t.Error(err)
	}
}

// The hash of these bytes is in the record of every container with an
// application script: with others, all scripts would run again.
func TestScriptInput(t *testing.T) {
	c, err := ParseContainer(103, []byte(`{
  "vllm_args": ["--x",  "<&>"], "unknown": {"b": 1, "a": 2.50},
  "name": "Step-CA", "template": "local:vztmpl/x.tar.zst", "memory_mb": 512, "swap_mb": 0, "cores": 1,
  "storage_pool": "local-lvm", "storage_size_gb": 16, "mac_address": "", "unprivileged": true, "start_at_boot": false,
  "network_config": {"name": "eth0",   "bridge": "vmbr0", "ip": "10.0.0.10/24"}, "boot_order": 0, "boot_delay": 5,
  "secondary_network_config": {"name": "eth1", "bridge": "vmbr1", "ip": "dhcp"}, "nameservers": [], "searchdomain": [],
  "pct_options": [], "lxc_options": [], "apparmor_profile": "unconfined", "apparmor_manages_nesting": true,
  "gpu_assignment": "none", "id_maps": [], "zfs_volumes": [], "volumes": [], "mount_points": [], "firewall": {},
  "is_template": false,
  "features": [], "bootstrap_ca_url": "https://10.0.0.10:9000", "application_script": "x.sh",
  "health_check": {"command": "true"}, "health_checks": [], "enable_lifecycle_snapshots": true,
  "template_snapshot_name": "final-form", "dependencies": [], "traefik_service": {"name": "ca", "port": 9000},
  "ostype": "debian", "arch": "amd64", "ssh_public_keys": [], "nodename": "pve1", "cpulimit": 1, "cpuunits": 200,
  "rootfs_options": {}, "timezone": "host", "tags": [], "description_text": "", "protection": false,
  "hookscript": "local:snippets/x.sh", "devices": [],
  "trigger_sync_on_completion": true, "ports": ["1:2"]
}`))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"is_template":false,"name":"Step-CA",` +
		`"network_config":{"name":"eth0","bridge":"vmbr0","ip":"10.0.0.10/24"},` +
		`"ports":["1:2"],"secondary_network_config":{"name":"eth1","bridge":"vmbr1","ip":"dhcp"},` +
		`"traefik_service":{"name":"ca","port":9000},"trigger_sync_on_completion":true,` +
		`"unknown":{"b":1,"a":2.50},"vllm_args":["--x","\u003c\u0026\u003e"]}`
	if got, err := c.ScriptInput(); err != nil || string(got) != want {
		t.Errorf("got  %s\nwant %s, %v", got, want, err)
	}
	c = &Container{CTID: 103, Raw: `{"network_configs": [{"name": "a"}]}`}
	if got, err := c.ScriptInput(); err != nil || string(got) != `{"network_configs":[{"name":"a"}]}` {
		t.Errorf("got %s, %v", got, err)
	}
	c = &Container{CTID: 103, Raw: `{"clone_from_ctid": 900}`}
	if got, err := c.ScriptInput(); err != nil || string(got) != "{}" {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestDirectoriesOfPackages(t *testing.T) {
	defer func(old func([]string) (map[string]string, error)) { packaged = old }(packaged)
	packaged = func(dirs []string) (map[string]string, error) {
		if len(dirs) != 1 {
			return nil, nil
		}
		return map[string]string{dirs[0]: "nginx:amd64"}, nil
	}
	path := filepath.Join(t.TempDir(), "f.json")
	text := strings.Replace(base, `"features": ["base_setup"]`, `"mount_points": [
		{"container_path": "/v", "host_path": "/var/www"},
		{"container_path": "/w", "host_path": "/var/www", "owner_uid": 33}]`, 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := LoadOn(path, &Host{})
	const want = ":39:41: lxc_configs.102.mount_points.1.host_path: /var/www belongs to the package nginx:amd64"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
	if _, err := Load(path); err != nil {
		t.Errorf("not on its host: %v", err)
	}
	if _, err = LoadOn(path, &Host{Guarded: []hostdir.Guarded{{Path: "/var/www/html", What: "a place"}}}); err == nil ||
		!strings.Contains(err.Error(), ":39:41: lxc_configs.102.mount_points.1.host_path: /var/www holds a place") {
		t.Errorf("%v", err)
	}
}

// A place comes from a stream that anybody may have written.
func TestPlaceIsChecked(t *testing.T) {
	good := Place{CTID: 103, IP: "10.0.0.10", MAC: "52:54:00:67:89:C3", Interface: "eth0"}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Place){
		"CTID":      func(p *Place) { p.CTID = 1 },
		"IP":        func(p *Place) { p.IP = "ca.example" },
		"zone":      func(p *Place) { p.IP = "fe80::1%eth0" },
		"also":      func(p *Place) { p.Also = []string{"10.0.0.11", "ca.example"} },
		"MAC":       func(p *Place) { p.MAC = "52:54:00:67:89:C3 dev lo" },
		"interface": func(p *Place) { p.Interface = "eth0 nud none" },
	} {
		p := good
		spoil(&p)
		if p.Check() == nil {
			t.Errorf("%s: %+v is accepted", name, p)
		}
	}
}
