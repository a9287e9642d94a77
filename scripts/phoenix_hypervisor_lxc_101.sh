#!/usr/bin/env bash
# Usage: phoenix_hypervisor_lxc_101.sh CTID
#
# Sets the gateway up again as the last run of phoenix on the host did. Runs as root in the container. phoenix does not
# need this script: its phx-nginx puts itself into the container and does the same.
set -euo pipefail
umask 022

if ! command -v phx-nginx >/dev/null; then
	echo "${0##*/}: phx-nginx is not in this container: on the host, run phoenix ${1-101} once," \
		"which puts it here" >&2
	exit 1
fi
exec phx-nginx apply </dev/null
