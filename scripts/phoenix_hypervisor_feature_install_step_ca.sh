#!/bin/bash
# Installs step-ca and step in /usr/local/bin, and the system user step (home /home/step) that runs the CA; then has phx-ca-export make the
# CA, or take over the one that is there. Runs on the Proxmox host:
#   phoenix_hypervisor_feature_install_step_ca.sh CTID [CA_URL]
#
# Environment, beside that of phoenix_assets.sh: PHX_IP, the address by which others reach the container; PHX_DOMAIN, PHX_SERVICE_NAME and
# PHX_SERVICE_PORT, the domain, and the name and the port of the container's traefik_service, with the defaults of phx-ca-export.
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
