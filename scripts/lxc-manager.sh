#!/usr/bin/env bash
# Usage: lxc-manager.sh create|start|stop|restart|delete CTID [--dry-run]
#
# The commands of the lxc-manager.sh that phx replaces. phoenix, beside this file, does the work. create also creates
# the containers that this one depends on. PHOENIX_DRY_RUN=true or DRY_RUN=true in the environment is --dry-run.
#
# Exit status: that of phoenix, but 1 for wrong usage.
set -uo pipefail
umask 022

say() { echo "lxc-manager.sh: $*" >&2; }

if [[ ! ${1-} =~ ^(create|start|stop|restart|delete)$ || ! ${2-} =~ ^[1-9][0-9]{2,8}$ ]]; then
	say "usage: lxc-manager.sh create|start|stop|restart|delete CTID, not: $*"
	exit 1
fi
for word in "${@:3}"; do
	if [[ $word == --dry-run ]]; then
		export PHX_DRY_RUN=1
	elif [[ $1 == delete ]]; then # the word may have meant to spare it
		say "delete: not understood, so nothing is deleted: $word"
		exit 1
	else
		say "ignored: $word"
	fi
done
[[ ${DRY_RUN-} != true && ${PHOENIX_DRY_RUN-} != true ]] || export PHX_DRY_RUN=1
exec "$(dirname "$(readlink -f "$0")")/phoenix" --action "$1" "$2"
