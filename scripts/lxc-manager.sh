#!/usr/bin/env bash
# lxc-manager.sh create|start|stop|restart|delete CTID
#
# The interface of the lxc-manager.sh that phx replaces; see phoenix beside this
# file, which does the work. create brings along what the container needs.
# Exit status: 1 also for wrong usage, otherwise that of phoenix.
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
	else
		say "ignored: $word"
	fi
done
[[ ${DRY_RUN-} != true && ${PHOENIX_DRY_RUN-} != true ]] || export PHX_DRY_RUN=1
exec "$(dirname "$(readlink -f "$0")")/phoenix" --action "$1" "$2"
