// Package configtest makes configurations for tests and benchmarks: without
// mistakes, of any number of containers, each of which has the next address.
package configtest

import (
	"bytes"
	"fmt"
)

// Template has the keys of a container that is made from a template and that
// others can be cloned from.
const Template = `"template": "local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst", ` +
	`"template_snapshot_name": "final-form"`

// Container returns a member of lxc_configs: container id with a name and
// addresses of its own on the storage lab, and with the extra members.
func Container(id int, extra string) string {
	return fmt.Sprintf(`    "%d": {
      "name": "c%d",
      "memory_mb": 512,
      "cores": 1,
      "storage_pool": "lab",
      "storage_size_gb": 8,
      "network_config": {
        "name": "eth0",
        "bridge": "vmbr0",
        "ip": "10.%d.%d.%d/8",
        "gw": "10.0.0.1"
      },
      "mac_address": "BC:24:11:%02X:%02X:%02X",
      "unprivileged": true,
      "features": ["base_setup"],
      %s
    }`, id, id, id>>16+1, id>>8&255, id&255, id>>16&255, id>>8&255, id&255, extra)
}

// First is the id of the first container of a [File].
const First = 1000

// File returns a configuration of n containers. In the shape "chain" each
// depends on the one before, in the shape "fan" all are clones of the first.
func File(n int, shape string) []byte {
	var b bytes.Buffer
	b.WriteString("{\n  \"lxc_configs\": {\n" + Container(First, Template))
	for id := First + 1; id < First+n; id++ {
		extra := fmt.Sprintf(`"clone_from_ctid": "%d"`, First)
		if shape == "chain" {
			extra = fmt.Sprintf(`%s, "dependencies": ["%d"]`, Template, id-1)
		}
		b.WriteString(",\n" + Container(id, extra))
	}
	b.WriteString("\n  }\n}\n")
	return b.Bytes()
}
