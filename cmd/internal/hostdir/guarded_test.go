package hostdir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDirectoriesOfTheSystem(t *testing.T) {
	for _, dir := range strings.Fields(`/ /etc /etc/ssl /etc/pve/priv /usr /usr/share/x /usr/local /usr/local/bin
		/usr/local/etc/x /bin /sbin /lib /lib/x /lib64 /boot /boot/grub /dev /dev/shm/x /proc /sys/fs /run /run/lock
		/var /var/lib /var/log /var/lib/dpkg /var/lib/dpkg/info /var/lib/lxc/103 /var/spool/cron
		/root /root/.ssh /home /opt /srv /mnt /mnt/pve /media /tmp /var/tmp /var/run/x`) {
		if systemDirectory(dir) == "" {
			t.Errorf("%s could be given away", dir)
		}
	}
	for _, dir := range strings.Fields(`/srv/x /opt/app /home/user/data /mnt/data /media/usb/x /var/lib/app-data
		/mnt/pve/quickOS/lxc-persistent-data/101/logs /var/www /var/log/app /tmp/x /data /etcetera /library
		/usr/local/phoenix_hypervisor/persistent-storage/x /usr/localhost/x`) {
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
	check := OwnerCheck(GuardedPlaces(filepath.Join(dir, "etc/f.json"), filepath.Join(dir, "pve"),
		[]string{filepath.Join(dir, "scripts")}, map[string]string{
			"local": filepath.Join(dir, "link"), "quickOS": "/mnt/pve/quickOS", "tank": "/tank"}))
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
		err := check(path)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// The same directory by another name, as by a bind mount.
func TestDirectoryOfTheSystemByAnotherName(t *testing.T) {
	if err := OwnerCheck(nil)("/proc/self/root/srv"); err == nil {
		t.Error("/srv could be given away")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/srv", link); err != nil {
		t.Fatal(err)
	}
	if err := OwnerCheck(nil)(link); err == nil || !strings.Contains(err.Error(), link+" is /srv") {
		t.Errorf("%v", err)
	}
}

func TestDirectoriesOfPackages(t *testing.T) {
	old := dpkgInfo
	defer func() { dpkgInfo = old }()
	dpkgInfo = t.TempDir()
	if err := os.WriteFile(filepath.Join(dpkgInfo, "nginx:amd64.list"),
		[]byte("/.\n/var\n/var/www\n/var/www/html/index.html\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	owners, err := Packaged([]string{"/var/www", "/var/www/html", "/www"})
	if err != nil || len(owners) != 1 || owners["/var/www"] != "nginx:amd64" {
		t.Errorf("%v, %v", owners, err)
	}
}
