// The commands: what an operator runs by hand, the same binary as the daemon, also as a kubectl plugin (kubectl-bucketwarden).
// Each command is one file. What all have is here: their flags, their exit codes, what they print.
//
// Rules:
//   - Standard output is for scripts, in the form that -o names; what is only for people goes to standard error.
//   - 0: all is well. 1: it did not work. 2: it worked, and something is wrong with what was looked at.
//   - A command reads with the rights of who runs it, and changes nothing that its name does not say.

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// Exit codes.
const (
	exitFine = iota
	exitFailed
	exitFound
)

// pluginName is how kubectl finds the binary as the plugin of kubectl bucketwarden.
const pluginName = "kubectl-" + programName

// command is what can be asked of the binary beside being the daemon.
type command struct {
	name, args, short, long string
	// examples are command lines without the name of the program.
	examples []string
	// make registers the flags of the command and returns what it does.
	make func(*cli, *flag.FlagSet) func(context.Context, []string) error
}

// commands are all of them, in the order in which help lists them.
var commands []command

func init() {
	commands = []command{statusCommand, planCommand, snapshotsCommand, verifyCommand, excludeCommand, includeCommand,
		probeCommand, evidenceCommand, completionCommand}
}

// errFound is that something is wrong with what a command has looked at, and that it has said what.
var errFound = errors.New("something is wrong")

// usageError is a mistake in a command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usageErrorf(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// cli is one run of a command.
type cli struct {
	program     string // as the user calls it
	in          io.Reader
	out, errOut io.Writer
	// terminal says that errOut is one, asks that in is.
	terminal, asks bool

	output                                     string
	kubeconfig, context                        string
	types                                      typeFlag
	azureCloudConfig                           string
	bucketSecret, bucket, region, store, cloud string

	metrics *metrics
	// connect returns clients of the API server, and newProviders all stores by name. Tests replace them.
	connect      func() (dynamic.Interface, kubernetes.Interface, error)
	newProviders func(*config, *metrics) (map[string]provider, error)
	clients      *cliClients
	// whoami is the name of the user, as far as it is known, and defaultTypes what holds without --type.
	whoami       func(context.Context) string
	defaultTypes typeFlag
	// workers is how many snapshots are read at a time.
	workers int
}

// newCLI is for the process.
func newCLI(program string) *cli {
	c := &cli{program: program, in: os.Stdin, out: os.Stdout, errOut: os.Stderr, terminal: isTerminal(os.Stderr), asks: isTerminal(os.Stdin),
		metrics: newMetrics(), newProviders: newProviders, defaultTypes: defaultTypes(), workers: deepWorkers()}
	c.connect, c.whoami = c.connectKubeconfig, c.kubernetesUser
	return c
}

func isTerminal(file *os.File) bool {
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// commandOf returns the run of a command that the arguments of the process ask for; nil if they are the daemon's.
func commandOf(arguments []string) (*cli, []string) {
	if strings.TrimSuffix(filepath.Base(arguments[0]), ".exe") == pluginName {
		return newCLI("kubectl " + programName), arguments[1:]
	}
	if len(arguments) > 1 && isCommand(arguments[1]) {
		return newCLI(programName), arguments[1:]
	}
	return nil, nil
}

func isCommand(name string) bool {
	return name == "help" || slices.ContainsFunc(commands, func(c command) bool { return c.name == name })
}

// main runs a command and returns the exit code.
func (c *cli) main(ctx context.Context, args []string) int {
	err := c.dispatch(ctx, args)
	var usage *usageError
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errFound):
		return exitFound
	case errors.As(err, &usage):
		about := ""
		if args[0] != "help" && isCommand(args[0]) {
			about = " " + args[0]
		}
		c.say("%s: %v", programName, err)
		c.say("See %s help%s", c.program, about)
	default:
		c.say("%s: %v", programName, err)
	}
	return exitFailed
}

func (c *cli) dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return c.help(nil)
	}
	name := args[0]
	switch name {
	case "help":
		return c.help(args[1:])
	case "--help", "-help", "-h":
		return c.help(nil)
	case "--version", "-version":
		return c.print("%s %s\n", programName, buildVersion())
	}
	at := slices.IndexFunc(commands, func(c command) bool { return c.name == name })
	if at < 0 {
		return usageErrorf("there is no command %q", name)
	}
	fs, run := c.flagSet(&commands[at])
	rest, err := parseInterspersed(fs, args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return c.help([]string{name})
	case err != nil:
		return usageErrorf("%v", err)
	case !slices.Contains(outputForms, c.output):
		return usageErrorf("-o is %q, must be one of %s", c.output, strings.Join(outputForms, ", "))
	}
	return run(ctx, rest)
}

// parseInterspersed parses flags that may stand behind other arguments, as kubectl's do. Behind -- there are none.
func parseInterspersed(fs *flag.FlagSet, args []string) (rest []string, err error) {
	var last []string
	if at := slices.Index(args, "--"); at >= 0 {
		args, last = args[:at], args[at+1:]
	}
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return append(rest, last...), nil
		}
		rest, args = append(rest, fs.Arg(0)), fs.Args()[1:]
	}
}

// flagSet makes the flags of a command.
func (c *cli) flagSet(cmd *command) (*flag.FlagSet, func(context.Context, []string) error) {
	fs := flag.NewFlagSet(cmd.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&c.output, "o", outputTable, "`form` of the output: "+strings.Join(outputForms, ", "))
	fs.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig `file` of the seed; default: $KUBECONFIG, else ~/.kube/config, else in-cluster")
	fs.StringVar(&c.context, "context", "", "`name` of the context in the kubeconfig")
	fs.Var(&c.types, "type", "`NAME=STORE`: objects with spec.type NAME lie on STORE ("+storeNames()+"); default "+defaultTypesText())
	fs.StringVar(&c.azureCloudConfig, "azure-cloud-config", "", "`file` with custom Azure clouds by name, in JSON")
	fs.StringVar(&c.bucketSecret, "bucket-secret", "", "work straight on the bucket, without an API server: a `file` with the Secret of "+
		"the credentials in YAML or JSON, or a directory with one file for each of its keys")
	fs.StringVar(&c.bucket, "bucket", "", "with --bucket-secret: `name` of the bucket; default: bucketName in the secret")
	fs.StringVar(&c.region, "region", "", "with --bucket-secret: `region` of the bucket; default: region in the secret")
	fs.StringVar(&c.store, "store", "", "with --bucket-secret: kind of `store`, "+storeNames()+"; default: the one that the secret fits")
	fs.StringVar(&c.cloud, "cloud", "", "with --bucket-secret, on Azure: `name` of the cloud, as cloudConfiguration.name in a "+
		"providerConfig; default: the public cloud")
	return fs, cmd.make(c, fs)
}

// help explains a command, or lists all.
func (c *cli) help(args []string) error {
	if len(args) > 0 {
		at := slices.IndexFunc(commands, func(c command) bool { return c.name == args[0] })
		if at < 0 {
			return usageErrorf("there is no command %q", args[0])
		}
		cmd := commands[at]
		if err := c.print("%s\n\n%s\n\nUsage:\n  %s %s %s [flags]\n\nExamples:\n", cmd.short, cmd.long, c.program, cmd.name,
			cmd.args); err != nil {
			return err
		}
		for _, example := range cmd.examples {
			if err := c.print("  %s %s\n", c.program, example); err != nil {
				return err
			}
		}
		fs, _ := c.flagSet(&cmd)
		if err := c.print("\nFlags:\n"); err != nil {
			return err
		}
		fs.SetOutput(c.out)
		fs.PrintDefaults()
		return nil
	}
	if err := c.print("%s shows and checks the etcd backups of the clusters of a Gardener seed.\n\nCommands:\n", c.program); err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, cmd := range commands {
		_, _ = fmt.Fprintf(w, "  %s\t%s\n", cmd.name, cmd.short)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return c.print("\nExit codes: 0 all is well, 1 it did not work, 2 something is wrong with what was looked at.\n"+
		"%s help COMMAND explains a command.\n", c.program)
}

// confirmed asks for a yes, unless it was given.
func (c *cli) confirmed(yes bool) error {
	switch {
	case yes:
		return nil
	case !c.asks:
		return usageErrorf("give --yes, since nobody can be asked")
	}
	_, _ = fmt.Fprintf(c.errOut, "Type yes to go on: ")
	line, _ := bufio.NewReader(c.in).ReadString('\n') // nothing is no yes
	if strings.TrimSpace(line) != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

// print writes to standard output.
func (c *cli) print(format string, args ...any) error {
	_, err := fmt.Fprintf(c.out, format, args...)
	return err
}

// say writes a line for people.
func (c *cli) say(format string, args ...any) { _, _ = fmt.Fprintf(c.errOut, format+"\n", args...) }

// Values of -o.
const (
	outputTable = "table"
	outputWide  = "wide"
	outputJSON  = "json"
	outputYAML  = "yaml"
)

var outputForms = []string{outputTable, outputWide, outputJSON, outputYAML}

// tabular says that the output is a table.
func (c *cli) tabular() bool { return c.output == outputTable || c.output == outputWide }

// table prints rows under a heading; the columns behind short are for -o wide only.
func (c *cli) table(heading []string, short int, rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{heading}, rows...) {
		if c.output != outputWide {
			row = row[:short]
		}
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = oneLine(cell); cell == "" {
				cells[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(w, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// oneLine is text from a bucket as a terminal can be shown it: whoever writes to the bucket chose it.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

// object prints what a script reads.
func (c *cli) object(v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if c.output == outputYAML {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return err
		}
		return c.print("%s", data)
	}
	return c.print("%s\n", data)
}
