package pipetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// bashCompletes prints what bash would complete the last of the words with: as words, or as what is left to readline.
const bashCompletes = `
. "$COMPLETIONS/phoenix.bash"
compopt() { echo "compopt $*"; }
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
spec=$(complete -p "${1##*/}")
[[ $spec == "complete -F _phx "* ]] || { echo "not completed: $spec"; exit 1; }
_phx "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
[[ ${#COMPREPLY[@]} -eq 0 ]] || printf '%s\n' "${COMPREPLY[@]}"
`

// zshCompletes completes each line of the file lines in a zsh that has a terminal of its own: between BEGIN and END it
// prints, for each call of compadd, the words that match, and what is shown for all of them where that is something
// else.
const zshCompletes = `
zmodload zsh/zpty
zpty shell 'zsh -f -i'
zpty -w shell '. ./setup.zsh'
zpty -r shell out '*ALL LINES*'
print -r -- "$out"
`

const zshSetup = `
fpath=($COMPLETIONS $fpath)
autoload -Uz compinit
compinit -u -D
compadd() {
	local -a hits shown parsed
	zparseopts -E -a parsed O: A: D: d:=shown
	if [[ $parsed == *-[OAD]* ]]; then builtin compadd "$@"; return; fi
	builtin compadd -A hits "$@"
	print
	(( ! $#hits )) || print -rl -- $hits
	[[ -z $shown || $* != *-l* ]] || print -rl -- ${(P)shown[2]}
	builtin compadd "$@"
}
_files() { print "\nfiles $*" }
lines=("${(@f)$(<lines)}")
next-line() {
	[[ -z $current ]] || print "\nEND"
	if (( ! $#lines )); then
		print ALL LINES
		BUFFER=exit
		zle accept-line
		return
	fi
	current=$lines[1]
	shift lines
	BUFFER=$current CURSOR=$#current
	print "\nBEGIN"
	zle -U $'\t\C-g'
}
zle -N zle-line-init next-line
zle -N next-line
bindkey '^G' next-line
bindkey '^I' complete-word
`

var (
	wordBreak = regexp.MustCompile(`[=:]|[^ =:]+`)
	terminal  = regexp.MustCompile(`\x1b\[[?0-9;]*[a-zA-Z]|[\r\a]`)
)

// completed returns for each line the sorted words by which a shell completes its last one, and "files" or
// "directories" where the shell itself does. Of containers also "CTID  (NAME)" is returned, where that is shown.
func completed(t *testing.T, shell, dir string, lines ...string) [][]string {
	t.Helper()
	run := func(args ...string) string {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		for name, value := range environment(dir) {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		cmd.Env = append(cmd.Env, "TERM=dumb", "LC_ALL=C.UTF-8", "HOME="+dir, "COMPLETIONS="+repo+"/scripts/completions",
			"PATH="+dir+"/bin:"+bin+":"+repo+"/scripts:"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return terminal.ReplaceAllString(string(out), "")
	}
	var outs []string
	if shell == "zsh" {
		writeFile(t, filepath.Join(dir, "lines"), strings.Join(lines, "\n"), 0o644)
		writeFile(t, filepath.Join(dir, "setup.zsh"), zshSetup, 0o644)
		for _, out := range strings.Split(run("zsh", "-f", "-c", zshCompletes), "\nBEGIN\n")[1:] {
			out, _, _ = strings.Cut(out, "\nEND\n")
			outs = append(outs, out)
		}
	} else {
		for _, line := range lines {
			words := wordBreak.FindAllString(line, -1)
			if strings.HasSuffix(line, " ") {
				words = append(words, "")
			}
			outs = append(outs, run(append([]string{"bash", "-c", bashCompletes, "bash"}, words...)...))
		}
	}
	if len(outs) != len(lines) {
		t.Fatalf("%d answers to %d lines", len(outs), len(lines))
	}
	all := make([][]string, len(lines))
	for i, out := range outs {
		for word := range strings.SplitSeq(out, "\n") {
			id, _, isShown := strings.Cut(word, "  (")
			switch {
			case word == "compopt -o default", word == "files ":
				word = "files"
			case word == "compopt -o dirnames", word == "files -/":
				word = "directories"
			case isShown:
				if shell == "bash" { // which shows what it matches, and only that
					all[i] = append(all[i], id)
				}
			case strings.TrimSpace(word) == "", word == lines[i], strings.Contains(word, "  "):
				continue
			}
			all[i] = append(all[i], word)
		}
		slices.Sort(all[i])
		all[i] = slices.Compact(all[i])
	}
	return all
}

func writeFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// shells runs f for bash, and for zsh where it is installed.
func shells(t *testing.T, f func(t *testing.T, shell, dir string)) {
	for _, shell := range []string{"bash", "zsh"} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(shell); err != nil {
				t.Skip(err) // scripts/test installs it
			}
			dir := t.TempDir()
			if err := makeHost(dir); err != nil {
				t.Fatal(err)
			}
			f(t, shell, dir)
		})
	}
}

func TestCompletion(t *testing.T) {
	tests := []struct {
		line string
		want string
	}{
		{"phoenix st", "start status stop"},
		{"phoenix status 10", "101 102 103"},
		{"phoenix status 101 9", "900"},
		{"phoenix --keep", "--keep-going"},
		{"phoenix --rotate-root ", "certificates drop trust"},
		{"phoenix --rotate-root=t", "trust"},
		{"phoenix --rerun 101,9", "900"},
		{"phoenix --config ", "files"},
		{"phoenix --config=x", "files"},
		{"phoenix --scripts /a:/", "directories"},
		{"phoenix --every 1", ""},
		{"phoenix-cli Let", "LetsGo"},
		{"phoenix-cli stop 10", "101 102 103"},
		{"phx-plan --action ", "check create delete recreate restart start status stop"},
		{"phx-plan --action=re", "recreate restart"},
		{"phx-plan --answer ", "gateway proxy"},
		{"phx-plan --format d", "dnsmasq dot"},
		{"phx-plan --config missing.json 1", ""},
		{"phx-ca-export --ctid 10", "101 102 103"},
		{"phx-ca-export ", "init roots"},
		{"phx-nginx re", "render renew"},
		{"phx-fingerprint ", "files"},
	}
	var lines []string
	for _, test := range tests {
		lines = append(lines, test.line)
	}
	shells(t, func(t *testing.T, shell, dir string) {
		all := completed(t, shell, dir, lines...)
		if !slices.Contains(all[1], "101  (Nginx-Phoenix)") {
			t.Errorf("names are not shown: %q", all[1])
		}
		if shell == "bash" { // where a name stands for its id
			if got := completed(t, shell, dir, "phoenix status Step")[0]; !slices.Equal(got, []string{"103"}) {
				t.Errorf("by its name: %q", got)
			}
		}
		for i, got := range all {
			got = slices.DeleteFunc(got, func(word string) bool { return strings.Contains(word, "  (") })
			if have := strings.ReplaceAll(strings.Join(got, " "), "101,", ""); have != tests[i].want {
				t.Errorf("%q: %q, want %q", lines[i], have, tests[i].want)
			}
		}
	})
}

// Every option of every program is completed, and no other.
func TestCompletionHasEveryOption(t *testing.T) {
	inText := regexp.MustCompile(`(?m)^ +(--[a-z-]+)\b`)
	programs, err := filepath.Glob(bin + "/phx-*")
	if err != nil || len(programs) != 6 {
		t.Fatalf("%q, %v", programs, err)
	}
	shells(t, func(t *testing.T, shell, dir string) {
		var lines []string
		for _, path := range programs {
			lines = append(lines, filepath.Base(path)+" --")
		}
		for i, got := range completed(t, shell, dir, lines...) {
			help, err := exec.Command(programs[i], "--help").Output()
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, m := range inText.FindAllStringSubmatch(string(help), -1) {
				want = append(want, m[1])
			}
			slices.Sort(want)
			got = slices.DeleteFunc(got, func(word string) bool { return !strings.HasPrefix(word, "--") })
			if want = slices.Compact(want); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", lines[i], got, want)
			}
		}
	})
}

// Nothing that the configuration or the line says is run, nor acts on the terminal.
func TestCompletionRunsNothingOfOthers(t *testing.T) {
	const hostile = "$(touch${IFS}pwned)`touch${IFS}pwned`;touch${IFS}pwned;\x1b[31m'\"*?[a"
	shells(t, func(t *testing.T, shell, dir string) {
		shipped, err := os.ReadFile(filepath.Join(dir, "phoenix_lxc_configs.json"))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, "hostile.json"),
			strings.Replace(string(shipped), "Nginx-Phoenix", "$(touch pwned)`touch pwned`", 1), 0o644)
		lines := []string{"phx-plan --config hostile.json 10"}
		for _, file := range []string{"$(touch${IFS}pwned)", "`touch${IFS}pwned`", "'$(touch${IFS}pwned)'",
			"~/$(touch${IFS}pwned)", `"$(touch${IFS}pwned)"`} {
			lines = append(lines, "phx-plan --config "+file+" ", "phoenix --config="+file+" --rerun "+file, "phoenix "+file)
		}
		got := strings.Join(completed(t, shell, dir, lines...)[0], " ")
		if strings.Contains(got, "touch") || !strings.Contains(got, "102") {
			t.Errorf("%q", got)
		}
		// A phx-plan that checks no names: the shells do not rely on it.
		writeFile(t, filepath.Join(dir, "rows"),
			"CTID NAME\n101 "+hostile+"\n102 "+hostile+"\n$(touch${IFS}pwned) x\n", 0o644)
		writeFile(t, filepath.Join(dir, "bin/phx-plan"),
			"#!/bin/sh\n[ $1 != --help ] || exec "+bin+"/phx-plan --help\ncat rows\n", 0o755)
		got = strings.Join(completed(t, shell, dir, "phx-plan 10")[0], " ")
		if !strings.Contains(got, "101") || strings.ContainsAny(got, "$`;\x1b") {
			t.Errorf("%q", got)
		}
		if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
			t.Error("it was run")
		}
	})
}
