package engine

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"berth.internal/node/host"
)

// stampFormat is how docker logs --timestamps shows a time: all nine digits.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// containerLogs answers GET /containers/{id}/logs: 200, frames.
func (e *Engine) containerLogs(w http.ResponseWriter, r *http.Request) error {
	opts := host.LogOptions{
		Stdout: boolean(r, "stdout"), Stderr: boolean(r, "stderr"), Follow: boolean(r, "follow"), Tail: -1,
	}
	if !opts.Stdout && !opts.Stderr {
		return invalid("Bad parameters: you must choose at least one stream")
	}
	if t := r.FormValue("tail"); t != "" && t != "all" {
		// Docker shows everything for what is not a number.
		if n, err := strconv.Atoi(t); err == nil && n >= 0 {
			opts.Tail = n
		}
	}
	var err error
	if opts.Since, err = readTime(r, "since"); err != nil {
		return err
	}
	if opts.Until, err = readTime(r, "until"); err != nil {
		return err
	}
	stamps := boolean(r, "timestamps")
	c, err := e.host.Inspect(idOf(r))
	if err != nil {
		return err
	}
	if c.Spec.Log.Driver == host.LogNone {
		return unsupported("configured logging driver does not support reading")
	}
	w.Header().Set("Content-Type", streamType(r, c.Spec.Tty))
	w.WriteHeader(http.StatusOK)
	out := newFlushWriter(w)
	if err := out.flush(); err != nil {
		return nil // the client is gone
	}
	f := newOutput(out, c.Spec.Tty)
	if !opts.Follow {
		f = newOutput(w, c.Spec.Tty) // nobody waits for the single line
	}
	var open [2]bool // the stream is within a line
	err = e.host.Logs(r.Context(), c.ID, opts, func(entry host.LogEntry) error {
		text := entry.Text
		stream := 0
		if entry.Stderr {
			stream = 1
		}
		if stamps && !open[stream] {
			text = append([]byte(entry.Time.UTC().Format(stampFormat)+" "), text...)
		}
		open[stream] = entry.Partial
		return f.write(entry.Stderr, text)
	})
	if err != nil && r.Context().Err() == nil {
		e.log.Warn("logs ended early", "container", c.ID, "error", err)
	}
	return nil
}

// readTime reads a query parameter that is a time in seconds since 1970, with
// an optional fraction. Nothing and 0 mean none.
func readTime(r *http.Request, name string) (time.Time, error) {
	text := r.FormValue(name)
	if text == "" || text == "0" {
		return time.Time{}, nil
	}
	whole, frac, _ := strings.Cut(text, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || sec > math.MaxInt32*1000 || sec < -math.MaxInt32*1000 {
		return time.Time{}, invalid("invalid value for %q: %q is no time in seconds since 1970", name, text)
	}
	if frac == "" {
		return time.Unix(sec, 0), nil
	}
	nano, err := strconv.ParseUint((frac + "000000000")[:9], 10, 64)
	if err != nil {
		return time.Time{}, invalid("invalid value for %q: %q is no time in seconds since 1970", name, text)
	}
	return time.Unix(sec, int64(nano)), nil
}
