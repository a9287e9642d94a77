#!/bin/bash
# Usage: phoenix_hypervisor_lxc_103.sh CTID
#
# Sets up the service of the Smallstep CA and starts it. Runs as root in the CA's container, which has the features
# base_setup and step_ca; the latter has made the CA in /home/step, or has taken over the one that was there.
# phx-ca-export keeps the configuration of the CA up to date.
#
# Environment:
#   PHX_IP            the address by which other containers reach this one
#   PHX_SERVICE_PORT  the port of the container's traefik_service, default 9000.
#
# A second run changes nothing. The service of a CA that was there before phx is started if it is down, and otherwise
# left as it is.
set -euo pipefail
umask 022

home=/home/step
unit=/etc/systemd/system/step-ca.service
adopted=/etc/phx/ca.env
# Exists while the running service may not have loaded what is on disk; in /run, because a reboot starts the service
# with what is on disk.
restart=/run/step-ca.restart

say() { printf 'step-ca: %s: %s\n' "$ctid" "$*"; }
die() {
	say "$*" >&2
	exit 1
}

# systemd has time limits for each unit; this one is for systemd itself.
systemctl() { timeout -k 10 180 systemctl "$@"; }

# step takes every flag from STEP_* variables too, so it starts with these alone.
clean() { env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/root STEPPATH=$home "$@"; }

wanted_unit() {
	cat <<UNIT
[Unit]
Description=Smallstep CA
Documentation=https://smallstep.com/docs/step-ca
After=network.target
# It starts again however often it fails: what it lacks may come.
StartLimitIntervalSec=0

[Service]
Type=exec
User=step
Group=step
UMask=0077
Environment=STEPPATH=$home
WorkingDirectory=$home
ExecStart=/usr/local/bin/step-ca $home/config/ca.json --password-file $home/secrets/ca_password
ExecReload=/bin/kill -HUP \$MAINPID
Restart=always
RestartSec=5
TimeoutStopSec=15
NoNewPrivileges=yes
UNIT
	# A port below 1024 needs this one capability.
	if ((port < 1024)); then
		printf '%s\n' AmbientCapabilities=CAP_NET_BIND_SERVICE CapabilityBoundingSet=CAP_NET_BIND_SERVICE
	else
		printf '%s\n' CapabilityBoundingSet=
	fi
	cat <<UNIT
RemoveIPC=yes
RestrictNamespaces=yes
# It serves and comes to those whose names it checks, wherever they are: no IPAddressDeny, no PrivateNetwork.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
UNIT
	((!sandbox)) || sandbox_options
	printf '\n[Install]\nWantedBy=multi-user.target\n'
}

# The options that need a mount namespace. The service sees only its own home, and writes only to its database.
sandbox_options() {
	cat <<UNIT
ProtectSystem=strict
ProtectHome=tmpfs
BindReadOnlyPaths=$home
BindPaths=$home/db
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
UNIT
}

# Fails where a service cannot have a mount namespace: in an unprivileged container without nesting (226/NAMESPACE).
can_sandbox() {
	local options=() line
	while read -r line; do options+=(--property "$line"); done < <(sandbox_options)
	timeout -k 10 60 systemd-run --quiet --wait --collect --property User=step "${options[@]}" \
		/bin/true 2>/dev/null </dev/null
}

# The CA's user owns its home, and may have put a link there.
make_db() {
	local user group
	user=$(stat -c %u "$home") group=$(stat -c %g "$home")
	(cd "$home" && setpriv --reuid "$user" --regid "$group" --clear-groups -- mkdir -p -m 0700 db)
	chown -h -- "$user:$group" "$home/db"
}

# Gives the CA's user what the service reads and writes, where its owner or mode has been changed. That user owns the
# directories, and may put anything there: no link is followed, and no file with a second hard link changes its owner.
own_files() { # UID GID
	local dirs=() dir changed
	[[ ! -L $home ]] || return 0
	for dir in certs config db secrets templates; do
		[[ ! -d $home/$dir || -L $home/$dir ]] || dirs+=("$home/$dir")
	done
	((${#dirs[@]})) || return 0
	changed=$({
		chown -ch "$1:$2" "$home"
		chmod -c u+rwx "$home"
		find -P "${dirs[@]}" -xdev \( ! -uid "$1" -o ! -gid "$2" \) \( -type d -o -links 1 \) \
			-execdir chown -ch "$1:$2" {} +
		setpriv --reuid "$1" --regid "$2" --clear-groups -- chmod -cR u+rwX "${dirs[@]}"
		setpriv --reuid "$1" --regid "$2" --clear-groups -- chmod -cR go-rwx "$home/secrets"
	}) || : # where that is not enough, the service says so
	[[ -z $changed ]] || say "set owners and modes below $home right"
}

# Waits until the CA answers with a certificate of its own root, for 60 s at most.
healthy() {
	local end=$((SECONDS + 60))
	while ((SECONDS < end)); do
		if [[ $(clean timeout 5 step ca health --ca-url "$url" --root "$root" 2>/dev/null </dev/null) == ok ]]; then
			return 0
		fi
		sleep 0.3
	done
	return 1
}

if [[ $# -ne 1 || ! $1 =~ ^[1-9][0-9]{2,8}$ ]]; then
	echo "usage: ${0##*/} CTID" >&2
	exit 2
fi
ctid=$1
port=${PHX_SERVICE_PORT:-9000}
[[ ${PHX_IP:-} =~ ^[0-9a-fA-F]*[.:][0-9a-fA-F.:]*$ ]] ||
	die "PHX_IP: not an address: '${PHX_IP:-}': set it to the one by which other containers reach this one"
[[ $port =~ ^[1-9][0-9]{0,4}$ ]] || die "PHX_SERVICE_PORT: not a port: '$port'"
[[ $(id -u) == 0 ]] || die "must run as root"
if [[ $PHX_IP == *:* ]]; then url=https://[$PHX_IP]:$port; else url=https://$PHX_IP:$port; fi
root=$home/certs/root_ca.crt
[[ ! -e $adopted ]] || root=$(sed -n 's/^ROOT=//p' "$adopted")
for file in /usr/local/bin/step "$root"; do
	[[ -s $file ]] ||
		die "$file: missing or empty: the feature step_ca makes it: remove step_ca=… from the record in the" \
			"container's description to have it run again, or bring the file back from a snapshot"
done

# When its pct is killed, an earlier run goes on in this container, for as long as a feature's script may.
(umask 077 && : >>/run/phx.lock)
exec 9>>/run/phx.lock
flock -w 740 9 || die "something else has been installing in this container for 12 minutes: try again when it is done"

if [[ -e $adopted ]]; then
	say "the CA was here before phx: its service is left as it is"
else
	for file in /usr/local/bin/step-ca "$home"/config/ca.json "$home"/secrets/{ca_password,provisioner_password}; do
		[[ -s $file ]] || die "$file: missing or empty, while $root is there: bring it back from a snapshot"
	done
	own_files "$(id -u step)" "$(id -g step)"
	make_db
	sandbox=1
	if ! can_sandbox; then
		sandbox=0
		say 'warning: a service of this container cannot have a mount namespace, and step-ca is less confined:' \
			'add nesting=1 to its pct_options' >&2
	fi
	if [[ "$(wanted_unit)" != "$(cat "$unit" 2>/dev/null)" ]]; then
		: >"$restart"
		wanted_unit >"$unit.new"
		chmod 0644 "$unit.new"
		mv -T "$unit.new" "$unit"
		say "wrote $unit"
	elif [[ $(stat -c %a "$unit") != 644 ]]; then
		chmod 0644 "$unit"
		say "set the mode of $unit right"
	fi
	[[ ! -e $restart ]] || systemctl daemon-reload
	systemctl is-enabled -q step-ca 2>/dev/null || systemctl enable -q step-ca
	if [[ ! -e $restart ]] && systemctl is-active -q step-ca; then
		# The program was replaced under the running service.
		[[ $(readlink "/proc/$(systemctl show -P MainPID step-ca)/exe") != *' (deleted)' ]] || : >"$restart"
	fi
fi
if [[ -e $restart ]] || ! systemctl is-active -q step-ca; then
	systemctl reset-failed step-ca 2>/dev/null || :
	systemctl restart step-ca || :
	say "started step-ca"
else
	say "step-ca is already running"
fi

if ! healthy; then
	# step-ca logs the one-time tokens that it was shown.
	timeout 30 journalctl -u step-ca -n 20 --no-pager -o cat | sed 's/ott=[^ ]*/ott=…/' >&2 || :
	die "step-ca did not get healthy at $url: its last messages stand above"
fi
rm -f -- "$restart"
say "healthy at $url"
