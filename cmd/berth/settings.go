package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/internal/config"
)

const settingsHelp = `Settings come from the file that --config names, then
from variables of the environment such as BERTH_DATA, then from flags; the last
one given counts.`

// daemon makes cmd a command that runs until it is told to stop, with settings
// C: those that flags defines, and all that the file of --config may hold.
func daemon[C interface{ Validate() error }](std stdio, cmd *cobra.Command, defaults func() C,
	flags func(*pflag.FlagSet, *C), run func(context.Context, C, *slog.Logger) error,
) *cobra.Command {
	shown := defaults()
	flags(cmd.Flags(), &shown)
	file := cmd.Flags().String("config", os.Getenv("BERTH_CONFIG"), "read settings from this YAML `file`")
	var logs logOptions
	logs.flags(cmd.Flags())
	cmd.GroupID, cmd.Args = groupRun, cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := defaults()
		err := settle(cmd.Flags(), *file, &cfg, flags)
		if err == nil {
			err = cfg.Validate()
		}
		if err != nil {
			return misuse(err)
		}
		log, err := logs.logger(std)
		if err != nil {
			return misuse(err)
		}
		return run(cmd.Context(), cfg, log)
	}
	return cmd
}

// settle fills cfg, which holds the defaults, in order from file, environment
// and the flags that were given.
func settle[C any](given *pflag.FlagSet, file string, cfg *C, flags func(*pflag.FlagSet, *C)) error {
	if file != "" {
		if err := config.File(file, cfg); err != nil {
			return err
		}
	}
	if err := config.Environment(os.LookupEnv, cfg); err != nil {
		return err
	}
	again := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags(again, cfg)
	var errs []error
	given.Visit(func(f *pflag.Flag) {
		if again.Lookup(f.Name) != nil {
			errs = append(errs, again.Set(f.Name, f.Value.String()))
		}
	})
	return errors.Join(errs...)
}
