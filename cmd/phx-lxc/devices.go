package main

import (
	"fmt"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// addDevices adds the devices that differ from next. They are known by their
// path: their numbers mean nothing. written are the hashes of the paths of devices
// that phx has set.
func addDevices(s *pve.Settings, c *config.Container, next map[string]string, written pve.Hashes) {
	byPath := map[string]string{}
	for _, option := range pve.Devices(next) {
		if path := pve.DevicePath(next[option]); byPath[path] == "" {
			byPath[path] = option
		}
	}
	n := 0
	wanted := map[string]bool{}
	for _, d := range c.Devices {
		wanted[d.Path] = true
		option := byPath[d.Path]
		if option == "" {
			option = pve.FreeDevice(n, next)
			n, _ = strconv.Atoi(strings.TrimPrefix(option, "dev"))
			n++
		}
		if value, differs := pve.ParseWithDefault(next[option], "path").Merge(device(d)); differs {
			s.Set(option, value.String())
		}
	}
	for path, option := range byPath {
		if written.Has(path) && !wanted[path] {
			s.Remove(option, path+" is not in the configuration any more")
		}
	}
}

// device is all that pct is told of a device. What has no value is to be absent.
func device(d config.Device) pve.Properties {
	id := func(n *int) string {
		if n == nil {
			return ""
		}
		return fmt.Sprint(*n)
	}
	return pve.Properties{
		{Value: d.Path}, {Key: "mode", Value: d.Mode}, {Key: "uid", Value: id(d.UID)}, {Key: "gid", Value: id(d.GID)},
		{Key: "deny-write", Value: pve.FormatBool(d.DenyWrite)},
	}
}

// deviceHashes are the hashes of the paths of all configured devices.
func deviceHashes(c *config.Container) string {
	var paths []string
	for _, d := range c.Devices {
		paths = append(paths, d.Path)
	}
	return pve.HashList(paths)
}
