# shellcheck shell=bash
# Usage: . phoenix.bash
#
# Completion in bash of phoenix, phoenix-cli, phoenix-view and the programs of phx: verbs, options and their values as
# --help has them, and containers as the configuration has them. bash-completion finds it by its name, or by links that
# have the names of the other commands, in /usr/share/bash-completion/completions; without bash-completion it is to be
# read by ~/.bashrc. words.awk has to lie beside it.

_phx_dir=$(readlink -f "${BASH_SOURCE[0]}")
_phx_dir=${_phx_dir%/*}

# The words of a program: see words.awk. It is run by its path, and of the program's name comes what else is asked.
_phx_words() {
	local program=${1##*/}
	{
		"$1" --help
		[[ $program != phoenix ]] || phx-plan --help # whose options it takes
	} 2>/dev/null </dev/null | LC_ALL=C.UTF-8 awk -v "program=$program" -f "$_phx_dir/words.awk" 2>/dev/null
}

# CTID and name of each container of a configuration, or of that which phoenix would take. Names come from that file,
# and are only shown.
_phx_containers() {
	timeout 5 phx-plan --format table --action status --keep-going ${1:+--config "$1"} 2>/dev/null </dev/null |
		awk 'NR > 1 && $1 ~ /^[0-9]+$/ { gsub(/[^A-Za-z0-9._-]/, "?", $2); print $1, $2 }'
}

_phx() {
	local cur=$2 path dir words kind word value text i option='' first=1 config='' metavariable=-
	local before='' known=() matches=() names=() # before: of the word, what stays
	COMPREPLY=()
	path=$(type -P -- "$1") || path=$(type -P -- "${1##*/}") || return 0
	dir=$(readlink -f -- "$path")
	dir=${dir%/*}
	local PATH=$dir:$dir/../bin:$PATH # what was installed side by side is run side by side

	# The option whose value this is; bash splits words at = and :.
	i=$((COMP_CWORD - 1))
	if [[ $cur == [=:] ]]; then cur='' i=$COMP_CWORD; fi
	while [[ $i -gt 2 && ${COMP_WORDS[i]} == : ]]; do i=$((i - 2)); done
	[[ $i -lt 2 || ${COMP_WORDS[i]} != = ]] || i=$((i - 1))
	[[ $i -lt 1 || ${COMP_WORDS[i]} != --* ]] || option=${COMP_WORDS[i]}

	mapfile -t words < <(_phx_words "$path")
	for text in "${words[@]}"; do
		IFS=$'\t' read -r kind word value text <<<"$text"
		[[ $kind != option || $word != "$option" ]] || metavariable=$value
	done
	# Whether there is a verb, and which configuration it is. Of what would have to be evaluated nothing is taken.
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ $word == --config ]]; then
			[[ ${COMP_WORDS[i + 1]-} != = ]] || i=$((i + 1))
			config=${COMP_WORDS[i + 1]-}
			[[ $config != \~/* ]] || config=$HOME/${config#\~/}
			config=${config//[\"\'\\]/}
			i=$((i + 1))
		fi
		for text in "${words[@]}"; do
			IFS=$'\t' read -r kind value _ <<<"$text"
			[[ $kind != verb || $value != "$word" ]] || first=''
		done
	done

	case $metavariable in
	*'|'*) IFS='|' read -ra known <<<"$metavariable" ;;
	FILE | PROGRAM)
		compopt -o default 2>/dev/null
		return 0
		;;
	DIR | DIRS)
		compopt -o dirnames 2>/dev/null
		return 0
		;;
	CTIDS)
		before=${cur%"${cur##*,}"}
		metavariable=CTID
		;;
	esac
	if [[ $metavariable == - ]]; then
		for text in "${words[@]}"; do
			IFS=$'\t' read -r kind word value text <<<"$text"
			case $kind:$cur in
			option:-*) known+=("$word") ;;
			verb:[!-]* | verb:) [[ ! $first ]] || known+=("$word") ;;
			place:[!-]* | place:) metavariable=$value ;;
			esac
		done
		if [[ $metavariable == FILE ]]; then compopt -o default 2>/dev/null; fi
	else
		for text in "${words[@]}"; do
			IFS=$'\t' read -r kind word value text <<<"$text"
			[[ $kind != value || $value != "$metavariable" ]] || known+=("$word")
		done
	fi
	for word in "${known[@]}"; do
		[[ $word != "$cur"* ]] || COMPREPLY+=("$word")
	done
	[[ $metavariable == CTID ]] || return 0
	while read -r word text; do
		if [[ $before$word == "$cur"* || ! $before && $text == "$cur"* ]]; then # a name stands for its id
			matches+=("$before$word") names+=("$text")
		fi
	done < <(_phx_containers "$config")
	# Names are shown beside the ids where there are several; menus insert what is shown.
	for i in "${!matches[@]}"; do
		text=${matches[i]}
		[[ ${#matches[@]} -eq 1 || ${COMP_TYPE-9} -eq 37 ]] || text+="  (${names[i]})"
		COMPREPLY+=("$text")
	done
}

complete -F _phx phoenix phoenix-cli phoenix-view phx-plan phx-lxc phx-ca-export phx-fingerprint phx-nginx phx-traefik
