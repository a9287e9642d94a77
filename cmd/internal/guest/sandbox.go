package guest

import "context"

// CanIsolate reports whether systemd can start a service with these options
// in this container: a container that may not mount anything, as those
// without nesting on Proxmox VE, ends with 226/NAMESPACE. options are lines of
// a unit file, KEY=VALUE.
func CanIsolate(ctx context.Context, options ...string) bool {
	argv := []string{"systemd-run", "--quiet", "--wait", "--collect"}
	for _, option := range options {
		argv = append(argv, "--property="+option)
	}
	_, err := Run(ctx, append(argv, "/bin/true")...)
	return err == nil
}
