#!/bin/bash
# Usage: phoenix_hypervisor_feature_install_trusted_ca.sh CTID [CA_URL]
#
# Puts the root certificate of the CA, as this host has pinned it, into the container's trust store: both of them while
# the root is being rotated, and none that this script has put there and is not pinned any more. Runs on the Proxmox
# host, with phoenix_assets.sh. The container depends on that of the CA, and has update-ca-certificates (Debian, Alpine,
# SUSE) or update-ca-trust (Fedora, Arch).
#
# Environment, beside that of phoenix_assets.sh:
#   PHX_CA_ROOTS  the SHA-256 of the pinned roots, joined by commas, as phx-lxc has found them; default: all
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=/dev/null
. "$here/phoenix_assets.sh"

phoenix_feature trusted_ca "$@"
export=$(PATH=$PATH:$here/../bin command -v phx-ca-export) ||
	phoenix_die "phx-ca-export: not found in PATH or $here/../bin: it knows which root is pinned"
IFS=, read -ra sums <<<"${PHX_CA_ROOTS-}"
roots=$("$export" roots "${sums[@]}" </dev/null) ||
	phoenix_die 'the root of the CA is not known: the reason stands above'

# Not by phoenix_exec: a container without systemd can trust a CA, too.
# shellcheck disable=SC2016 # expanded in the container
phoenix_inside /bin/sh -c 'set -eu
say() { echo "$0: $*"; }
die() { say "$*" >&2; exit 1; }
umask 077
exec 9>>/run/phx.lock
umask 022
flock -w 740 9 2>/dev/null || flock 9
if command -v update-ca-certificates >/dev/null; then
	update="update-ca-certificates"
	dirs="/etc/pki/trust/anchors /usr/local/share/ca-certificates"
elif command -v update-ca-trust >/dev/null; then
	update="update-ca-trust extract"
	dirs="/etc/pki/ca-trust/source/anchors /etc/ca-certificates/trust-source/anchors"
else
	die "neither update-ca-certificates nor update-ca-trust is there: have ca-certificates installed before," \
		"by the feature base_setup for one"
fi
for dir in $dirs; do
	[ ! -d "$dir" ] || break
done
mkdir -p "$dir" /etc/phx
# Exists while the trust store may not be that of the files.
pending=/etc/phx/trusted_ca.pending
new=$(mktemp -d /run/phx.XXXXXX)
trap "rm -rf \"\$new\"" EXIT
awk -v dir="$new" "/-----BEGIN/ { n++ } n { print >(dir \"/phx-root-\" n \".crt\") }"
[ -s "$new/phx-root-1.crt" ] || die "no certificate has arrived"
for file in "$dir"/phx-root-*.crt; do
	if [ -e "$file" ] && [ ! -e "$new/${file##*/}" ]; then
		: >"$pending"
		rm -f "$file"
	fi
done
for file in "$new"/phx-root-*.crt; do
	if ! cmp -s "$file" "$dir/${file##*/}"; then
		: >"$pending"
		cat "$file" >"$dir/.${file##*/}"
		mv -f "$dir/.${file##*/}" "$dir/${file##*/}"
	fi
done
if [ ! -e "$pending" ]; then
	say "already trusted"
	exit 0
fi
out=$($update 2>&1 </dev/null) || die "$update: $out"
for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
	[ -e "$bundle" ] || continue
	for file in "$new"/phx-root-*.crt; do
		grep -qxF "$(sed -n 3p "$file")" "$bundle" || die "$update has not put $dir/${file##*/} into $bundle: $out"
	done
done
rm -f "$pending"
say "trusts the CA now"
' "${phoenix_label:?}" <<<"$roots"
