#!/bin/bash
# Installs what every container needs, as far as it is missing. Runs on the Proxmox host:
#   phoenix_hypervisor_feature_install_base_setup.sh CTID [CA_URL]
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/phoenix_assets.sh"

phoenix_feature base_setup "$@"

# shellcheck disable=SC2016 # expanded in the container
phoenix_exec '
missing=
for package; do
  [ "$(dpkg-query -W -f "\${db:Status-Status}" "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
  say "already installed: $*"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
timeout -k 10 300 dpkg --configure -a >/dev/null || die "dpkg cannot finish what was interrupted: run dpkg --configure -a in the container"
end=$(($(date +%s) + 60))
until out=$(timeout -k 10 120 apt-get -q -o APT::Update::Error-Mode=any -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 update 2>&1); do
  [ "$(date +%s)" -lt "$end" ] || die "no package lists after 60 s, missing are:$missing: $out"
  sleep 2
done
# shellcheck disable=SC2086
out=$(timeout -k 10 600 apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 install $missing 2>&1) || die "cannot install$missing: $out"
say "installed$missing"
' ca-certificates curl iproute2 netbase openssl procps </dev/null
