# shellcheck shell=sh
# The half of phx-ca-export that runs as root in the CA's container. It reads commands from stdin, one a line, and
# answers each with one line: "ok …" or "error …". Files are sent in base64. The host decides what to do; this script
# does it, and changes the CA's files with the rights of the CA's user.
set -eu
umask 077
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

# The text that the host sends begins with these:
#   default      the home of a CA that phx makes
#   provisioner  the name of its provisioner of one-time tokens
#   settings     the file that says where a CA lies that phx has taken over
#   stale        a file that exists while the running service may not have loaded what is on disk; the application
#                script uses it too; it lies in /run, because a reboot starts the service with what is on disk
: "${default:?}" "${provisioner:?}" "${settings:?}" "${stale:?}"
limit=65536
home=$default config=$default/config/ca.json unit=step-ca.service locked=

ok() { printf 'ok %s\n' "$*"; }
error() { printf 'error %s\n' "$(printf '%s' "$*" | tr '\n' ' ' | head -c 2000)"; }

# Takes the lock of the container. When its pct is killed, an earlier run of this script still finishes its command.
lock() {
	[ -z "$locked" ] || return 0
	exec 9>/run/phx.lock
	if ! flock -w 300 9; then
		error "something else has been installing in this container for 5 minutes"
		return 1
	fi
	locked=yes
}

# Has a limit, so that no command holds the lock for longer than the next run waits for it.
systemctl() { timeout -k 10 60 systemctl "$@"; }

# step takes every flag from STEP_* variables too, so it starts with these alone.
clean() { env -i PATH="$PATH" HOME="$home" STEPPATH="$home" timeout -k 10 120 "$@"; }
as_ca() { clean setpriv --reuid "$(stat -c %u "$owner")" --regid "$(stat -c %g "$owner")" --clear-groups -- "$@"; }

# The configuration that the service of this name is started with.
unit_config() {
	dir=$(systemctl show -P WorkingDirectory "$unit" 2>/dev/null) || return 0
	for word in $(systemctl show -P ExecStart "$unit" | sed -n 's/.*argv\[\]=\([^;]*\);.*/\1/p'); do
		case $word in
		/*.json)
			echo "$word"
			return
			;;
		*.json)
			echo "${dir#!}/$word"
			return
			;;
		esac
	done
	for word in $(systemctl show -P Environment "$unit"); do
		case $word in
		STEPPATH=/*)
			echo "${word#STEPPATH=}/config/ca.json"
			return
			;;
		esac
	done
}

# Finds the CA of this container: kind and config.
find_ca() {
	kind=
	if [ -f "$settings" ]; then
		home=$(sed -n 's/^STEPPATH=//p' "$settings") config=$(sed -n 's/^CONFIG=//p' "$settings")
		kind=adopted
		return
	fi
	if [ -e "$default/.ready" ] && [ "$command" != peek ]; then
		lock && settle
		finished=yes
	fi
	named=$(unit_config)
	if [ -n "$named" ] && [ -f "$named" ]; then
		config=$(readlink -f "$named")
		if [ "$config" = "$(readlink -f "$default/config/ca.json")" ]; then
			kind=own config=$default/config/ca.json
		else
			kind=found
		fi
		return
	fi
	if [ -f "$config" ]; then
		kind=own
		return
	fi
	others=
	for place in /etc/step-ca/ssl /etc/step-ca /root/.step; do
		[ -f "$place/config/ca.json" ] || continue
		place=$(readlink -f "$place/config/ca.json")
		case " $others " in *" $place "*) ;; *) others="$others $place" ;; esac
	done
	# shellcheck disable=SC2086 # one word for each
	set -- $others
	case $# in
	0) ;;
	1)
		kind=found config=$1
		return
		;;
	*)
		kind=several config=$(echo "$*" | tr ' ' ,)
		return
		;;
	esac
	if [ -n "$named" ]; then
		kind=lost config=$named
		return
	fi
	kind=none
	for part in certs secrets config db; do
		[ ! -e "$default/$part" ] || kind=lost config=$default/config/ca.json
	done
}

look() {
	find_ca || return 0
	[ "$kind" = adopted ] || [ "$kind" = own ] || home=$default
	owner=$home
	[ "$kind" != adopted ] && [ "$kind" != found ] || owner=$config
	[ ! -e "$stale" ] || finished=stale
	rootkey=no
	[ ! -e "$home/secrets/root_ca_key" ] || rootkey=yes
	intermediates=$(find "$home/certs" "$home/secrets" -maxdepth 1 -name 'intermediate_ca*' 2>/dev/null |
		sort | tr '\n' ' ')
	ok "$kind" "$home" "$config" "$rootkey" "${finished:-no}" "$intermediates"
}

read_file() { # PATH
	if [ ! -f "$1" ]; then
		ok -
	elif [ "$(head -c $((limit + 1)) "$1" | wc -c)" -gt "$limit" ]; then
		error "$1: longer than $limit bytes"
	else
		ok "$(base64 -w0 <"$1")"
	fi
}

# Makes the CA's directory in $home/.new, without root and intermediate: those that step ca init makes are thrown away,
# because the host brings its own.
make() { # PORT NAME,NAME…
	owner=$home
	# shellcheck disable=SC2016 # expanded by the inner shell
	if out=$(as_ca /bin/sh -euc '
		umask 077
		cd "$1"
		rm -rf .new .old
		mkdir -p .new/secrets
		for password in ca provisioner thrown_away; do
			head -c 32 /dev/urandom | base64 >".new/secrets/${password}_password"
		done
		port=$2 names=$3 provisioner=$4
		set --
		IFS=,
		for name in $names; do set -- "$@" --dns "$name"; done
		STEPPATH=$PWD/.new step ca init --deployment-type standalone --name "Phoenix CA" "$@" \
			--address ":$port" --with-ca-url "https://127.0.0.1:$port" \
			--provisioner "$provisioner" --acme \
			--password-file .new/secrets/thrown_away_password \
			--provisioner-password-file .new/secrets/provisioner_password
		rm -rf .new/certs/* .new/secrets/*_key .new/secrets/thrown_away_password .new/config/defaults.json
		sed -i "s|$PWD/\.new/|$PWD/|g" .new/config/ca.json
	' sh "$home" "$1" "$2" "$provisioner" 2>&1 </dev/null); then
		read_file "$home/.new/config/ca.json"
	else
		error "step ca init failed: $out"
	fi
}

# Answers with a request for the certificate of an intermediate, whose key is made if it is not there.
csr() { # KEY
	password=$home/secrets/ca_password
	[ ! -e "$home/.new/secrets/ca_password" ] || password=$home/.new/secrets/ca_password
	# shellcheck disable=SC2016 # expanded by the inner shell
	if out=$(as_ca /bin/sh -euc '
		umask 077
		rm -f "$1.csr" "$1.phx"
		if [ ! -s "$1" ]; then
			step certificate create --csr --kty EC --crv P-256 --password-file "$2" \
				"Phoenix CA Intermediate" "$1.csr" "$1.phx"
			sync "$1.phx"
			mv -T "$1.phx" "$1"
		else
			step certificate create --csr --key "$1" --password-file "$2" "Phoenix CA Intermediate" "$1.csr"
		fi
	' sh "$1" "$password" 2>&1 </dev/null); then
		read_file "$1.csr"
		as_ca rm -f "$1.csr"
	else
		error "the request of an intermediate cannot be made: $out"
	fi
}

put() { # PATH CONTENT
	# shellcheck disable=SC2016 # expanded by the inner shell
	if out=$(printf %s "$2" | as_ca /bin/sh -euc '
		umask 077
		mkdir -p "$(dirname "$1")"
		base64 -d >"$1.phx"
		[ ! -e "$1" ] || chmod --reference "$1" "$1.phx"
		sync "$1.phx"
		mv -T "$1.phx" "$1"
		sync "$(dirname "$1")"
	' sh "$1" 2>&1); then ok; else error "$1 cannot be written: $out"; fi
}

# With the rename to .ready this is the CA; what comes after it is repeated by the next run.
ready() {
	# shellcheck disable=SC2016 # expanded by the inner shell
	if out=$(as_ca /bin/sh -euc 'cd "$1" && sync -f .new && mv -T .new .ready && sync -f .' sh "$home" 2>&1 &&
		settle 2>&1); then
		ok
	else
		error "the new CA cannot be put in place: $out"
	fi
}

settle() {
	owner=$default
	# shellcheck disable=SC2016 # expanded by the inner shell
	as_ca /bin/sh -euc '
		cd "$1/.ready"
		for part in certs db secrets templates; do [ ! -e "$part" ] || mv -T "$part" "../$part"; done
		[ ! -e config ] || mv -T config ../config
		cd ..
		rmdir .ready
	' sh "$default"
}

served() { clean timeout 5 step certificate fingerprint --insecure "$1" 2>/dev/null </dev/null || :; }

healthy() { # URL ROOT
	end=$(($(date +%s) + 15))
	until [ "$(clean timeout 5 step ca health --ca-url "$1" --root "$2" 2>/dev/null </dev/null)" = ok ]; do
		[ "$(date +%s)" -lt "$end" ] || return 1
		sleep 0.2
	done
}

# Has the service load its configuration, without refusing a connection where that is possible. A new certificate of
# the server shows that it did.
reload() { # URL ROOT
	if ! systemctl is-active -q "$unit"; then
		rm -f "$stale"
		ok stopped
		return
	fi
	before=$(served "$1") now=
	systemctl reload "$unit" 2>/dev/null || :
	end=$(($(date +%s) + 5))
	while [ "$(date +%s)" -lt "$end" ]; do
		now=$(served "$1")
		[ -z "$now" ] || [ "$now" = "$before" ] || break
		now=
		sleep 0.1
	done
	if [ -z "$now" ]; then
		systemctl restart "$unit" 2>/dev/null || :
	fi
	if healthy "$1" "$2"; then
		rm -f "$stale"
		if [ -n "$now" ]; then ok reloaded; else ok restarted; fi
	else
		error "step-ca does not answer at $1 with a certificate of $2"
	fi
}

# Answers with the first file that has the password of an encrypted key.
password() { # KEY PATH…
	key=$1
	shift
	for path; do
		if [ -f "$path" ] &&
			printf %s "$key" | clean step crypto jwe decrypt --password-file "$path" >/dev/null 2>&1; then
			ok "$path"
			return
		fi
	done
	ok -
}

# Writes where the CA lies that is taken over.
adopt() { # CONTENT
	mkdir -p "${settings%/*}" "$default/certs"
	chmod 755 "${settings%/*}"
	printf %s "$1" | base64 -d >"$settings.phx"
	chmod 644 "$settings.phx"
	sync "$settings.phx"
	mv -T "$settings.phx" "$settings"
	ok
}

while read -r command a b rest; do
	case $command in
	look | peek | read | health) ;;
	*) lock || continue ;;
	esac
	case $command in
	look | peek) look ;; # peek changes nothing
	health)
		if out=$(clean timeout 5 step ca health --ca-url "$a" --root "$b" 2>&1 </dev/null) && [ "$out" = ok ]; then
			ok
		else
			error "$out"
		fi
		;;
	read) read_file "$a" ;;
	make) make "$a" "$b" ;;
	csr) csr "$a" ;;
	put) put "$a" "$b" ;;
	keep) # a copy beside the file, once
		if [ -e "$a.before-phx" ] || out=$(as_ca cp -p "$a" "$a.before-phx" 2>&1); then ok; else error "$out"; fi
		;;
	changing) # until reload
		: >"$stale"
		ok
		;;
	ready) ready ;;
	reload) reload "$a" "$b" ;;
	remove) if out=$(as_ca rm -f "$a" 2>&1); then ok; else error "$out"; fi ;;
	password)
		# shellcheck disable=SC2086 # one word for each
		password "$a" $b $rest
		;;
	link)
		[ -e "$b" ] || { mkdir -p "$(dirname "$b")" && ln -s "$a" "$b"; }
		ok
		;;
	adopt) adopt "$a" ;;
	*) error "unknown command $command" ;;
	esac
done
