package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/internal/config"
)

const settingsHelp = `Settings come from the file that --config names, then
from variables of the environment such as BERTH_DATA, then from flags; the last
one given counts.`

// daemon makes cmd a command that runs until it is told to stop, with settings
// C: those that flags defines, and all that the file of --config may hold. again
// reads them anew.
func daemon[C interface{ Validate() error }](std stdio, cmd *cobra.Command, defaults func() C,
	flags func(*pflag.FlagSet, *C), run func(ctx context.Context, cfg C, again func() (C, error), log *slog.Logger) error,
) *cobra.Command {
	shown := defaults()
	flags(cmd.Flags(), &shown)
	file := cmd.Flags().String("config", os.Getenv("BERTH_CONFIG"), "read settings from this YAML `file`")
	var logs logOptions
	logs.flags(cmd.Flags())
	cmd.GroupID, cmd.Args = groupRun, cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		again := func() (C, error) { return settle(cmd.Flags(), *file, defaults, flags) }
		cfg, err := again()
		if err != nil {
			return misuse(err)
		}
		log, err := logs.logger(std)
		if err != nil {
			return misuse(err)
		}
		return run(cmd.Context(), cfg, again, log)
	}
	return cmd
}

// settle returns the settings by defaults, file, environment and the flags that were
// given, in this order. The error is all that is wrong with them, each with its
// place.
func settle[C interface{ Validate() error }](given *pflag.FlagSet, file string, defaults func() C, flags func(*pflag.FlagSet, *C)) (C, error) {
	cfg := defaults()
	var text []byte
	var errs []error
	if file != "" {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return cfg, fmt.Errorf("read configuration: %w", err)
		}
		errs = append(errs, config.Text(file, text, &cfg))
	}
	errs = append(errs, config.Environment(os.LookupEnv, &cfg))
	again := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags(again, &cfg)
	byFlag := map[string]string{}
	given.Visit(func(f *pflag.Flag) {
		if again.Lookup(f.Name) == nil {
			return
		}
		errs = append(errs, again.Set(f.Name, f.Value.String()))
		for _, key := range config.Keys(cfg) {
			if strings.NewReplacer(".", "-", "_", "-").Replace(key) == f.Name {
				byFlag[key] = "--" + f.Name
			}
		}
	})
	errs = append(errs, config.Locate(cfg.Validate(), file, text, os.LookupEnv, cfg, byFlag))
	return cfg, errors.Join(errs...)
}
