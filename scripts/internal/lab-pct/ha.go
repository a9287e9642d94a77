package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
)

// High availability: pct only asks for the state of a container that pve/ha/resources.cfg names.
// Here the manager that brings it about acts when somebody looks: the PHX_LAB_HA-th pct status or
// pct list that finds a container in another state than it should have changes it first.

// resources are the wanted states by container, "" for those that are not given.
type resources map[int]string

func (l *lab) haPath(name string) string { return filepath.Join(l.dir, "pve", "ha", name) }

// resources reads resources.cfg, whose sections are "ct: ID" and, for each key, a line of a tab,
// the key and its value.
func (l *lab) resources() (resources, error) {
	data, err := os.ReadFile(l.haPath("resources.cfg"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, die(255, "%v", err)
	}
	all := make(resources)
	id := 0
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "ct:":
			id, _ = strconv.Atoi(f[1])
			all[id] = ""
		case len(f) == 2 && strings.HasSuffix(f[0], ":"):
			id = 0
		case len(f) == 2 && f[0] == "state" && id != 0:
			all[id] = f[1]
		}
	}
	return all, nil
}

// managed reports whether pct asks the manager instead of acting.
func (r resources) managed(vmid int) bool {
	state, ok := r[vmid]
	return ok && state != "ignored"
}

func (c *call) managed() (bool, error) {
	all, err := c.resources()
	return all.managed(c.vmid), err
}

// setResource stores the wanted state of a container, or with "" removes it; all else in the file
// stays.
func (l *lab) setResource(vmid int, state string) error {
	return l.lockedFile("ha.lock", func() error {
		data, err := os.ReadFile(l.haPath("resources.cfg"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return die(255, "%v", err)
		}
		var out bytes.Buffer
		inside, found := false, false
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) == 2 && strings.HasSuffix(f[0], ":") {
				inside = f[0] == "ct:" && f[1] == strconv.Itoa(vmid)
				if inside && state != "" {
					found = true
					out.WriteString(line)
					fmt.Fprintf(&out, "\tstate %s\n", state)
					continue
				}
			}
			if inside && (state == "" || len(f) > 0 && f[0] == "state") {
				continue
			}
			out.WriteString(line)
		}
		if !found && state != "" {
			if out.Len() > 0 && !bytes.HasSuffix(out.Bytes(), []byte("\n\n")) {
				out.WriteString("\n")
			}
			fmt.Fprintf(&out, "ct: %d\n\tstate %s\n\n", vmid, state)
		}
		if err := os.MkdirAll(l.haPath(""), 0o755); err != nil {
			return die(255, "%v", err)
		}
		if err := renameio.WriteFile(l.haPath("resources.cfg"), out.Bytes(), 0o640,
			renameio.IgnoreUmask()); err != nil {
			return die(255, "%v", err)
		}
		return nil
	})
}

// requestStart and requestStop are what pct does instead of starting or stopping a container that
// the manager leads. The wanted state of a start is stored at once, a stop is a command that the
// manager takes up later.
func (c *call) requestStart() error {
	fmt.Fprintf(c.stdout, "Requesting HA start for CT %d\n", c.vmid)
	return c.setResource(c.vmid, "started")
}

func (c *call) requestStop(timeout int) error {
	fmt.Fprintf(c.stdout, "Requesting HA stop for CT %d\n", c.vmid)
	return c.lockedFile("ha.lock", func() error {
		f, err := os.OpenFile(c.haPath("crm_commands"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return die(255, "%v", err)
		}
		defer f.Close()
		_, err = fmt.Fprintf(f, "stop ct:%d %d\n", c.vmid, timeout)
		return err
	})
}

// manage is the manager's turn.
func (l *lab) manage() error {
	wanted, err := l.resources()
	if err != nil || len(wanted) == 0 {
		return err
	}
	looks := 2
	if s := os.Getenv("PHX_LAB_HA"); s != "" {
		if looks, err = strconv.Atoi(s); err != nil {
			return die(255, "pct: PHX_LAB_HA=%s: want a number of looks, or 0 for never", s)
		}
	}
	if looks == 0 {
		return nil
	}
	commands, err := os.ReadFile(l.haPath("crm_commands"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return die(255, "%v", err)
	}
	timeouts := make(map[int]int) // of the stops that were asked for
	for line := range strings.Lines(string(commands)) {
		var id, timeout int
		if _, err := fmt.Sscanf(line, "stop ct:%d %d", &id, &timeout); err == nil && wanted.managed(id) {
			timeouts[id] = timeout
			wanted[id] = "stopped"
		}
	}
	waiting := false
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		if !wanted.managed(id) {
			continue
		}
		start := slices.Contains([]string{"", "started", "enabled"}, wanted[id])
		if !l.turn(id, looks, start != l.backend.running(id)) {
			waiting = waiting || start != l.backend.running(id)
			continue
		}
		timeout, asked := timeouts[id]
		if asked {
			if err := l.setResource(id, "stopped"); err != nil {
				return err
			}
		}
		l.act(id, start, timeout)
	}
	if !waiting {
		os.Remove(l.haPath("crm_commands"))
	}
	return nil
}

// turn counts how often a container was found in a wrong state, and reports whether that is often
// enough to act.
func (l *lab) turn(vmid, looks int, wrong bool) bool {
	path := l.haPath(fmt.Sprintf("looks-%d", vmid))
	if !wrong {
		os.Remove(path)
		return false
	}
	data, _ := os.ReadFile(path)
	n, _ := strconv.Atoi(string(data))
	if n++; n >= looks {
		os.Remove(path)
		return true
	}
	os.WriteFile(path, []byte(strconv.Itoa(n)), 0o640)
	return false
}

// act brings a state about; what fails is tried again at another look.
func (l *lab) act(vmid int, start bool, timeout int) {
	quiet := &lab{dir: l.dir, node: l.node, ctx: l.ctx, stdout: io.Discard, stderr: io.Discard,
		warned: make(map[int][]byte)}
	if quiet.setBackend() != nil {
		return
	}
	name := "stop"
	if start {
		name = "start"
	}
	c := &call{lab: quiet, cmd: table().Commands[name], p: params{"vmid": strconv.Itoa(vmid)}, vmid: vmid}
	c.locked(vmid, func() error {
		if start {
			return c.startLocked(false)
		}
		conf, err := c.load()
		if err != nil {
			return err
		}
		if err := conf.checkLock(); err != nil {
			return err
		}
		if timeout > 0 && c.backend.shutdown(vmid, timeout) == nil {
			return nil
		}
		return c.backend.stop(vmid)
	})
}
