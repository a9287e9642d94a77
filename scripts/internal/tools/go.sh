# shellcheck shell=bash
# use_go makes sure that the `go` in PATH is of the version that go.mod names, or a later one. Otherwise it puts the Go
# that go.sum beside this file pins first in PATH, for the script that calls it and what that starts. It is downloaded
# as a Go module by any Go that there is, from where GOPROXY says, must have the hash of go.sum, and stays in
# ${XDG_CACHE_HOME:-$HOME/.cache}/phx. Where there is no Go, root installs that of Debian first.
# What fails ends the calling script, with 1.
use_go() {
	local here wanted arch version cache home lock
	here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
	wanted=$(sed -n 's/^go //p' "$here/../../../go.mod")
	if printf '%s\n' "$wanted" "$(go_version)" | sort --check=quiet --version-sort; then return; fi

	arch=$(uname -m | sed 's/^x86_64$/amd64/; s/^aarch64$/arm64/')
	version=$(sed -n "s/^golang.org\/toolchain \(v[^ /]*\.linux-$arch\) .*/\1/p" "$here/go.sum")
	[[ $version ]] || go_fails "this machine needs Go $wanted, and none is pinned for $arch"
	cache=$(realpath -m -- "${XDG_CACHE_HOME:-$HOME/.cache}/phx")
	home=$cache/${version#*-}
	unset GOROOT
	if [[ ! -x $home/bin/go ]]; then
		mkdir -p "$cache"
		exec {lock}>"$cache/go.lock"
		flock "$lock"
		[[ -x $home/bin/go ]] || fetch_go
		exec {lock}>&-
	fi
	PATH=$home/bin:$PATH
	export PATH GOTOOLCHAIN=local
}

# go_version prints the version of the `go` in PATH as numbers; nothing where there is none.
go_version() {
	# Forms: go1.26.1, go1.26.1 X:nodwarf5, devel go1.27-8c3a42.
	(cd / && GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) | sed 's/.*go//; s/[ -].*//'
}

# fetch_go is a part of use_go, with its variables.
fetch_go() {
	local new=$cache/go.new
	if ! command -v go >/dev/null; then
		if [[ $EUID -ne 0 ]]; then go_fails 'go: not found, and only root can install it'; fi
		echo "${0##*/}: installing Debian's golang-go" >&2
		export DEBIAN_FRONTEND=noninteractive
		{
			apt-get -q update &&
				apt-get -q -y --no-install-recommends --no-remove install ca-certificates golang-go
		} >&2 </dev/null || go_fails "Debian's golang-go could not be installed"
	fi
	echo "${0##*/}: fetching Go: golang.org/toolchain $version" >&2
	rm -rf --one-file-system "$new"
	mkdir -p "$new/module"
	echo 'module fetch' >"$new/module/go.mod"
	cp "$here/go.sum" "$new/module/"
	(
		cd "$new/module"
		# Late releases of Go ask the checksum database about this module even where go.sum has its hash.
		GOTOOLCHAIN=local GOWORK=off GOFLAGS=-modcacherw GOMODCACHE=$new/cache GONOSUMDB=golang.org/toolchain \
			go mod download "golang.org/toolchain@$version" >&2
	) || go_fails "golang.org/toolchain $version could not be fetched by Go $(go_version)"
	# Files of a module are not executable, and its go.mod files of other modules have an underscore.
	new=$new/cache/golang.org/toolchain@$version
	chmod +x "$new"/bin/* "$new"/pkg/tool/*/*
	cp "$new/src/_go.mod" "$new/src/go.mod"
	cp "$new/src/cmd/_go.mod" "$new/src/cmd/go.mod"
	rm -rf --one-file-system "$home"
	mv "$new" "$home"
	rm -rf --one-file-system "$cache/go.new"
}

go_fails() {
	echo "${0##*/}: $1: install Go $wanted or later and put it in PATH" >&2
	exit 1
}
