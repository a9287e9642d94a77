#!/bin/bash
# Usage: phoenix_hypervisor_feature_install_step_cli.sh CTID [CA_URL]
#
# Installs step as /usr/local/bin/step. Runs on the Proxmox host, with the environment variables of phoenix_assets.sh.
#
# Assets: step
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/phoenix_assets.sh"

phoenix_feature step_cli "$@"
phoenix_install '' step
