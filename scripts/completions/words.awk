# Reads what a program of phx prints for --help, and prints what may stand on its command line, for phoenix.bash and
# _phoenix: lines of four fields, separated by tabs.
#
#   option  --NAME  METAVARIABLE  DESCRIPTION
#   verb    WORD    -             DESCRIPTION    a word that is the first one
#   value   WORD    METAVARIABLE  DESCRIPTION    what may stand for a metavariable
#   place   -       METAVARIABLE  -              what the other words are
#
# A field that is empty is "-". Texts of several programs may come one after the other.
BEGIN { OFS = "\t" }

/^[A-Z]/ { section = $1; sub(/[:,]$/, "", section) }
/^$/ && section == "Usage" { section = "" }

# Lines such as "    phx-nginx apply [GATEWAY] [--token-file FILE]".
section == "Usage" {
	line = $0
	gsub(/\[|\]/, "", line)
	sub(/^Usage: */, "", line)
	n = split(line, word, " ")
	for (i = 1; i <= n; i++) {
		if (word[i] ~ /^--[a-z]/) option(word[i], word[i + 1], "")
		if (word[i] == program && word[i + 1] ~ /^[a-z]+$/) add("verb", word[i + 1], "-", "")
		if (word[i] ~ /^CTID(…)?$/ && word[i - 1] !~ /^--/) place["CTID"]
		if (word[i] ~ /^FILE(…)?$/ && word[i - 1] !~ /^--/) place["FILE"]
	}
	next
}

# Lines such as "    --config FILE         The configuration", and those that go on. The first description counts.
/^  +--[a-z][a-z-]*( |$)/ {
	last = ("option", $1) in described ? "" : $1
	described["option", $1]
	option($1, $2, rest(meta($2) == "-" ? 2 : 3))
	next
}
/^                    / && last != "" {
	text = description["option", last]
	description["option", last] = text (text == "" ? "" : " ") rest(1)
	next
}
{ last = "" }
# Lines such as "    start, restart    what the containers depend on is started first".
section ~ /^(Verbs|Actions|Rotation)$/ && /^  (  )?[A-Za-z]/ && match($0, /[a-zA-Z]  +/) {
	words = substr($0, 1, RSTART)
	text = substr($0, RSTART + RLENGTH)
	n = split(words, word, /[ ,]+/)
	for (i = 1; i <= n; i++) {
		if (word[i] == "") continue
		if (section == "Verbs") add("verb", word[i], "-", text)
		if (section == "Actions") add("value", word[i], "ACTION", text)
		if (section == "Rotation") add("value", word[i], "STEP", text)
	}
}

function meta(word) { return word ~ /^[A-Z]+$/ && word != "OPTIONS" || word ~ /^[a-z]+\|/ ? word : "-" }

function option(name, value, text) {
	value = meta(value)
	# The usage line has the values of "--format FORMAT", and the list of options the description.
	if (("option", name) in of && (value == "-" || of["option", name] ~ /\|/)) value = of["option", name]
	add("option", name, value, text)
}

function add(kind, word, value, text) {
	if (!((kind, word) in of)) order[++count] = kind SUBSEP word
	of[kind, word] = value
	if (description[kind, word] == "") description[kind, word] = text
}

# rest returns the line from a field on.
function rest(from, i, text) {
	for (i = from; i <= NF; i++) text = text (i > from ? " " : "") $i
	return text
}

END {
	for (i = 1; i <= count; i++) {
		split(order[i], entry, SUBSEP)
		text = description[entry[1], entry[2]]
		print entry[1], entry[2], of[entry[1], entry[2]], text == "" ? "-" : text
	}
	for (what in place) print "place", "-", what, "-"
}
