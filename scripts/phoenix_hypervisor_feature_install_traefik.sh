#!/bin/bash
# Usage: phoenix_hypervisor_feature_install_traefik.sh CTID [CA_URL]
#
# Installs traefik as /usr/local/bin/traefik, and adds the system user traefik. Runs on the Proxmox host, with the
# environment variables of phoenix_assets.sh.
#
# Assets: traefik
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/phoenix_assets.sh"

phoenix_feature traefik "$@"
phoenix_install '
add_user traefik /var/lib/traefik
' traefik
