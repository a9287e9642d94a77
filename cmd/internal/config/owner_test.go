package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDirectoriesOfTheSystem(t *testing.T) {
	for _, dir := range strings.Fields(`/ /etc /etc/ssl /etc/pve/priv /usr /usr/share/x /usr/local /usr/local/bin /usr/local/etc/x /bin /sbin /lib /lib/x /lib64
		/boot /boot/grub /dev /dev/shm/x /proc /sys/fs /run /run/lock /var /var/lib /var/log /var/lib/dpkg /var/lib/dpkg/info /var/lib/lxc/103
		/var/spool/cron /root /root/.ssh /home /opt /srv /mnt /mnt/pve /media /tmp /var/tmp /var/run/x`) {
		if systemDirectory(dir) == "" {
			t.Errorf("%s could be given away", dir)
		}
	}
	for _, dir := range strings.Fields(`/srv/x /opt/app /home/user/data /mnt/data /mnt/pve/quickOS/lxc-persistent-data/101/logs /media/usb/x /var/lib/app-data
		/var/www /var/log/app /tmp/x /data /etcetera /library /usr/local/phoenix_hypervisor/persistent-storage/x /usr/localhost/x`) {
		why := systemDirectory(dir)
		if strings.HasPrefix(dir, "/usr/localhost") {
			if why == "" {
				t.Errorf("%s is in /usr", dir)
			}
		} else if why != "" {
			t.Errorf("%s is data: %s", dir, why)
		}
	}
}

func TestGuardedPlaces(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"etc", "scripts", "pve", "store/images/103", "store/data"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("store", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	storage := "dir: local\n\tpath " + dir + "/link\n\tcontent images\n\nnfs: quickOS\n\tserver 10.0.0.5\n\texport /x\n\nzfspool: tank\n\tpool tank\n\tmountpoint /tank\n"
	if err := os.WriteFile(filepath.Join(dir, "pve/storage.cfg"), []byte(storage), 0o644); err != nil {
		t.Fatal(err)
	}
	guarded := GuardedPlaces(filepath.Join(dir, "etc/f.json"), filepath.Join(dir, "scripts"), filepath.Join(dir, "pve"))
	for path, want := range map[string]string{
		dir:                                    " holds ",
		dir + "/etc":                           "holds the configuration file, ",
		dir + "/scripts":                       "holds the scripts",
		dir + "/scripts/x":                     "belongs to the scripts, ",
		dir + "/pve/priv":                      "belongs to the configuration of Proxmox VE, ",
		dir + "/store":                         "holds the storage local",
		dir + "/store/images/103":              "belongs to what the storage local keeps, ",
		"/mnt/pve/quickOS":                     "holds the storage quickOS",
		"/mnt/pve/quickOS/private":             "holds what the storage quickOS keeps",
		"/tank":                                "holds the storage tank",
		filepath.Dir(os.Args[0]):               "holds the programs of phx",
		dir + "/etc/data":                      "",
		dir + "/store/data":                    "",
		dir + "/stor":                          "",
		"/mnt/pve/quickOS/lxc-persistent-data": "",
		"/tank/app":                            "",
	} {
		err := CheckOwner(path, guarded)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// The same directory by another name, as by a bind mount.
func TestDirectoryOfTheSystemByAnotherName(t *testing.T) {
	if err := CheckOwner("/proc/self/root/srv", nil); err == nil {
		t.Error("/srv could be given away")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/srv", link); err != nil {
		t.Fatal(err)
	}
	if err := CheckOwner(link, nil); err == nil || !strings.Contains(err.Error(), link+" is /srv") {
		t.Errorf("%v", err)
	}
}

func TestDirectoriesOfPackages(t *testing.T) {
	old := dpkgInfo
	defer func() { dpkgInfo = old }()
	dpkgInfo = t.TempDir()
	if err := os.WriteFile(filepath.Join(dpkgInfo, "nginx:amd64.list"), []byte("/.\n/var\n/var/www\n/var/www/html/index.html\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	owners, err := Packaged([]string{"/var/www", "/var/www/html", "/www"})
	if err != nil || len(owners) != 1 || owners["/var/www"] != "nginx:amd64" {
		t.Errorf("%v, %v", owners, err)
	}
	path := filepath.Join(t.TempDir(), "f.json")
	text := strings.Replace(base, `"features": ["base_setup"]`, `"mount_points": [{"container_path": "/w", "host_path": "/var/www", "owner_uid": 33}]`, 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = LoadOn(path, []Guarded{})
	if err == nil || !strings.Contains(err.Error(), ":37:62: lxc_configs.102.mount_points.0.host_path: /var/www belongs to the package nginx:amd64") {
		t.Errorf("%v", err)
	}
	if _, err := Load(path); err != nil {
		t.Errorf("not on its host: %v", err)
	}
}
