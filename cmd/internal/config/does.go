package config

// does has what phx does with each key of a container, in a line or two for
// people.
var does = map[string]string{
	"name":            "host name: pct set --hostname",
	"template":        "what a new container is made from: pct create; a later change is ignored",
	"clone_from_ctid": "what a new container is cloned from: pct clone; a later change is ignored",
	"memory_mb":       "pct set --memory, in a running container too",
	"swap_mb":         "pct set --swap, in a running container too",
	"cores":           "pct set --cores, in a running container too",
	"storage_pool":    "storage of a new container's root disk; another one later is refused",
	"storage_size_gb": "size of the root disk: pct resize; a smaller one is refused",
	"network_config":  "net0: pct set --net0, in a running container too; name servers from its next start",
	"mac_address":     "hwaddr of net0",
	"unprivileged":    "of a new container, true without; a change is refused",
	"start_at_boot":   "pct set --onboot",
	"boot_order":      "order of pct set --startup, and of phx's own work",
	"boot_delay":      "up and down of pct set --startup",
	"pct_options":     "pct set --features, from the next start",
	"lxc_options":     "raw lines of the conf file, each once, from the next start",
	"apparmor_profile": "profile from etc/apparmor, loaded on the host and named by a raw line, from the next start; " +
		"generated and unconfined: none",
	"apparmor_manages_nesting": "raw lines that allow nesting, beside a profile of its own",
	"gpu_assignment":           "raw lines for these NVIDIA devices, from the next start",
	"id_maps":                  "raw lines lxc.idmap in place of all others, from the next start",
	"zfs_volumes":              "mount points mpN with a new volume each; they grow, and are never replaced",
	"volumes":                  "the same as zfs_volumes",
	"mount_points":             "mount points mpN of host directories, which are made where they are missing",
	"firewall":                 "rules and options in /etc/pve/firewall",
	"features":                 "feature scripts on the host, once, and again when they or what they read change",
	"bootstrap_ca_url":         "second argument of the feature scripts",
	"application_script": "script in the container, once, and again when it or what it reads changes; " +
		"phx-nginx and phx-traefik do the work of …_101.sh and …_102.sh",
	"health_check":               "command in the container, in every run; while it fails, what depends on it waits",
	"health_checks":              "scripts on the host, in every run; while one fails, what depends on it waits",
	"enable_lifecycle_snapshots": "snapshots pre-configured and final-form, each taken once",
	"template_snapshot_name":     "snapshot of the complete container, for clones; it is then stopped, unless start_at_boot",
	"dependencies":               "these are brought up before it; one that the file does not have has to run",
	"traefik_service":            "https://NAME.DOMAIN through gateway and proxy, with a certificate of its own",
}
