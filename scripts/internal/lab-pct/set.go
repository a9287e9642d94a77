package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func (c *call) set() error {
	p := maps.Clone(c.p)
	delete(p, "vmid")
	if len(p) == 0 {
		return die(255, "no options specified")
	}
	deletes, reverts, digest := splitList(p["delete"]), splitList(p["revert"]), p["digest"]
	delete(p, "delete")
	delete(p, "revert")
	delete(p, "digest")
	for _, k := range deletes {
		o := c.cmd.options[k]
		if o == nil || slices.Contains([]string{"delete", "digest", "revert", "vmid"}, k) {
			return c.cmd.invalid(map[string]string{"delete": fmt.Sprintf("unknown option '%s'", k)})
		}
		if p.has(k) {
			return c.cmd.invalid(map[string]string{
				"delete": fmt.Sprintf("unable to use '-%s' and '-delete %s' at the same time", k, k),
			})
		}
	}
	return c.locked(c.vmid, func() error {
		conf, err := c.load()
		if err != nil {
			return err
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		if digest != "" && digest != conf.digest {
			return die(255, "detected modified configuration - file changed by other user? Try again.")
		}
		running := c.running()
		failed, err := c.change(conf, running, p, deletes, reverts)
		if err != nil {
			return err
		}
		if err := c.save(conf); err != nil {
			return err
		}
		// From here on the change is stored, whatever happens.
		if err := c.fault(); errors.Is(err, errInterrupted) {
			return err
		} else if err != nil {
			return die(2, "bridge 'vmbr0' does not exist")
		}
		if err := c.writeConfig(conf, c.stderr); err != nil {
			return err
		}
		if len(failed) > 0 {
			return c.cmd.invalid(failed)
		}
		return nil
	})
}

// change queues changes of a configuration and applies those that can be applied now. failed
// says by option what could not be applied.
func (c *call) change(conf *config, running bool, set params, deletes, reverts []string) (failed map[string]string,
	err error) {
	for _, k := range reverts {
		delete(conf.pending.values, k)
		conf.unqueueDelete(k)
	}
	touched := make(map[string]bool)
	for _, k := range deletes {
		_, has := conf.values[k]
		_, queued := conf.pending.values[k]
		if !has && !queued {
			fmt.Fprintf(c.stderr, "cannot delete '%s' - not set in current configuration!\n", k)
			continue
		}
		switch {
		case k == "memory" || k == "rootfs" || k == "ostype":
			return nil, die(255, "unable to delete required option '%s'", k)
		case k == "unprivileged":
			return nil, die(255, "unable to delete read-only option: '%s'", k)
		case (strings.HasPrefix(k, "mp") || strings.HasPrefix(k, "unused")) && conf.values["protection"] == "1":
			return nil, die(255, "can't remove CT %d drive '%s' - protection mode enabled", conf.vmid, k)
		}
		touched[k] = true
		delete(conf.pending.values, k)
		conf.setPendingDeletes(append(conf.pendingDeletes(), k))
	}
	for _, k := range slices.Sorted(maps.Keys(set)) {
		v := set[k]
		switch {
		case mountKeyRE.MatchString(k):
			if conf.values["protection"] == "1" {
				return nil, die(255, "can't update CT %d drive '%s' - protection mode enabled", conf.vmid, k)
			}
			m, err := parseMount(k, v)
			if err != nil {
				return nil, die(255, "%v", err)
			}
			if m.kind() == "volume" {
				sid, _, ok := strings.Cut(m.volume(), ":")
				if !ok {
					return nil, die(255, "unable to parse volume ID '%s'", m.volume())
				}
				s, err := c.storage(sid)
				if err != nil {
					return nil, err
				}
				if !s.holds("rootdir") {
					return nil, die(255, "storage '%s' does not allow content type 'rootdir' (Container)", sid)
				}
			}
		case k == "unprivileged":
			return nil, die(255, "unable to modify read-only option: '%s'", k)
		case k == "nameserver" || k == "searchdomain":
			v = strings.Join(splitList(v), " ")
		case k == "tags":
			v = uniqueTags(v)
		case k == "hookscript":
			if err := c.checkHookscript(v); err != nil {
				return nil, err
			}
		case strings.HasPrefix(k, "net"):
			if err := c.checkNet(k, v); err != nil {
				return nil, err
			}
		case strings.HasPrefix(k, "dev"):
			dev, err := parseProperties("dev", k, v)
			if err != nil {
				return nil, die(255, "%v", err)
			}
			fi, err := os.Stat(dev["path"])
			if err != nil {
				return nil, die(255, "Device %s does not exist", dev["path"])
			}
			if fi.Mode()&os.ModeDevice == 0 {
				return nil, die(255, "%s is not a device", dev["path"])
			}
		}
		touched[k] = true
		conf.pending.values[k] = v
		conf.unqueueDelete(k)
	}
	conf.cleanPending()
	return c.apply(conf, running, func(k string) bool { return touched[k] }), nil
}

// checkNet refuses what an interface cannot be on this host.
func (c *call) checkNet(key, value string) error {
	net, err := parseProperties("net", key, value)
	if err != nil {
		return die(255, "%v", err)
	}
	if mtu, _ := strconv.Atoi(net["mtu"]); mtu > 0 {
		bridge, err := c.backend.bridgeMTU(net["bridge"])
		if err != nil {
			return err
		}
		if mtu > bridge {
			return die(255, "%s: MTU size '%d' is bigger than bridge MTU '%d'", key, mtu, bridge)
		}
	}
	if net["link_down"] != "1" && net["host-managed"] == "1" && net["ip6"] == "auto" {
		return die(255, "%s: SLAAC is not supported for host-managed network configuration.", key)
	}
	return nil
}

func (c *call) checkHookscript(id string) error {
	sid, name, _ := strings.Cut(id, ":")
	s, err := c.storage(sid)
	if err != nil {
		return err
	}
	rel, ok := strings.CutPrefix(name, "snippets/")
	if !ok {
		return die(255, "'%s' is not in the snippets directory", id)
	}
	fi, err := os.Stat(filepath.Join(s.path, "snippets", rel))
	if err != nil {
		return die(255, "script '%s' does not exist", id)
	}
	if fi.Mode()&0o111 == 0 {
		return die(255, "script '%s' is not executable", id)
	}
	return nil
}

// live are the options whose change a running container needs nothing for.
var live = []string{"cores", "description", "hookscript", "hostname", "lock", "onboot", "protection", "startup", "tags"}

// errQueued marks a change that waits for the next start.
var errQueued = errors.New("queued")

// apply moves queued changes into the head of the configuration: all that are selected for a
// stopped container, those that can be made live for a running one.
func (c *call) apply(conf *config, running bool, selected func(key string) bool) (failed map[string]string) {
	failed = make(map[string]string)
	note := func(k string, err error) {
		if errors.Is(err, errQueued) {
			return
		}
		if running {
			failed[k] = fmt.Sprintf("unable to hotplug %s: %v\n", k, err)
			return
		}
		failed[k] = fmt.Sprintf("unable to apply pending change %s : %v\n", k, err)
		fmt.Fprint(c.stderr, failed[k])
	}
	for _, k := range conf.pendingDeletes() {
		if !selected(k) {
			continue
		}
		if err := c.applyDelete(conf, running, k); err != nil {
			note(k, err)
			continue
		}
		delete(conf.values, k)
		conf.unqueueDelete(k)
	}
	for _, k := range slices.Sorted(maps.Keys(conf.pending.values)) {
		if k == "delete" || !selected(k) {
			continue
		}
		v, err := c.applyValue(conf, running, k, conf.pending.values[k])
		if err != nil {
			note(k, err)
			continue
		}
		conf.values[k] = v
		delete(conf.pending.values, k)
	}
	return failed
}

// hotNetRE are the interfaces that pct takes out of a running container: of those with two digits
// it does not know that they are some, when it removes them.
var hotNetRE = regexp.MustCompile(`^net\d$`)

func (c *call) applyDelete(conf *config, running bool, k string) error {
	old := conf.values[k]
	switch {
	case strings.HasPrefix(k, "unused"):
		delete(conf.values, k)
		defer func() { conf.values[k] = old }()
		if conf.inUse(old) {
			return nil
		}
		v, err := c.volume(old)
		if err != nil {
			return err
		}
		return v.remove()
	case running && slices.Contains(live, k):
		return nil
	case running && (k == "swap" || k == "cpulimit" || k == "cpuunits" || hotNetRE.MatchString(k)):
		return c.backend.hotplug(conf, k, "")
	case running:
		return errQueued
	case mountKeyRE.MatchString(k):
		m, err := parseMount(k, old)
		if err != nil {
			return err
		}
		if m.kind() == "volume" {
			conf.addUnused(m.volume()) // even if a snapshot has it
		}
	}
	return nil
}

func (c *call) applyValue(conf *config, running bool, k, v string) (string, error) {
	old, had := conf.values[k]
	switch {
	case running && slices.Contains(live, k):
		return v, nil
	case strings.HasPrefix(k, "net"):
		v, err := canonicalNet(v, false)
		if err == nil && running {
			err = c.backend.hotplug(conf, k, v)
		}
		return v, err
	case strings.HasPrefix(k, "mp"):
		if running && had {
			return "", errQueued
		}
		m, err := parseMount(k, v)
		if err != nil {
			return "", err
		}
		disk, made, err := c.allocate(m, conf.vmid)
		if err != nil {
			return "", err
		}
		if running {
			if err := c.backend.hotplug(conf, k, m.String()); err != nil {
				if made {
					disk.remove()
				}
				return "", err
			}
		}
		if had {
			if m, err := parseMount(k, old); err == nil && m.kind() == "volume" {
				conf.addUnused(m.volume()) // which goes again where the new value names the same
			}
		}
		return m.String(), nil
	case running && strings.HasPrefix(k, "dev") && !had: // one that is there waits
		return v, c.backend.hotplug(conf, k, v)
	case running && (k == "memory" || k == "swap" || k == "cpulimit" || k == "cpuunits"):
		return v, c.backend.hotplug(conf, k, v)
	case running:
		return "", errQueued
	}
	return v, nil
}
