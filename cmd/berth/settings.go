package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.internal/internal/config"
)

const settingsHelp = `Settings come from the file that --config names, then
from variables of the environment such as BERTH_DATA, then from flags; the last
one given counts.`

// settings gives cmd the flag --config and those that flags defines on a C. The
// function that it returns, for when the flags were read, fills a C in order
// from defaults, file, environment and flags.
func settings[C any](cmd *cobra.Command, defaults func() C, flags func(*pflag.FlagSet, *C)) func() (C, error) {
	shown := defaults()
	flags(cmd.Flags(), &shown)
	file := cmd.Flags().String("config", os.Getenv("BERTH_CONFIG"), "read settings from this YAML `file`")
	return func() (C, error) {
		cfg := defaults()
		if *file != "" {
			if err := config.File(*file, &cfg); err != nil {
				return cfg, err
			}
		}
		if err := config.Environment(os.LookupEnv, &cfg); err != nil {
			return cfg, err
		}
		again := pflag.NewFlagSet("", pflag.ContinueOnError)
		flags(again, &cfg)
		var errs []error
		cmd.Flags().Visit(func(f *pflag.Flag) {
			if again.Lookup(f.Name) != nil {
				errs = append(errs, again.Set(f.Name, f.Value.String()))
			}
		})
		return cfg, errors.Join(errs...)
	}
}
