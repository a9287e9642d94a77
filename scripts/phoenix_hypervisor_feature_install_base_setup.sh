#!/bin/bash
# Usage: phoenix_hypervisor_feature_install_base_setup.sh CTID [CA_URL]
#
# Installs the packages that every container needs, and the locale en_US.UTF-8, as far as they are missing. The locale
# becomes the default where there is none. Runs on the Proxmox host, with the environment variables of
# phoenix_assets.sh.
#
# Environment, beside that of phoenix_assets.sh:
#   PHX_APT_PROXY     the proxy by which apt gets the packages, http://HOST:PORT; unset: as the container is set
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/phoenix_assets.sh"

phoenix_feature base_setup "$@"
proxy=${PHX_APT_PROXY-}
[[ -z $proxy || $proxy =~ ^http://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+]):[0-9]{1,5}$ ]] ||
	phoenix_die "PHX_APT_PROXY=$proxy: must be http://HOST:PORT"

# shellcheck disable=SC2016 # expanded in the container
phoenix_exec '
proxy=$1
shift
missing=
for package; do
	[ "$(dpkg-query -W -f "\${db:Status-Status}" "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
# locale-gen makes what is listed, now and when the package is renewed.
set_locale() {
	if ! locale -a 2>/dev/null | grep -qi "^en_US\.utf-\?8$"; then
		grep -qs "^en_US\.UTF-8 " /etc/locale.gen || echo "en_US.UTF-8 UTF-8" >>/etc/locale.gen
		out=$(limited locale-gen 2>&1 </dev/null) || die "locale-gen: $out"
		say "made the locale en_US.UTF-8"
	fi
	if ! grep -qs "^LANG=" /etc/default/locale; then
		echo LANG=en_US.UTF-8 >>/etc/default/locale
		say "the default locale is en_US.UTF-8"
	fi
}
if [ -z "$missing" ]; then
	say "already installed: $*"
	set_locale
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# Without the options of dpkg, it asks about a file that was edited.
# shellcheck disable=SC2086
packages() {
	apt() { limited apt-get -q ${proxy:+-o "Acquire::http::Proxy=$proxy"} "$@"; }
	limited dpkg --force-confdef --force-confold --configure -a &&
		apt -o APT::Update::Error-Mode=any \
			-o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 update &&
		apt -y --no-install-recommends install $missing
}
begin=$(date +%s)
until out=$(packages 2>&1 </dev/null); do
	# The network may come up after systemd. Another program that installs packages, such as a fresh system that
	# updates itself, holds a lock of dpkg or apt; the option of apt that waits covers only one of their locks.
	case $out in
	*"Could not get lock"* | *"Unable to lock"* | *"frontend lock"* | *"database lock"*) patience=480 ;;
	*) patience=60 ;;
	esac
	[ $(($(date +%s) - begin)) -lt "$patience" ] || die "cannot install after $patience s:$missing: $out"
	sleep 2
done
say "installed$missing"
set_locale
' "$proxy" ca-certificates curl git iproute2 jq locales netbase openssl procps vim wget </dev/null
