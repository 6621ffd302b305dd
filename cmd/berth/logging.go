package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/pflag"
)

// logOptions say what a server logs, and how, on standard error.
type logOptions struct {
	level  string
	format string
}

func (o *logOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.level, "log-level", "info", "log from this `level` on: debug, info, warn or error")
	f.StringVar(&o.format, "log-format", "text", "`format` of the log: text or json")
}

func (o *logOptions) logger(std stdio) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is none of debug, info, warn, error", o.level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch o.format {
	case "text":
		return slog.New(slog.NewTextHandler(std.err, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(std.err, options)), nil
	}
	return nil, fmt.Errorf("--log-format %q is neither text nor json", o.format)
}
