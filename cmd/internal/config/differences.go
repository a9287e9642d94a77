package config

import "github.com/tidwall/gjson"

// A difference is what phx does on purpose otherwise than the shell scripts that
// it replaces, with a key of a container.
type difference struct {
	key   string
	value func(gjson.Result) bool // for which values; nil for all
	text  string                  // what these are, for people; "" for all

	before, now string // what the scripts did, and what phx does
}

var differences = []difference{
	{key: "is_template", before: "pct template at the end of its creation",
		now: "the last step, when all has been applied and is healthy; a later change of it is told, and not done"},
	{key: "swap_mb", before: "it was never read", now: "it is set"},
	{key: "storage_size_gb", before: "pct resize in every run, and a failed run with a smaller one",
		now: "pct resize where the disk is smaller; a smaller size is refused before anything is changed"},
	{key: "network_config", before: "the container was stopped, and net0 written anew",
		now: "what differs is set; what was added by hand stays"},
	{key: "secondary_network_config", before: "where it was missing, net1 was deleted",
		now: "an interface that the file does not have stays, unless phx has made it"},
	{key: "unprivileged", before: "pct set --unprivileged on clones, which pct refuses",
		now: "a clone has that of its source; another one is refused with the reason"},
	{key: "boot_order", before: "without it, an order without a number", now: "without it, the order stays"},
	{key: "lxc_options", before: "lines with blanks were torn apart, and some were added again in every run",
		now: "each is one line, once; those that were doubled are repaired"},
	{key: "apparmor_profile", value: func(v gjson.Result) bool { return v.Str == "unconfined" }, text: "unconfined",
		before: "no profile line, so that Proxmox VE's own profile stayed",
		now: "the same: AppArmor is off only where lxc_options have lxc.apparmor.profile=unconfined, too, " +
			"as such a line is there to be kept"},
	{key: "id_maps", before: "whatever it said, it was 0 100000 65536",
		now: "what it says; ids given as objects are cut out of that map, and the host must let root map them"},
	{key: "zfs_volumes", before: "known by the number of the mount point, so that one could be allocated again",
		now: "each is known by its mount point, allocated once, and never replaced by an empty one"},
	{key: "volumes", before: "known by the number of the mount point, so that one could be allocated again",
		now: "each is known by its mount point, allocated once, and never replaced by an empty one"},
	{key: "mount_points", before: "added again in every run",
		now: "each once; those that were doubled are taken away at the next start"},
	{key: "firewall", before: "rules were written, and no firewall was ever in force",
		now: "it is in force on containers that phx makes; on one that was there before only with " +
			"--enforce-firewall, and the run says what that would cut off"},
	{key: "features", before: "each script in every run, in a container that was stopped and started for it",
		now: "once, and again when the script or what it reads changes; on a container that phx has never worked " +
			"on, scripts of before are taken as done, unless --rerun is given"},
	{key: "application_script", before: "in every run, twice in 101",
		now: "once, and again when the script or what it reads changes; on a container that phx has never worked " +
			"on, one of before is taken as done, unless --rerun is given"},
	{key: "health_check", before: "the newest scripts did not read it",
		now: "it decides whether dependents go on; a program of the installation runs on the host"},
	{key: "health_checks", before: "a shell read script and args",
		now: "no shell reads them: args are words or a list"},
	{key: "enable_lifecycle_snapshots", before: "deleted and taken again in every run",
		now: "each taken once, and none is ever deleted"},
	{key: "template_snapshot_name", before: "the container was left running",
		now: "it is stopped when it is complete, unless start_at_boot is true"},
	{key: "dependencies", before: "one that existed counted as ready, broken or stopped",
		now: "it is brought into its state first; one that fails holds back what needs it"},
	{key: "traefik_service", before: "plain HTTP behind the proxy, and a route to nowhere with dhcp",
		now: "each name has a certificate of the CA, every hop is verified, and what has no fixed address is not " +
			"served"},
}

// differs returns how phx differs from the scripts before in a key with a value,
// or nil.
func differs(key string, v gjson.Result) *difference {
	for i := range differences {
		if d := &differences[i]; d.key == key && (d.value == nil || d.value(v)) {
			return d
		}
	}
	return nil
}
