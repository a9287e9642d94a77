#!/usr/bin/env bash
# Usage: phoenix_hypervisor_lxc_102.sh CTID
#
# Sets the proxy up again as the last run of phoenix on the host did. Runs as root in the container. phoenix does not
# need this script: its phx-traefik puts itself into the container and does the same.
set -euo pipefail
umask 022

if ! command -v phx-traefik >/dev/null; then
	echo "${0##*/}: phx-traefik is not in this container: on the host, run phoenix ${1-102} once," \
		"which puts it here" >&2
	exit 1
fi
exec phx-traefik apply </dev/null
