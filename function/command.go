package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gpudev.internal/reservation-expiry/internal/config"
)

func newRoot(sh shell) *cobra.Command {
	root := serveCommand(sh)
	root.Use = "reservation-expiry"
	root.Short = "End GPU reservations well"
	root.Long = `End GPU reservations well: warn before their time is over, expire them, clean up
what stood behind them, keep the data, free the disk, and say for each what
happened, when and why.

Without a command it serves.

Exit codes: 0 done, 1 it did not work, 2 wrong arguments or environment (nothing
was begun).`
	root.Example = `  reservation-expiry migrate             create or upgrade schema expiry
  reservation-expiry                     serve
  reservation-expiry status              how does it stand?
  reservation-expiry explain 5f0c2d1e    what happened to it, and what next?
  reservation-expiry pause --why EKS     decide nothing new`
	root.Version = version
	root.SetVersionTemplate("reservation-expiry {{.Version}}\n")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(sh.out)
	root.SetErr(sh.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see %s --help)", err, c.CommandPath())}
	})
	root.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if similar := c.SuggestionsFor(args[0]); len(similar) > 0 {
			hint = ": did you mean " + strings.Join(similar, " or ") + "?"
		}
		return usageError{fmt.Errorf("unknown command %q%s (see %s --help)", args[0], hint, c.CommandPath())}
	}
	serve := serveCommand(sh)
	root.AddCommand(serve, migrateCommand(sh), sweepCommand(sh), explainCommand(sh), statusCommand(sh), traceCommand(sh),
		pauseCommand(sh), resumeCommand(sh), deadLettersCommand(sh), versionCommand(sh))
	return root
}

// arguments makes the errors of a check say how the command is used.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{fmt.Errorf("%w (usage: %s)", err, c.UseLine())}
		}
		return nil
	}
}

func outputFlag(c *cobra.Command) *outputFormat {
	f := asTable
	c.Flags().VarP(&f, "output", "o", "how to print the answer")
	return &f
}

// outlook reads what a command for looking needs.
func outlook(sh shell) (config.Outlook, error) {
	c, err := config.LoadOutlook(sh.environ)
	if err != nil {
		return c, usageError{err}
	}
	return c, nil
}

func versionCommand(sh shell) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return sh.say("reservation-expiry %s", version) },
	}
}
