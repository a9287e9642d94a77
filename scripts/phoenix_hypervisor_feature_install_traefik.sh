#!/bin/bash
# Installs traefik as /usr/local/bin/traefik, and the system user traefik. Runs on the Proxmox host:
#   phoenix_hypervisor_feature_install_traefik.sh CTID [CA_URL]
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/phoenix_assets.sh"

phoenix_feature traefik "$@"
phoenix_install '
add_user traefik /var/lib/traefik
' traefik
