// bucketwarden completion: a script for a shell, after which it completes commands and flags. It is made from the same tables as
// help, so it cannot go out of date.
//
// Rules:
//   - It asks nobody: names of entries are not completed, since that would need the API server at each key.
//   - Only words of ours are in it, none of a user's.

package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
)

var completionCommand = command{
	name: "completion", args: "bash|zsh|fish", short: "Prints a script that completes commands and flags in a shell",
	long: `For bash and zsh put it into the startup file of the shell:

  source <(bucketwarden completion bash)
  source <(bucketwarden completion zsh)

For fish: bucketwarden completion fish > ~/.config/fish/completions/bucketwarden.fish`,
	examples: []string{"completion bash"},
	make: func(c *cli, _ *flag.FlagSet) func(context.Context, []string) error {
		return func(_ context.Context, args []string) error {
			if len(args) != 1 {
				return usageErrorf("name one shell: bash, zsh or fish")
			}
			script := map[string]func() string{"bash": c.completeBash, "zsh": c.completeZsh, "fish": c.completeFish}[args[0]]
			if script == nil {
				return usageErrorf("%q is not one of bash, zsh and fish", args[0])
			}
			return c.print("%s", script())
		}
	},
}

// flagsOf are the flags of a command.
func flagsOf(cmd *command) (flags []*flag.Flag) {
	fs, _ := (&cli{}).flagSet(cmd)
	fs.VisitAll(func(f *flag.Flag) { flags = append(flags, f) })
	return flags
}

// spelled is a flag as help spells it.
func spelled(f *flag.Flag) string {
	if len(f.Name) == 1 {
		return "-" + f.Name
	}
	return "--" + f.Name
}

// isSwitch says that a flag has no value.
func isSwitch(f *flag.Flag) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

func (c *cli) completeBash() string {
	var names []string
	var cases strings.Builder
	for i := range commands {
		names = append(names, commands[i].name)
		var flags []string
		for _, f := range flagsOf(&commands[i]) {
			flags = append(flags, spelled(f))
		}
		fmt.Fprintf(&cases, "    %s) words=%q ;;\n", commands[i].name, strings.Join(flags, " "))
	}
	names = append(names, "help")
	var files []string
	for _, f := range flagsOf(&commands[slices.IndexFunc(commands, func(c command) bool { return c.name == verifyCommand.name })]) {
		if name, _ := flag.UnquoteUsage(f); name == "file" {
			files = append(files, spelled(f))
		}
	}
	return fmt.Sprintf(`_%[1]s() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ] || { [ "$COMP_CWORD" -eq 2 ] && [ "$previous" = help ]; }; then
    COMPREPLY=($(compgen -W %[2]q -- "$current"))
    return
  fi
  case $previous in
    -o) COMPREPLY=($(compgen -W %[3]q -- "$current")); return ;;
    %[4]s) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  case ${COMP_WORDS[1]} in
%[5]s  esac
  case $current in
    -*) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
  esac
}
complete -F _%[1]s %[1]s
`, programName, strings.Join(names, " "), strings.Join(outputForms, " "), strings.Join(files, "|"), cases.String())
}

func (c *cli) completeZsh() string {
	return "autoload -U +X bashcompinit && bashcompinit\n" + c.completeBash()
}

func (c *cli) completeFish() string {
	quote := func(text string) string {
		return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + "'"
	}
	var script strings.Builder
	fmt.Fprintf(&script, "complete -c %s -f\n", programName)
	for i := range commands {
		cmd := &commands[i]
		fmt.Fprintf(&script, "complete -c %s -n __fish_use_subcommand -a %s -d %s\n", programName, cmd.name, quote(cmd.short))
		for _, f := range flagsOf(cmd) {
			_, usage := flag.UnquoteUsage(f)
			option := "-l " + f.Name
			if len(f.Name) == 1 {
				option = "-s " + f.Name
			}
			if !isSwitch(f) {
				option += " -r"
			}
			fmt.Fprintf(&script, "complete -c %s -n '__fish_seen_subcommand_from %s' %s -d %s\n", programName, cmd.name, option, quote(usage))
		}
	}
	return script.String()
}
