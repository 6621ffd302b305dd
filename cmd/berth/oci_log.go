package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"
)

// ociLog writes lines as engines expect them of an OCI runtime: level, msg and time,
// as JSON or as text. podman takes its error message from there.
type ociLog struct {
	to          io.Writer
	file        *os.File // to, if it is a file of its own
	json, debug bool
	attrs       []slog.Attr
}

// Enabled is part of slog.Handler.
func (l *ociLog) Enabled(_ context.Context, level slog.Level) bool {
	return l.debug || level >= slog.LevelInfo
}

// Handle is part of slog.Handler.
func (l *ociLog) Handle(_ context.Context, r slog.Record) error {
	msg := r.Message
	add := func(a slog.Attr) bool {
		msg += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	}
	for _, a := range l.attrs {
		add(a)
	}
	r.Attrs(add)
	level, at := strings.ToLower(r.Level.String()), r.Time.Format(time.RFC3339)
	if level == "warn" {
		level = "warning"
	}
	if l.json {
		return json.NewEncoder(l.to).Encode(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{level, msg, at})
	}
	_, err := fmt.Fprintf(l.to, "time=%q level=%s msg=%q\n", at, level, msg)
	return err
}

// WithAttrs is part of slog.Handler.
func (l *ociLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *l
	with.attrs = append(slices.Clip(with.attrs), attrs...)
	return &with
}

// WithGroup is part of slog.Handler. Nobody groups.
func (l *ociLog) WithGroup(string) slog.Handler { return l }
