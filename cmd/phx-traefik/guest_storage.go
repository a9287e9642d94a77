// Traefik's storage of certificates, in the container.

package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
)

// storageForm are the names of Traefik's storages and of what phx-traefik has
// moved aside.
var storageForm = regexp.MustCompile(`^acme-([0-9a-f]{12})\.json(\.[a-z]+)?$`)

// storageLimit is more than Traefik writes for thousands of names.
const storageLimit = 16 << 20

// stored is a certificate in Traefik's storage.
type stored struct {
	host string
	pair tls.Certificate
}

// readStorage returns the certificates in the storage at path. Those that
// cannot be used are left out.
func readStorage(path string) ([]stored, error) {
	data, err := readPlain(path)
	if err != nil {
		return nil, err
	}
	return parseStorage(data)
}

func parseStorage(data []byte) ([]stored, error) {
	var resolvers map[string]*struct {
		Certificates []struct {
			Domain           struct{ Main string } `json:"domain"`
			Certificate, Key []byte
		}
	}
	if err := json.Unmarshal(data, &resolvers); err != nil {
		return nil, err
	}
	if resolvers[resolver] == nil {
		return nil, nil
	}
	var all []stored
	for _, c := range resolvers[resolver].Certificates {
		if pair, err := tls.X509KeyPair(c.Certificate, c.Key); err == nil {
			all = append(all, stored{c.Domain.Main, pair})
		}
	}
	return all, nil
}

// valid reports whether the certificate is valid at a time.
func (s stored) valid(now time.Time) bool {
	return now.After(s.pair.Leaf.NotBefore) && now.Before(s.pair.Leaf.NotAfter)
}

// verifies reports whether the certificate is good for its host under root.
func (s stored) verifies(root *x509.Certificate) bool {
	return cert.VerifyUnder(root, s.pair.Leaf, s.pair.Certificate[1:], s.host, time.Now()) == nil
}

// foreign returns the hosts whose certificate is valid now but not under
// root. Traefik renews by the clock alone, so it would keep them.
func foreign(path string, hosts []string, root *x509.Certificate) []string {
	all, _ := readStorage(path)
	var found []string
	for _, c := range all {
		if slices.Contains(hosts, c.host) && c.valid(time.Now()) && !c.verifies(root) {
			found = append(found, c.host)
		}
	}
	return found
}

// mendStorage makes the storage one that Traefik accepts: a plain file that
// holds JSON, mode 0600, Traefik's own. Else Traefik would go on without any
// certificate. What is none is moved aside. Where there is none, other, which
// may be "", is carried over: its certificates, of another trusted root, are
// good until the new ones have come.
func mendStorage(s *guest.Setup, path, other string, uid, gid int) error {
	data, err := readPlain(path)
	if err == nil && len(data) > 0 {
		_, err = parseStorage(data)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		data = nil
		if err := errors.Join(os.RemoveAll(path+".broken"), os.Rename(path, path+".broken")); err != nil {
			return err
		}
		s.Changed("moved %s aside: %v", path, err)
	}
	have := err == nil
	if len(data) == 0 && other != "" {
		if data, err = readPlain(other); err == nil {
			_, err = parseStorage(data)
		}
		if err == nil {
			s.Changed("carried the certificates in %s over to %s", other, path)
			return atomicfile.WriteOwned(path, data, 0o600, uid, gid)
		}
	}
	if !have {
		return nil // Traefik makes one
	}
	return takeCare(s, path, uid, gid)
}

// dropOthers removes certificates of hosts that are not served any more from the
// storage, which Traefik has not opened yet. Traefik would renew them with the
// others, one by one, and for each wait until the CA gives up to look for a host that
// does not lead here.
func dropOthers(path string, hosts []string) error {
	data, err := readPlain(path)
	if errors.Is(err, fs.ErrNotExist) || len(data) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	kept, dropped, err := withoutOthers(data, hosts)
	if err != nil || len(dropped) == 0 {
		return err
	}
	return atomicfile.Write(path, kept, 0o600)
}

// withoutOthers returns a storage with the certificates of these hosts alone, and
// which it has left out.
func withoutOthers(data []byte, hosts []string) (kept []byte, dropped []string, err error) {
	var resolvers map[string]json.RawMessage
	if err := json.Unmarshal(data, &resolvers); err != nil || resolvers[resolver] == nil {
		return data, nil, err
	}
	var ours map[string]json.RawMessage
	if err := json.Unmarshal(resolvers[resolver], &ours); err != nil || ours["Certificates"] == nil {
		return data, nil, err
	}
	var certificates []json.RawMessage
	if err := json.Unmarshal(ours["Certificates"], &certificates); err != nil {
		return data, nil, err
	}
	certificates = slices.DeleteFunc(certificates, func(raw json.RawMessage) bool {
		var c struct {
			Domain struct{ Main string } `json:"domain"`
		}
		if json.Unmarshal(raw, &c) != nil || slices.Contains(hosts, c.Domain.Main) {
			return false
		}
		dropped = append(dropped, c.Domain.Main)
		return true
	})
	if ours["Certificates"], err = json.Marshal(certificates); err != nil {
		return data, nil, err
	}
	if resolvers[resolver], err = json.Marshal(ours); err != nil {
		return data, nil, err
	}
	kept, err = json.MarshalIndent(resolvers, "", "  ")
	return kept, dropped, err
}

// takeCare gives the storage back its mode and owner.
func takeCare(s *guest.Setup, path string, uid, gid int) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return err
	}
	if stat.Uid != uint32(uid) || stat.Gid != uint32(gid) {
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
		s.Changed("gave %s back to Traefik", path)
	}
	if stat.Mode&0o7777 != 0o600 {
		if err := f.Chmod(0o600); err != nil {
			return err
		}
		s.Changed("set the mode of %s to 0600, it was %04o", path, stat.Mode&0o7777)
	}
	return nil
}

// readPlain reads a plain file that has no other name. Its directory is
// Traefik's, and a link there could lead anywhere.
func readPlain(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Nlink != 1 {
		return nil, fmt.Errorf("%s is no plain file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, storageLimit+1))
	if err == nil && len(data) > storageLimit {
		err = fmt.Errorf("%s is larger than %d MiB", path, storageLimit>>20)
	}
	return bytes.TrimSpace(data), err
}

// dropStorages removes what phx-traefik has left of roots that are no longer
// trusted.
func dropStorages(s *guest.Setup, dir string, pins []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		m := storageForm.FindStringSubmatch(e.Name())
		if m == nil || slices.ContainsFunc(pins, func(pin string) bool { return pin[:12] == m[1] }) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if err := os.Remove(path); err != nil {
			return err
		}
		s.Changed("removed %s, of a root that is not trusted", path)
	}
	return nil
}
