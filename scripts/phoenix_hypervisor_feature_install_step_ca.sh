#!/bin/bash
# Installs step-ca and step in /usr/local/bin, and the system user step (home /home/step) that runs the CA. Runs on the Proxmox host:
#   phoenix_hypervisor_feature_install_step_ca.sh CTID [CA_URL]
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/phoenix_assets.sh"

phoenix_feature step_ca "$@"
phoenix_install '
add_user step /home/step
[ -d /home/step ] || install -d -o step -g step -m 0700 /home/step
' step-ca step
