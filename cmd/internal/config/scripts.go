package config

import (
	"encoding/json"
	"fmt"
	"os"
)

// UnknownKeys returns the keys of the container's object that phx does not know,
// with their values.
func (c *Container) UnknownKeys() (map[string]json.RawMessage, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(c.Raw), &object); err != nil {
		return nil, fmt.Errorf("container %d: %w", c.CTID, err)
	}
	for _, k := range containerKeys {
		delete(object, k.name)
	}
	return object, nil
}

// A Text is the text of a configuration file, and what is in it beside lxc_configs
// and phx's own keys.
type Text struct {
	Text []byte
	Root map[string]json.RawMessage // by key
}

// ReadText reads a file again that has been checked: for scripts that read it
// themselves. It has to be a file, as a pipe can be read only once.
func ReadText(path string) (*Text, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a file, and scripts of before read it themselves", path)
	case info.Size() > MaxFile:
		return nil, fmt.Errorf("%s: longer than %d bytes", path, MaxFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := &Text{Text: text}
	if err := json.Unmarshal(text, &t.Root); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, key := range []string{"lxc_configs", "services", "dashboard"} {
		delete(t.Root, key)
	}
	return t, nil
}

// HostPaths returns the directories and files of the host that containers of the
// file have as mount points.
func (t *Text) HostPaths() ([]string, error) {
	var file struct {
		Containers map[string]struct {
			MountPoints []struct {
				HostPath string `json:"host_path"`
			} `json:"mount_points"`
		} `json:"lxc_configs"`
	}
	if err := json.Unmarshal(t.Text, &file); err != nil {
		return nil, err
	}
	var paths []string
	for _, c := range file.Containers {
		for _, m := range c.MountPoints {
			paths = append(paths, m.HostPath)
		}
	}
	return paths, nil
}
