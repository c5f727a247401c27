package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/cli-runtime/pkg/printers"
)

// DefaultNamespace is where Mintmark is installed unless it is said otherwise.
const DefaultNamespace = "mintmark-system"

// Config is what the command is made from.
type Config struct {
	// Streams are standard input, output and error.
	Streams genericiooptions.IOStreams
	// Version of this build, such as v0.1.0; empty takes what Go recorded.
	Version string
	// Program is the name the command was called by (os.Args[0]): called
	// kubectl-mintmark, its help says "kubectl mintmark".
	Program string
	// Getenv reads the environment; nil is os.Getenv.
	Getenv func(string) string
	// Transport carries requests to the server's public port; nil is one made
	// from the flags.
	Transport http.RoundTripper
}

// Exit codes beside 0 and 1.
const (
	exitUsage       = 2
	exitInterrupted = 130
)

// exitError ends the command with a code of its own. Where err is nil, what
// there is to say has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// Run runs the command and gives the exit code: 0, 1 for a failure or a "no",
// 2 for wrong usage, 3 where the server gave no answer to go by, 4 where an import
// left something out, 130 where it was interrupted.
func Run(ctx context.Context, cfg Config, args []string) int {
	root := New(cfg)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
		err = exit.err
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		code = exitInterrupted
		err = errors.New(strings.ReplaceAll(err.Error(), context.Canceled.Error(), "interrupted"))
	}
	if err != nil {
		fmt.Fprintf(terminal{cfg.Streams.ErrOut}, "error: %s\n", err)
	}
	return code
}

// terminal escapes what would command a terminal, or turn round what it shows:
// descriptions, reasons and messages are written by whoever may write a credential.
type terminal struct{ w io.Writer }

// Write implements io.Writer.
func (t terminal) Write(p []byte) (int, error) {
	var b strings.Builder
	for _, r := range string(p) {
		if unicode.IsPrint(r) || strings.ContainsRune("\n\t\r\x1b", r) { // the last two are kubectl's to escape
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	if err := printers.WriteEscaped(t.w, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// app is what every command is handed.
type app struct {
	genericiooptions.IOStreams
	program   string
	version   string
	getenv    func(string) string
	kube      *genericclioptions.ConfigFlags
	transport http.RoundTripper
}

func newApp(cfg Config) *app {
	a := &app{
		IOStreams: genericiooptions.IOStreams{In: cfg.Streams.In, Out: cfg.Streams.Out, ErrOut: terminal{cfg.Streams.ErrOut}},
		program:   programName(cfg.Program), version: cfg.Version, getenv: cfg.Getenv,
		kube: genericclioptions.NewConfigFlags(true), transport: cfg.Transport,
	}
	if a.getenv == nil {
		a.getenv = os.Getenv
	}
	// kubectl's --token, --username and --password would put a secret into the
	// process list, and --token invites to put a credential there.
	a.kube.BearerToken, a.kube.Username, a.kube.Password = nil, nil, nil
	return a
}

// New makes the command with everything under it. It does no I/O.
func New(cfg Config) *cobra.Command {
	a := newApp(cfg)
	root := &cobra.Command{
		Use:   "mintmark",
		Short: "Make, rotate, revoke and check API keys and service tokens in Kubernetes",
		Long: "Make, rotate, revoke and check API keys and service tokens in Kubernetes.\n\n" +
			"The commands work on ServiceTokens and APIKeys through the Kubernetes API, as you, with kubectl's configuration;\n" +
			"token, verify, logs and analytics talk to Mintmark's server.",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: a.program},
		SilenceErrors: true, SilenceUsage: true,
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// Before anything is asked for that is then not waited for.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if timeout, err := cmd.Flags().GetDuration("timeout"); err == nil && timeout < 0 {
				return usageError("--timeout %s is no time to wait", timeout)
			}
			return nil
		},
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.ErrOut)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w\nSee '%s --help'", err, cmd.CommandPath())
	})
	a.kube.AddFlags(root.PersistentFlags())
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)

	root.AddGroup(
		&cobra.Group{ID: groupCredentials, Title: "Credentials:"},
		&cobra.Group{ID: groupServer, Title: "Using them:"},
		&cobra.Group{ID: groupRecord, Title: "Who used what:"},
		&cobra.Group{ID: groupInstallation, Title: "The installation:"},
	)
	for _, c := range []*cobra.Command{
		a.createCommand(), a.listCommand(), a.getCommand(), a.rotateCommand(), a.revokeCommand(), a.rollbackCommand(), a.discardCommand(),
		a.emergencyRevokeCommand(), a.cleanupCommand(), a.importCommand(),
	} {
		a.add(root, groupCredentials, c)
	}
	for _, c := range []*cobra.Command{a.tokenCommand(), a.verifyCommand(), a.inspectCommand(), a.explainCommand(), a.policyCommand()} {
		a.add(root, groupServer, c)
	}
	for _, c := range []*cobra.Command{a.logsCommand(), a.analyticsCommand(), a.reportCommand()} {
		a.add(root, groupRecord, c)
	}
	for _, c := range []*cobra.Command{a.bootstrapCommand(), a.doctorCommand(), a.versionCommand()} {
		a.add(root, groupInstallation, c)
	}
	root.AddCommand(optionsCommand())
	root.SetUsageTemplate(usageTemplate)
	helpOfKnownCommands(root)
	return root
}

// helpOfKnownCommands has `help` refuse a command that there is not, as the root does:
// left alone, it tells of the root instead, and succeeds.
func helpOfKnownCommands(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	if err != nil {
		return
	}
	help.Args = func(_ *cobra.Command, args []string) error {
		if found, rest, _ := root.Find(args); found == root {
			return unknownCommand(root, rest)
		}
		return nil
	}
}

// noArgs refuses arguments without repeating them: somebody may have put a key
// there.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError("%s takes no argument %s (a key goes into a file, $%s or standard input)\nSee '%s --help'",
		cmd.CommandPath(), publicPart(args[0]), envKey, cmd.CommandPath())
}

// atMost refuses more arguments than so many.
func atMost(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= n {
			return nil
		}
		return usageError("%s is one argument too many\nSee '%s --help'", publicPart(args[n]), cmd.CommandPath())
	}
}

func unknownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if similar := root.SuggestionsFor(args[0]); len(similar) > 0 {
		hint = ": did you mean " + strings.Join(similar, " or ") + "?"
	}
	return usageError("unknown command %s%s\nSee '%s --help'", publicPart(args[0]), hint, root.CommandPath())
}

const (
	groupCredentials  = "credentials"
	groupServer       = "server"
	groupRecord       = "record"
	groupInstallation = "installation"
)

// add puts a command under the root, its examples naming the program as it was
// called.
func (a *app) add(root *cobra.Command, group string, c *cobra.Command) {
	c.GroupID = group
	a.finish(c)
	root.AddCommand(c)
}

func (a *app) finish(c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	lines := strings.Split(strings.Trim(c.Example, "\n"), "\n")
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "mintmark "); ok {
			line = a.program + " " + rest
		}
		if line != "" {
			lines[i] = "  " + line
		}
	}
	c.Example = strings.Join(lines, "\n")
	for _, sub := range c.Commands() {
		a.finish(sub)
	}
}

func programName(argv0 string) string {
	base := strings.TrimSuffix(filepath.Base(argv0), ".exe")
	if base == "kubectl-mintmark" {
		return "kubectl mintmark"
	}
	return "mintmark"
}

// note writes a line to standard error.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.ErrOut, format+"\n", args...) }

// The flags every command inherits would drown its own, so that, as kubectl
// does, they are listed by a command.
func optionsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "options",
		Short: "List the flags that every command takes",
		Args:  noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "These flags, which kubectl has as well, can be passed to any command:\n\n%s",
				cmd.InheritedFlags().FlagUsages())
		},
	}
	c.SetHelpFunc(func(cmd *cobra.Command, _ []string) { cmd.Run(cmd, nil) })
	return c
}

const usageTemplate = `Usage:{{if .Runnable}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} [command]{{end}}{{if gt (len .Aliases) 0}}

Aliases:
  {{.NameAndAliases}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if and (eq .GroupID $group.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}

Other commands:{{range $cmds}}{{if and (eq .GroupID "") (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{if and .HasParent .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

Use "{{.CommandPath}} [command] --help" for more about a command.{{end}}
Use "{{.Root.DisplayName}} options" for the flags that every command takes.
`

// waitFlags say whether and how long a command waits.
type waitFlags struct {
	wait    bool
	timeout time.Duration
}

func (w *waitFlags) add(flags *pflag.FlagSet, wait bool, forWhat string) {
	flags.BoolVar(&w.wait, "wait", wait, "Wait "+forWhat+".")
	flags.DurationVar(&w.timeout, "timeout", 2*time.Minute, "How long to wait.")
}
