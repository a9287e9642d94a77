// Traefik's units, in the container.

package main

import (
	"context"
	"fmt"

	"thinkheads.ai/phx/cmd/internal/guest"
)

// unitText has no option that needs a mount namespace, such as ProtectSystem
// or PrivateTmp: an unprivileged container without nesting can make none, and
// the unit would end with 226/NAMESPACE. Beyond Traefik's own files, what they
// would hide is closed to its user anyway.
//
// What remains open, and why: the network and its address families, for which
// Traefik is there; AF_UNIX, to tell systemd that it is ready; CAP_NET_ADMIN
// for the keeper of the gate alone, as some kernels want it for a filter on a
// socket: Traefik is started without it.
const unitText = `# Written by phx-traefik.
[Unit]
Description=Traefik, the proxy of the internal services
Documentation=https://doc.traefik.io/traefik/
After=network-online.target traefik-web.socket traefik-websecure.socket
Wants=network-online.target
Requires=traefik-web.socket traefik-websecure.socket
StartLimitIntervalSec=0

[Service]
Type=notify
User=traefik
Group=traefik
Sockets=traefik-web.socket traefik-websecure.socket
ExecStart=` + self + ` start --configFile=` + staticFile + `
Restart=always
RestartSec=500ms
TimeoutStopSec=15
WatchdogSec=30
LimitNOFILE=1048576
UMask=0077
CapabilityBoundingSet=CAP_NET_ADMIN
AmbientCapabilities=CAP_NET_ADMIN
NoNewPrivileges=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
KeyringMode=private
RemoveIPC=yes

[Install]
WantedBy=multi-user.target
`

// socketUnits are the sockets of the entry points, which systemd holds while
// Traefik restarts. It hands each over under the entry point's name.
var socketUnits = []struct{ unit, text string }{
	{"traefik-" + plain + ".socket", socketText(plain, 80)},
	{"traefik-" + encrypted + ".socket", socketText(encrypted, 443)},
}

func socketText(entryPoint string, port int) string {
	return fmt.Sprintf(`# Written by phx-traefik.
[Unit]
Description=Traefik's entry point %[1]s

[Socket]
ListenStream=%[2]d
FileDescriptorName=%[1]s
Service=traefik.service
Backlog=4096
TriggerLimitIntervalSec=0

[Install]
WantedBy=sockets.target
`, entryPoint, port)
}

// holdSockets has systemd hold the sockets of the entry points. It cannot take
// them from a running Traefik.
func holdSockets(ctx context.Context, s *guest.Setup) error {
	held := true
	for _, u := range socketUnits {
		changed, err := s.WriteFile(unitDir+u.unit, []byte(u.text), 0o644)
		if err != nil {
			return err
		}
		held = held && !changed && guest.Active(ctx, u.unit)
	}
	if !held {
		if _, err := s.Run(ctx, "systemctl", "daemon-reload"); err != nil {
			return err
		}
		stop := []string{"systemctl", "stop", "traefik.service"}
		for _, u := range socketUnits {
			stop = append(stop, u.unit)
		}
		if _, err := s.Run(ctx, stop...); err != nil {
			return err
		}
	}
	for _, u := range socketUnits {
		if err := s.Start(ctx, u.unit); err != nil {
			return err
		}
	}
	return nil
}
