package main

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// goodValues are valid values by option name, or else by type.
var goodValues = map[string]string{
	"arch": "arm64", "cmode": "shell", "delete": "mp0,net1", "dev": "/dev/null", "disk": "mp255",
	"entrypoint": "/sbin/init",
	"env":        "A=b", "features": "nesting=1,mount=nfs;cifs", "hookscript": "local:snippets/x.sh",
	"hostname": "Copy-Cuda12.8",
	"lock":     "backup", "mp": "/srv/data,mp=/mnt/data,ro=1", "nameserver": "10.0.0.53 fe80::1%eth0,1.1.1.1",
	"net": "name=eth0,bridge=vmbr0,ip=10.0.0.2/24,gw=10.0.0.1," +
		"hwaddr=bc:24:11:aa:bb:cc,tag=7,trunks=1;2,ip6=auto,rate=1.5",
	"ostype": "debian", "password": "secret", "pool": "a/b", "revert": "memory",
	"rootfs":       "lab:8,mountoptions=noatime;nodev",
	"searchdomain": "phoenix.local", "size": "+1.5G", "snapname": "base-snapshot_2", "snapshot": "s1",
	"startup": "order=3,up=30,down=60",
	"storage": "lab", "tags": "base;phx", "target": "node-1", "timezone": "host", "unused": "lab:1/vm-1-disk-0.raw",
	"boolean": "yes", "integer": "100", "number": "0.5", "string": "text", "tty": "6",
}

// badValues are values that the real pct refuses, by option name, format or type.
var badValues = map[string][]string{
	"boolean": {"2", "maybe"}, "integer": {"abc", "1.5", ""}, "number": {"x", "1,5"},
	"arch": {"sparc"}, "cmode": {"x"}, "disk": {"mp256", "rootfs1"}, "lock": {"mine"}, "ostype": {"windows"},
	"cores": {"0", "8193"}, "memory": {"15"}, "tty": {"7"}, "swap": {"-1"}, "timeout": {"-1"},
	"cpulimit": {"-1", "8193"},
	"vmid":     {"99", "0100", "1000000000"}, "newid": {"99", "1000000000"},
	"delete": {"1bad"}, "revert": {"-"}, "digest": {strings.Repeat("a", 41)},
	"dev": {"null", "/dev/../x", "mode=9", "/dev/null,mode=8888"}, "entrypoint": {"a\x01b"}, "env": {"novalue"},
	"features": {"nest=1", "nesting=2", "nesting", "mount=a/b"}, "hookscript": {"x.sh"},
	"hostname": {"under_score", "-a", "a-", "a..b"},
	"mp": {"/srv", "mp=/x", "/srv/../x,mp=/y", "/srv,mp=/a/./b", "/srv,mp=/x,ro=7", "/srv,mp=/x,foo=1",
		"/srv,mp=/x,mountoptions=exec"},
	"nameserver": {"dns.example"}, "searchdomain": {"a_b"},
	"ostemplate": {strings.Repeat("a", 256)}, "password": {"1234"},
	"net": {"", "bridge=vmbr0", "name=eth0,ip=10.0.0.2", "name=eth0,ip=10.0.0.2/7",
		"name=eth0,hwaddr=01:24:11:aa:bb:cc", "name=eth0,mtu=63",
		"name=eth0,tag=4095", "name=eth0,gw=10.0.0", "name=eth0,ip6=10.0.0.2/24", "name=eth0,type=phys", "name=e th",
		"eth0", "name=eth0,gw6=1.1.1.1",
		"name=eth0,firewall=on,firewall=off"},
	"pool": {"a b"}, "rootfs": {"size=8G", "lab:8,size=8GB", "lab:8,mp=/x"}, "size": {"1GB", "-1", "G", "1.G"},
	"snapname": {"1bad", "a", strings.Repeat("a", 41)}, "snapshot": {"1bad"}, "startup": {"order=x", "later=1"},
	"storage": {"x", "1x", "a/b"}, "tags": {"a!b", "-x", "ä"}, "target": {"a_b"}, "timezone": {"Mars/Base"},
	"unused": {"/x", "x=1"},
}

func stem(name string) string { return strings.TrimRight(name, "0123456789") }

// bareArgs are valid positional arguments of a command, name replaced by value.
func bareArgs(c *command, name, value string) []string {
	var args []string
	for i, a := range c.Args {
		v := map[string]string{"vmid": "100", "newid": "101", "disk": "rootfs", "size": "8G", "snapname": "s1"}[a]
		switch {
		case a == name:
			v = value
		case a == "extra-args":
			args = append(args, "--")
			v = "true"
		case v == "":
			v = "x" + strconv.Itoa(i)
		}
		args = append(args, v)
	}
	return args
}

// TestTable goes over the whole option table: each sub-command takes each of its options with a
// valid value, refuses bad ones, and refuses every option that only others have.
func TestTable(t *testing.T) {
	every := make(map[string]bool)
	for _, c := range table().Commands {
		for name := range c.options {
			every[name] = true
		}
	}
	n := 0
	for _, cname := range slices.Sorted(maps.Keys(table().Commands)) {
		c := table().Commands[cname]
		if handlers[cname] == nil {
			t.Errorf("%s: no handler", cname)
		}
		parse := func(name, value string) error {
			n++
			args := bareArgs(c, name, value)
			if !slices.Contains(c.Args, name) {
				args = append([]string{"--" + name, value}, args...)
				if o := c.options[name]; o != nil && o.Requires != "" {
					args = append([]string{"--" + o.Requires, "1"}, args...)
				}
			}
			_, _, err := c.parse(args)
			return err
		}
		for name, o := range c.options {
			if o.Type == "array" {
				continue
			}
			good, ok := goodValues[stem(name)]
			if !ok {
				good = goodValues[o.Type]
			}
			if err := parse(name, good); err != nil {
				t.Errorf("pct %s refuses %s %q: %v", cname, name, good, err)
			}
			var bad []string
			for k, values := range badValues {
				if k == o.Type || k == stem(name) {
					bad = append(bad, values...)
				}
			}
			if o.MaxLength > 0 {
				bad = append(bad, strings.Repeat("x", o.MaxLength+1))
			}
			if len(bad) == 0 && (o.Type != "string" || o.Format != "" || o.Pattern != "" || o.Enum != nil ||
				o.Properties != "" || o.MinLength > 0) {
				t.Errorf("pct %s: no value of %s was refused", cname, name)
			}
			for _, v := range bad {
				if err := parse(name, v); err == nil {
					t.Errorf("pct %s takes %s %q", cname, name, v)
				}
			}
		}
		for name := range every {
			if c.options[name] != nil {
				continue
			}
			abbreviates := 0
			for own := range c.options {
				if strings.HasPrefix(own, name) {
					abbreviates++
				}
			}
			if abbreviates == 1 {
				continue // as start is of set's startup: pct takes it for that
			}
			_, _, err := c.parse(append(bareArgs(c, "", ""), "--"+name, "1"))
			if c.options["extra-args"] != nil {
				_, _, err = c.parse(append([]string{"--" + name, "1"}, bareArgs(c, "", "")...))
			}
			n++
			var p *paramError
			if !errors.As(err, &p) || p.verdict != "unable to parse option" {
				t.Errorf("pct %s takes --%s: %v", cname, name, err)
			}
		}
	}
	t.Logf("%d command lines", n)
}

func TestParse(t *testing.T) {
	tests := []struct {
		line string
		want string // parsed parameters, sorted, or the error
	}{
		{"set 100 --memory 512", "memory=512 vmid=100"},
		{"set -memory 512 100", "memory=512 vmid=100"},
		{"set 100 --memory=512", "memory=512 vmid=100"},
		{"set 100 -memory=512", "memory=512 vmid=100"},
		{"set 100 --mem 512", "memory=512 vmid=100"},
		{"set 100 --MEM 512", "memory=512 vmid=100"},
		{"set 100 --onboot", "onboot=1 vmid=100"},
		{"set 100 --onboot --memory 16", "memory=16 onboot=1 vmid=100"},
		{"set 100 --onboot off", "onboot=0 vmid=100"},
		{"set --onboot=1 100", "onboot=1 vmid=100"},
		{"set 100 --delete mp0 --delete mp1", "delete=mp0,mp1 vmid=100"},
		{"set 100 --mp255 /x,mp=/y --net31 name=a", "mp255=/x,mp=/y net31=name=a vmid=100"},
		{"clone 741 742 --full", "full=1 newid=742 vmid=741"},
		{"exec --keep-env 0 100 -- ls -la", "keep-env=0 vmid=100 | ls -la"},
		{"exec 100 ls", "vmid=100 | ls"},
		{"exec 100 --", "vmid=100 |"},
		{"clone --full 741 742", "400 not enough arguments\npct clone <vmid> <newid> [OPTIONS]"},
		{"status --foo 100", "Unknown option: foo\n400 unable to parse option\npct status <vmid> [OPTIONS]"},
		{"exec 100 ls -la", "Unknown option: la\n400 unable to parse option\npct exec <vmid> [<extra-args>] [OPTIONS]"},
		{"resize 100 rootfs -1G",
			"Unknown option: 1g\n400 unable to parse option\npct resize <vmid> <disk> <size> [OPTIONS]"},
		{"set 100 --memory",
			"Option memory requires an argument\n400 unable to parse option\npct set <vmid> [OPTIONS]"},
		{"set 100 --memory=",
			"Option memory requires an argument\n400 unable to parse option\npct set <vmid> [OPTIONS]"},
		{"set 100 --h a",
			"Option h is ambiguous (hookscript, hostname)\n400 unable to parse option\n" +
				"pct set <vmid> [OPTIONS]"},
		{"set 100 --lxc.apparmor.profile x",
			"Unknown option: lxc.apparmor.profile\n400 unable to parse option\npct set <vmid> [OPTIONS]"},
		{"status", "400 not enough arguments\npct status <vmid> [OPTIONS]"},
		{"unlock 100 200", "400 too many arguments\npct unlock <vmid>"},
		{"list x", "400 too many arguments\npct list"},
		{"set 100 --onboot maybe", "400 unable to parse boolean option\npct set <vmid> [OPTIONS]"},
		{"set 100 --memory abc --cores 9000",
			"400 Parameter verification failed.\ncores: value must have a maximum value of 8192\n" +
				"memory: type check ('integer') failed - got 'abc'\npct set <vmid> [OPTIONS]"},
		{"status 99",
			"400 Parameter verification failed.\n" +
				"vmid: invalid format - value does not look like a valid VM ID\n\npct status <vmid> [OPTIONS]"},
		{"set 100 --features nest=1",
			"400 Parameter verification failed.\nfeatures: invalid format - format error\n" +
				"features.nest: property is not defined in schema and the schema does not allow additional " +
				"properties\n\npct set <vmid> [OPTIONS]"},
		{"set 100 --net0 bridge=vmbr0",
			"400 Parameter verification failed.\nnet0: invalid format - format error\n" +
				"net0.name: property is missing and it is not optional\n\npct set <vmid> [OPTIONS]"},
		{"set 100 --ostype windows",
			"400 Parameter verification failed.\n" +
				"ostype: value 'windows' does not have a value in the enumeration 'debian, devuan, ubuntu, " +
				"centos, fedora, opensuse, archlinux, alpine, gentoo, nixos, unmanaged'\n" +
				"pct set <vmid> [OPTIONS]"},
		{"create 100 t --unique",
			"400 Parameter verification failed.\n" +
				"restore: missing property - 'unique' requires this property\n" +
				"pct create <vmid> <ostemplate> [OPTIONS]"},
	}
	for _, tt := range tests {
		args := strings.Fields(tt.line)
		c := table().Commands[args[0]]
		p, extra, err := c.parse(args[1:])
		var got []string
		for _, k := range slices.Sorted(maps.Keys(p)) {
			got = append(got, k+"="+p[k])
		}
		if c.options["extra-args"] != nil {
			got = append(append(got, "|"), extra...)
		}
		text := strings.Join(got, " ")
		if err != nil {
			text = err.Error()
		}
		if text != tt.want {
			t.Errorf("pct %s\n got %s\nwant %s", tt.line, text, tt.want)
		}
	}
}

func TestCanonicalForms(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"ip=10.0.0.2/24,name=eth0,hwaddr=BC:24:11:aa:bb:cc,firewall=yes,bridge=vmbr0",
			"name=eth0,bridge=vmbr0,firewall=1,hwaddr=BC:24:11:aa:bb:cc,ip=10.0.0.2/24,type=veth"},
		{"trunks=5;20,ip6=fd00::0a/64,gw6=fe80::1,name=eth0,hwaddr=BC:24:11:aa:bb:cc,mtu=1400,rate=1.50,tag=020," +
			"link_down=no,host-managed=on",
			"name=eth0,gw6=fe80::1,host-managed=1,hwaddr=BC:24:11:aa:bb:cc,ip6=fd00::0a/64,link_down=0,mtu=1400," +
				"rate=1.50,tag=020,trunks=5;20,type=veth"},
	} {
		got, err := canonicalNet(tt.in, false)
		if err != nil || got != tt.want {
			t.Errorf("net %q = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	got, err := canonicalNet("name=eth0", false)
	if err != nil || !compiled(`^name=eth0,hwaddr=BC:24:11(?::[0-9A-F]{2}){3},type=veth$`).MatchString(got) {
		t.Errorf("net without address = %q, %v", got, err)
	}
	m, err := parseMount("mp0", "ro=on,mp=/mnt/shared,/srv/host dir,backup=no")
	if want := "/srv/host dir,mp=/mnt/shared,backup=0,ro=1"; err != nil || m.String() != want {
		t.Errorf("mount = %q, %v, want %q", m, err, want)
	}
	if got, want := uniqueTags("Phx,base; base phx"), "base;phx"; got != want {
		t.Errorf("tags = %q, want %q", got, want)
	}
	for in, want := range map[string]string{"8G": "8G", "1.5G": "1536M", "5": "5", "1024": "1K", "2048M": "2G",
		"1T": "1T"} {
		if got := formatSize(parseSize(in)); got != want {
			t.Errorf("size %s = %s, want %s", in, got, want)
		}
	}
}
