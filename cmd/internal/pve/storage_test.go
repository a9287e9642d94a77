package pve

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func TestStorages(t *testing.T) {
	h := &Host{PVERoot: t.TempDir()}
	if got := h.Storages(); len(got) != 0 {
		t.Errorf("without storage.cfg: %v", got)
	}
	text := `dir: local
	path /var/lib/vz/
	content images
# path /etc

nfs: quickOS
	server 10.0.0.5
	export /x

cifs: moved
	path /srv/with a blank

zfspool: tank
	pool tank
	mountpoint /tank

lvmthin: local-lvm
	thinpool data`
	if err := os.WriteFile(filepath.Join(h.PVERoot, "storage.cfg"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"local": "/var/lib/vz", "quickOS": "/mnt/pve/quickOS", "moved": "/srv/with a blank", "tank": "/tank",
	}
	if got := h.Storages(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
