package main

import (
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

const wanted = `{
	"name": "Nginx-Phoenix", "clone_from_ctid": "900", "memory_mb": 1024, "swap_mb": 256, "cores": 2,
	"storage_pool": "lab", "storage_size_gb": 8, "unprivileged": true,
	"start_at_boot": true, "boot_order": 3, "boot_delay": 5,
	"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.153/24",
		"gw": "10.0.0.1", "nameservers": "10.0.0.53 1.1.1.1"},
	"mac_address": "52:54:00:67:89:A1", "pct_options": ["nesting=1", "keyctl=1"],
	"cpulimit": 1.5, "cpuunits": 50, "ostype": "debian", "arch": "amd64", "timezone": "host", "protection": false,
	"tags": ["phx", "By-Hand"], "hookscript": "local:snippets/a.sh", "devices": [{"path": "/dev/kvm", "mode": "0666"}],
	"rootfs_options": {"mountoptions": ["nodev", "noatime"], "replicate": true},
	"mount_points": [{"host_path": "/srv/ssl", "container_path": "/etc/nginx/ssl", "read_only": true}]
}`

func container(t *testing.T, text string) *config.Container {
	t.Helper()
	c, err := config.ParseContainer(101, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func list(s *pve.Settings) string { return strings.Join(s.Changes(), "\n") }

func TestSettingsOfNewContainer(t *testing.T) {
	want := `hostname Nginx-Phoenix
memory 1024
swap 256
cores 2
cpulimit 1.5
cpuunits 50
onboot 1
startup order=3,up=5,down=5
net0 name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip=10.0.0.153/24,gw=10.0.0.1
nameserver 10.0.0.53 1.1.1.1
features nesting=1,keyctl=1
ostype debian
arch amd64
timezone host
tags phx;by-hand
hookscript local:snippets/a.sh
dev0 /dev/kvm,mode=0666
mp0 /srv/ssl,mp=/etc/nginx/ssl,ro=1`
	if got := list(settings(container(t, wanted), &pve.Conf{}, nil, nil)); got != want {
		t.Errorf("settings\n%s\nwant\n%s", got, want)
	}
}

// What Proxmox stores is not what it was given: sub-keys are reordered and
// added, booleans and lists rewritten.
const stored = `arch: amd64
cores: 2
cpulimit: 1.50
cpuunits: 50
dev4: mode=0666,path=/dev/kvm,deny-write=0
features: keyctl=on,nesting=1,fuse=1
hookscript: local:snippets/a.sh
hostname: Nginx-Phoenix
memory: 1024
mp0: lab:101/vm-101-disk-1.raw,mp=/data,size=1G
mp3: /srv/ssl,mp=/etc/nginx/ssl,ro=yes
nameserver: 10.0.0.53,1.1.1.1
net0: name=eth0,bridge=vmbr0,firewall=1,gw=10.0.0.1,hwaddr=52:54:00:67:89:a1,ip=10.0.0.153/24,type=veth
onboot: yes
ostype: debian
protection: 0
rootfs: lab:101/vm-101-disk-0.raw,mountoptions=noatime;nodev,size=8G
startup: order=3,up=5,down=5
swap: 256
tags: by-hand;phx
timezone: host
unprivileged: 1
`

func TestNothingDiffersFromWhatProxmoxStores(t *testing.T) {
	if got := list(settings(container(t, wanted), pve.ParseConf([]byte(stored)), nil, nil)); got != "" {
		t.Errorf("settings\n%s", got)
	}
}

func TestOneDifference(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"memory", "memory: 1024", "memory: 512", "memory 1024"},
		{"cores absent", "cores: 2\n", "", "cores 2"},
		{"name", "hostname: Nginx-Phoenix", "hostname: nginx-phoenix", "hostname Nginx-Phoenix"},
		{"boot", "onboot: yes", "onboot: 0", "onboot 1"},
		{"startup keeps the rest", "order=3,up=5,down=5", "order=1,up=5,down=5", "startup order=3,up=5,down=5"},
		{"address keeps what was added by hand", "10.0.0.153/24,", "10.0.0.99/24,",
			"net0 name=eth0,bridge=vmbr0,firewall=1,gw=10.0.0.1,hwaddr=52:54:00:67:89:a1,ip=10.0.0.153/24,type=veth"},
		{"address in IPv6 stays", "10.0.0.153/24,", "10.0.0.99/24,ip6=FD00::9/64,tag=7,",
			"net0 name=eth0,bridge=vmbr0,firewall=1,gw=10.0.0.1,hwaddr=52:54:00:67:89:a1,ip=10.0.0.153/24," +
				"ip6=FD00::9/64,tag=7,type=veth"},
		{"MAC", "52:54:00:67:89:a1", "BC:24:11:00:00:01",
			"net0 name=eth0,bridge=vmbr0,firewall=1,gw=10.0.0.1,hwaddr=52:54:00:67:89:A1,ip=10.0.0.153/24,type=veth"},
		{"features keep what was added by hand", "keyctl=on,nesting=1", "nesting=0",
			"features nesting=1,fuse=1,keyctl=1"},
		{"nameservers", "10.0.0.53,1.1.1.1", "10.0.0.53", "nameserver 10.0.0.53 1.1.1.1"},
		{"mount point writable", ",ro=yes", "", "mp3 /srv/ssl,mp=/etc/nginx/ssl,ro=1"},
		{"mount point elsewhere", "mp3: /srv/ssl,", "mp3: /srv/old,", "mp3 /srv/ssl,mp=/etc/nginx/ssl,ro=yes"},
		{"mount point missing", "mp3: /srv/ssl,mp=/etc/nginx/ssl,ro=yes\n", "", "mp1 /srv/ssl,mp=/etc/nginx/ssl,ro=1"},
		{"CPU limit", "cpulimit: 1.50", "cpulimit: 1", "cpulimit 1.5"},
		{"CPU weight", "cpuunits: 50\n", "", "cpuunits 50"},
		{"type of system", "ostype: debian", "ostype: unmanaged", "ostype debian"},
		{"time zone", "timezone: host\n", "", "timezone host"},
		{"tags", "tags: by-hand;phx", "tags: phx", "tags phx;by-hand"},
		{"protection", "protection: 0", "protection: 1", "protection 0"},
		{"hook script", "hookscript: local:snippets/a.sh", "hookscript: local:snippets/b.sh",
			"hookscript local:snippets/a.sh"},
		{"mode of a device", "mode=0666,path=/dev/kvm", "mode=0660,path=/dev/kvm",
			"dev4 mode=0666,/dev/kvm,deny-write=0"},
		{"owner of a device that the file does not have", "dev4: mode", "dev4: uid=7,mode",
			"dev4 mode=0666,/dev/kvm,deny-write=0"},
		{"device missing", "dev4: mode=0666,path=/dev/kvm,deny-write=0\n", "", "dev0 /dev/kvm,mode=0666"},
		{"option of the root disk", ",mountoptions=noatime;nodev", ",mountoptions=nodev",
			"rootfs lab:101/vm-101-disk-0.raw,mountoptions=nodev;noatime,size=8G"},
		{"root disk that is not replicated", "size=8G", "size=8G,replicate=0",
			"rootfs lab:101/vm-101-disk-0.raw,mountoptions=noatime;nodev,size=8G,replicate=1"},
		{"already pending", "unprivileged: 1\n", "unprivileged: 1\n\n[pve:pending]\nmemory: 512\n", "memory 1024"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(stored, tt.old, tt.new, 1)
			if text == stored {
				t.Fatal("the test changes nothing")
			}
			conf := pve.ParseConf([]byte(text))
			got := settings(container(t, wanted), conf, nil, nil)
			if list(got) != tt.want {
				t.Fatalf("settings\n%s\nwant\n%s", list(got), tt.want)
			}
			conf.Pending = nil
			got.Apply(conf, false)
			if again := list(settings(container(t, wanted), conf, nil, nil)); again != "" {
				t.Errorf("a second run would set\n%s", again)
			}
		})
	}
}

func TestMACIsKeptWhereNoneIsConfigured(t *testing.T) {
	c := container(t, strings.Replace(wanted, `"mac_address": "52:54:00:67:89:A1", `, "", 1))
	conf := pve.ParseConf([]byte(strings.Replace(stored, "10.0.0.153/24", "10.0.0.9/24", 1)))
	if got := list(settings(c, conf, nil, nil)); !strings.Contains(got, "hwaddr=52:54:00:67:89:a1") {
		t.Errorf("settings\n%s", got)
	}
}

// A volume that is recorded as having been there is not allocated again, also
// by a record of the time when hashes in lists were shorter.
func TestLostVolumeIsNotAllocatedAgain(t *testing.T) {
	c := containerWith(t, `"volumes": [{"pool": "lab", "size_gb": 2, "mount_point": "/data"}]`)
	conf := pve.ParseConf([]byte("rootfs: lab:101/vm-101-disk-0.raw,size=8G\n"))
	if err := refusals(c, conf, nil); err != nil {
		t.Errorf("a new volume: %v", err)
	}
	for _, list := range []string{pve.HashList([]string{"/data"}), "bd4741", "ffffff,bd4741"} {
		err := refusals(c, conf, pve.Record{pve.VolumesWord: list}.Hashes(pve.VolumesWord))
		if err == nil || !strings.Contains(err.Error(), "the volume at /data is not mounted any more") {
			t.Errorf("%s: %v", list, err)
		}
	}
}

// What a record of the time of shorter hashes knows as phx's own is removed once
// it is not configured any more; all else stays.
func TestRecordWithShorterHashes(t *testing.T) {
	c := containerWith(t, `"firewall": {"enabled": true}`)
	before := pve.Record{pve.MountsWord: "6d6940", pve.FirewallWord: "f10ce1"}
	conf := pve.ParseConf([]byte("mp0: /srv/old,mp=/old\nmp1: /srv/other,mp=/other\n"))
	got := list(settings(c, conf, nil, before))
	if !strings.Contains(got, "mp0 removed: ") || strings.Contains(got, "mp1") {
		t.Errorf("settings\n%s", got)
	}
	const rules = "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\n"
	text := []byte(rules + "IN ACCEPT -p tcp -dport 22\nIN ACCEPT -p tcp -dport 23\n")
	after := string(pveFirewall(c.Firewall).Rewrite(text, before.Hashes(pve.FirewallWord)))
	if want := rules + "IN ACCEPT -p tcp -dport 23\n"; after != want {
		t.Errorf("firewall\n%s\nwant\n%s", after, want)
	}
}
