#!/bin/bash
# Usage: phoenix_hypervisor_feature_install_step_ca.sh CTID [CA_URL]
#
# Installs step-ca and step in /usr/local/bin, and adds the system user step (home /home/step), which runs the CA; then
# phx-ca-export init makes the CA, or takes over the one that is there. Runs on the Proxmox host.
#
# Environment, beside that of phoenix_assets.sh, with the defaults of phx-ca-export:
#   PHX_IP            the address by which others reach the container
#   PHX_DOMAIN        the domain of the services
#   PHX_SERVICE_NAME  the name of the container's traefik_service, below the domain
#   PHX_SERVICE_PORT  the port of the container's traefik_service
#
# Assets: step-ca step
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=/dev/null
. "$here/phoenix_assets.sh"

phoenix_feature step_ca "$@"
export=$(PATH=$PATH:$here/../bin command -v phx-ca-export) ||
	phoenix_die "phx-ca-export: not found in PATH or $here/../bin: it makes the CA, whose root key stays on this host"
phoenix_install '
add_user step /home/step
if [ ! -d /home/step ]; then
	install -d -o step -g step -m 0700 /home/.step.new
	mv -T /home/.step.new /home/step
fi
' step-ca step
"$export" init --ctid "${ctid:?}" </dev/null
