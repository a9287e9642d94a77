// The gateway's units, in the container.

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/guest"
)

const (
	unitDir    = "/etc/systemd/system/"
	nginxUnit  = "nginx.service"
	socketUnit = "nginx.socket"
	dropIn     = unitDir + nginxUnit + ".d/phoenix.conf"
	renewUnit  = "phx-nginx-renew"

	socketsFile = stateDir + "/sockets" // hash of the unit that the sockets were opened with
	startedFile = stateDir + "/started" // hash of the units that nginx was started with
	loadedFile  = stateDir + "/loaded"  // hash of what it has loaded
)

const header = "# Written by phx-nginx. Changes made here are lost at its next run.\n"

// socketText returns the unit that keeps the ports of the gateway open while nginx
// is restarted: clients wait then, and are not refused. nginx opens other ports
// itself.
func socketText(six bool) string {
	text := header + `[Unit]
Description=Ports of the gateway, which stay open while nginx restarts

[Socket]
ListenStream=0.0.0.0:80
ListenStream=0.0.0.0:443
`
	if six {
		text += `ListenStream=[::]:80
ListenStream=[::]:443
BindIPv6Only=ipv6-only
`
	}
	return text + `# However often nginx dies, its ports stay.
TriggerLimitBurst=0

[Install]
WantedBy=sockets.target
`
}

// serviceText returns what phx changes in Debian's nginx.service.
func serviceText(six bool) string {
	sockets := "3:4:"
	if six {
		sockets += "5:6:"
	}
	return strings.Replace(serviceForm, "SOCKETS", sockets, 1)
}

const serviceForm = header + `[Unit]
Requires=nginx.socket
After=nginx.socket
# A gateway that is down is no better than one that tries again.
StartLimitIntervalSec=0

[Service]
# nginx stays in the foreground when it is given sockets, and the upgrade of its
# package restarts it then.
Type=exec
Sockets=nginx.socket
NonBlocking=yes
ExecStartPre=
ExecStartPre=/usr/sbin/nginx -t -q
ExecStart=
ExecStart=/usr/bin/env NGINX=SOCKETS /usr/sbin/nginx
ExecReload=
ExecReload=/usr/sbin/nginx -t -q
ExecReload=/bin/kill -HUP $MAINPID
ExecStop=
# Workers finish what they have begun, even those whose master was killed.
KillSignal=SIGQUIT
KillMode=control-group
TimeoutStopSec=5
Restart=always
RestartSec=1
`

// restrictions of a unit that need no mount namespace, for all units.
const restrictions = `NoNewPrivileges=yes
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
`

// isolation of a unit, which needs a mount namespace.
const isolation = `ProtectSystem=strict
PrivateDevices=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
`

const nginxRestrictions = `UMask=0027
# AF_INET: its clients, and the proxy. AF_UNIX: its workers, and the journal.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
# The master runs as root to read the key (0600), and becomes www-data in its
# workers (SETUID, SETGID), to which it sends signals (KILL). Its logs belong to
# www-data (DAC_OVERRIDE, CHOWN). Sites may have ports of their own below 1024.
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_KILL CAP_NET_BIND_SERVICE CAP_SETGID CAP_SETUID
SystemCallFilter=@system-service
SystemCallFilter=~@resources
`

// Sites that were here before phx may serve from /home, and keep logs and
// caches anywhere in /var and /srv.
const nginxIsolation = `ProtectHome=read-only
ReadWritePaths=/run /var -/srv
`

const renewText = header + `[Unit]
Description=Renew the gateway's certificate when it is due
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart=/usr/local/bin/phx-nginx renew
TimeoutStartSec=3min
Restart=on-failure
RestartSec=2min
`

const renewRestrictions = `UMask=0077
# AF_INET: the CA, and nginx for the check. AF_UNIX: systemd, for the reload.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
CapabilityBoundingSet=
SystemCallFilter=@system-service
SystemCallFilter=~@resources @privileged
`

const renewIsolation = `ProtectHome=yes
PrivateTmp=yes
ReadWritePaths=/run /etc/phx
`

const renewTimer = header + `[Unit]
Description=Look every 15 minutes whether the gateway's certificate is due

[Timer]
OnCalendar=*:0/15
RandomizedDelaySec=5min
Persistent=true

[Install]
WantedBy=timers.target
`

// unitFiles are the files of the gateway's units.
var unitFiles = []string{dropIn, unitDir + socketUnit, unitDir + renewUnit + ".service", unitDir + renewUnit + ".timer"}

// units returns the texts of [unitFiles]. isolated is whether the container
// can have a sandbox of mounts, and six whether it has IPv6.
func units(isolated, six bool) [][]byte {
	service, renew := serviceText(six)+restrictions+nginxRestrictions, renewText+restrictions+renewRestrictions
	if isolated {
		service += isolation + nginxIsolation
		renew += isolation + renewIsolation
	} else {
		const note = "# This container may mount nothing: the rest of the sandbox needs its option nesting=1.\n"
		service += note
		renew += note
	}
	return [][]byte{[]byte(service), []byte(socketText(six)), []byte(renew), []byte(renewTimer)}
}

// writeUnits writes the units.
func writeUnits(ctx context.Context, s *guest.Setup) error {
	isolated := guest.CanIsolate(ctx, strings.Fields(isolation)...)
	if !isolated {
		s.Warnf("this container may mount nothing, so nginx runs without a part of its sandbox: " +
			"give the container the option nesting=1")
	}
	for i, text := range units(isolated, guest.HasIPv6()) {
		if _, err := s.WriteFile(unitFiles[i], text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// holdPorts has systemd hold the gateway's ports. It cannot take them from a running
// nginx, nor open others beside them.
func holdPorts(ctx context.Context, s *guest.Setup) error {
	text, err := os.ReadFile(unitDir + socketUnit)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	present := hex.EncodeToString(sum[:])
	opened, err := os.ReadFile(socketsFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(opened) != present || !guest.Active(ctx, socketUnit) {
		if _, err := s.Run(ctx, "systemctl", "stop", nginxUnit, socketUnit); err != nil {
			return err
		}
		// systemd opens no socket for a service that is masked.
		if err := s.KnowUnit(ctx, nginxUnit); err != nil {
			return err
		}
	}
	if err := s.Start(ctx, socketUnit); err != nil {
		return fmt.Errorf("ports 80 and 443 of the gateway: is another program there? %w", err)
	}
	if string(opened) == present {
		return nil
	}
	return atomicfile.Write(socketsFile, []byte(present), 0o644)
}

// serve has nginx run with the present units, configuration, certificate and
// roots. A reload interrupts no connection, and a restart refuses none.
func serve(ctx context.Context, s *guest.Setup, g gateway) (taken func() error, err error) {
	if err := holdPorts(ctx, s); err != nil {
		return nil, err
	}
	pair, err := filepath.EvalSymlinks(pairLink)
	if err != nil {
		return nil, err
	}
	var texts []byte
	for _, file := range unitFiles[:2] {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text...)
	}
	sum := sha256.Sum256(texts)
	started, verb := hex.EncodeToString(sum[:]), "reload"
	last, err := os.ReadFile(startedFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if string(last) != started {
		verb = "restart"
		if err := os.Remove(startedFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	loaded, err := s.Serve(ctx, nginxUnit, verb, loadedFile,
		texts, g.site(), []byte(filepath.Base(pair)), []byte(strings.Join(g.Pins(), " ")))
	if err != nil {
		return nil, err
	}
	return func() error {
		if verb == "restart" {
			if err := atomicfile.Write(startedFile, []byte(started), 0o644); err != nil {
				return err
			}
		}
		return loaded()
	}, nil
}
