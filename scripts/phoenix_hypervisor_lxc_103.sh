#!/bin/bash
# Brings up the Smallstep CA. Runs as root inside its container, which has the features base_setup and step_ca:
#
#   phoenix_hypervisor_lxc_103.sh CTID
#
# Environment: PHX_IP, the address by which other containers reach this one; PHX_DOMAIN, default internal.thinkheads.ai;
# PHX_NAME, the container's name, default its host name.
# Port and name are those of traefik_service in phoenix_lxc_configs.json, if the working directory has that file; else 9000 and ca.
#
# Everything lies in /home/step: certs/root_ca.crt, config/ca.json, secrets/ca_password (of the two CA keys) and
# secrets/provisioner_password (of the JWK provisioner `phoenix`). The passwords are made here and stay here.
# A second run changes nothing. A CA that exists is never replaced; the address and the names that it serves follow the environment.
set -euo pipefail
umask 077

home=/home/step
config=$home/config/ca.json
root=$home/certs/root_ca.crt
unit=/etc/systemd/system/step-ca.service
# There while the running service may not have what is on disk; in /run, because a reboot settles that too.
restart=/run/step-ca.restart

say() { printf 'step-ca: %s: %s\n' "$ctid" "$*"; }
die() {
  say "$*" >&2
  exit 1
}

# step takes every flag from STEP_* variables too, so it starts with these alone.
clean() { env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=$home STEPPATH=$home "$@"; }
as_step() { clean setpriv --reuid step --regid step --clear-groups -- "$@"; }

# There is no jq in a minimal container. An unescaped quote cannot stand inside a JSON string, so this finds the key and nothing else.
# service KEY FORM-OF-ITS-VALUE
service() {
  local file=phoenix_lxc_configs.json
  [[ ! -e $file ]] || tr -d ' \t\r\n' <"$file" | grep -o '"traefik_service":{[^{}]*}' | grep -o "\"$1\":$2" | cut -d: -f2 | tr -d '"' || :
}

# Makes the CA in $home/.new. The rename to .ready decides that this is the CA; what comes after it can be repeated.
create() {
  local out
  # shellcheck disable=SC2016 # expanded by the inner shell
  out=$(as_step /bin/sh -euc '
    umask 077
    home=$1 port=$2 names=$3
    cd "$home"
    rm -rf .new
    mkdir -p .new/secrets
    for password in ca provisioner; do
      head -c 32 /dev/urandom | base64 >".new/secrets/${password}_password"
    done
    set --
    for name in $names; do set -- "$@" --dns "$name"; done
    STEPPATH=$home/.new step ca init --deployment-type standalone --name "Phoenix CA" "$@" --address ":$port" --with-ca-url "https://localhost:$port" \
      --provisioner phoenix --acme \
      --password-file .new/secrets/ca_password --provisioner-password-file .new/secrets/provisioner_password
    sed -i "s|$home/\.new/|$home/|g" .new/config/ca.json .new/config/defaults.json
    sync -f .new
    mv -T .new .ready
  ' sh "$home" "$port" "${names[*]}" 2>&1 </dev/null) || die "step ca init failed: $out"
}

settle() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  as_step /bin/sh -euc '
    cd "$1/.ready"
    for part in certs db secrets templates; do [ ! -e "$part" ] || mv -T "$part" "../$part"; done
    [ ! -e config ] || mv -T config ../config
    rmdir ../.ready
  ' sh "$home" || die "$home/.ready: the new CA cannot be moved into $home"
}

# Prints ca.json with the wanted address and names; fails if it is not in the form in which step writes it.
wanted_config() {
  awk -v address=":$port" -v names="${names[*]}" '
    /^\t"address": "[^"]*",$/ { print "\t\"address\": \"" address "\","; found++; next }
    /^\t"dnsNames": \[$/ {
      print
      n = split(names, name, " ")
      for (i = 1; i <= n; i++) print "\t\t\"" name[i] "\"" (i < n ? "," : "")
      found++
      skip = 1
      next
    }
    skip && /^\t\],$/ { skip = 0 }
    !skip
    END { exit !(found == 2 && !skip) }
  ' "$config"
}

# No option here needs a mount namespace: an unprivileged container without nesting cannot make one (226/NAMESPACE).
wanted_unit() {
  cat <<UNIT
[Unit]
Description=Smallstep CA
Documentation=https://smallstep.com/docs/step-ca
After=network.target
StartLimitIntervalSec=30
StartLimitBurst=3

[Service]
Type=exec
User=step
Group=step
UMask=0077
Environment=STEPPATH=$home
WorkingDirectory=$home
ExecStart=/usr/local/bin/step-ca $config --password-file $home/secrets/ca_password
ExecReload=/bin/kill -HUP \$MAINPID
Restart=on-failure
RestartSec=5
TimeoutStopSec=30
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
UNIT
}

# Waits until the CA answers and proves itself with its own root, for 60 s at most.
healthy() {
  local end=$((SECONDS + 60))
  while ((SECONDS < end)); do
    if [[ $(clean timeout 5 step ca health --ca-url "$url" --root "$root" 2>/dev/null </dev/null) == ok ]]; then
      return 0
    fi
    ! systemctl is-failed -q step-ca || return 1
    sleep 0.3
  done
  return 1
}

if [[ $# -ne 1 || ! $1 =~ ^[1-9][0-9]{2,8}$ ]]; then
  echo "usage: ${0##*/} CTID" >&2
  exit 2
fi
ctid=$1
domain=${PHX_DOMAIN:-internal.thinkheads.ai} name=${PHX_NAME:-$(hostname)}
[[ $domain =~ ^[A-Za-z0-9.-]+$ ]] || die "PHX_DOMAIN: not a domain: '$domain'"
[[ $name =~ ^[A-Za-z0-9.-]+$ ]] || die "PHX_NAME: not a host name: '$name'"
[[ ${PHX_IP:-} =~ ^[0-9a-fA-F]*[.:][0-9a-fA-F.:]*$ ]] || die "PHX_IP: not an address: '${PHX_IP:-}': set it to the one by which other containers reach this one"
[[ $(id -u) == 0 ]] || die "must run as root"
[[ -d $home && -x /usr/local/bin/step && -x /usr/local/bin/step-ca && $(id -u step 2>/dev/null) ]] ||
  die "step-ca, step or the user step is missing in this container: its features must have step_ca"

port=$(service port '[0-9]*')
port=${port:-9000}
label=$(service name '"[a-z0-9-]*"')
names=("${label:-ca}.$domain" "$PHX_IP" "$name" localhost 127.0.0.1)
if [[ $PHX_IP == *:* ]]; then url=https://[$PHX_IP]:$port; else url=https://$PHX_IP:$port; fi

# An earlier run goes on in here when its pct was killed.
exec 9>/run/phx.lock
flock -w 300 9 || die "something else has been installing in this container for 5 minutes: try again when it is done"

if [[ -e $home/.ready ]]; then
  settle
  say "finished an interrupted run: the CA is in place"
elif [[ -e $config ]]; then
  say "the CA is already there"
else
  for part in certs secrets config db; do
    [[ ! -e $home/$part ]] || die "$home/$part is there without $config: this was a CA; bring its files back, or move them away for a new one"
  done
  create
  settle
  say "created the CA, root $(clean step certificate fingerprint "$root")"
fi
for file in "$root" "$home"/certs/intermediate_ca.crt "$home"/secrets/{intermediate_ca_key,ca_password,provisioner_password}; do
  [[ -s $file ]] || die "$file: missing or empty, while $config is there: bring it back from a snapshot"
done

if ! wanted=$(wanted_config); then
  say "warning: $config is not in the form in which step writes it: its address and dnsNames are left alone" >&2
elif [[ $wanted != "$(<"$config")" ]]; then
  : >"$restart"
  # shellcheck disable=SC2016 # expanded by the inner shell
  as_step /bin/sh -euc 'umask 077; cat >"$1.new"; ln -f "$1" "$1.old"; mv -T "$1.new" "$1"' sh "$config" <<<"$wanted"
  say "changed the CA's address and names: :$port ${names[*]}"
fi

if [[ "$(wanted_unit)" != "$(cat "$unit" 2>/dev/null)" ]]; then
  : >"$restart"
  wanted_unit >"$unit.new"
  chmod 0644 "$unit.new"
  mv -T "$unit.new" "$unit"
  say "wrote $unit"
fi
[[ ! -e $restart ]] || systemctl daemon-reload
systemctl is-enabled -q step-ca 2>/dev/null || systemctl enable -q step-ca

if [[ ! -e $restart ]] && systemctl is-active -q step-ca; then
  # The program was replaced under the running service.
  [[ $(readlink "/proc/$(systemctl show -P MainPID step-ca)/exe") != *' (deleted)' ]] || : >"$restart"
fi
if [[ -e $restart ]] || ! systemctl is-active -q step-ca; then
  systemctl reset-failed step-ca 2>/dev/null || :
  systemctl restart step-ca || :
  say "started step-ca"
else
  say "step-ca is already running"
fi

if ! healthy; then
  # step-ca logs the one-time tokens that it was shown.
  journalctl -u step-ca -n 20 --no-pager -o cat | sed 's/ott=[^ ]*/ott=…/' >&2 || :
  if [[ -e $config.old ]]; then
    as_step mv -T "$config.old" "$config"
    systemctl reset-failed step-ca 2>/dev/null || :
    systemctl restart step-ca || :
    die "step-ca did not get healthy with its new address and names: the former $config is back in place"
  fi
  die "step-ca did not get healthy at $url: its last messages stand above"
fi
rm -f -- "$restart" "$config.old"
say "healthy at $url"
