#!/usr/bin/env bash
# Sets the proxy up again as the last run of phoenix on the host did. Runs as root
# inside the container:
#
#   phoenix_hypervisor_lxc_102.sh CTID
#
# phoenix does not need this script: its phx-traefik puts itself into the container
# and does the same.
set -euo pipefail
umask 022

if ! command -v phx-traefik >/dev/null; then
	echo "phoenix_hypervisor_lxc_102.sh: phx-traefik is not in this container: on the host, run phoenix ${1-102} once, which puts it here" >&2
	exit 1
fi
exec phx-traefik apply </dev/null
