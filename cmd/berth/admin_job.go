package main

import (
	"fmt"
	"io"

	"github.com/docker/go-units"

	wire "berth.internal/internal/control"
)

// jobProgress shows how far a job is, in one line of a terminal. Elsewhere it
// shows nothing.
type jobProgress struct {
	out   io.Writer
	shown bool
}

func newJobProgress(out io.Writer) *jobProgress { return &jobProgress{out: out} }

func (p *jobProgress) update(job wire.Job) {
	if job.State != wire.JobRunning || job.Progress == (wire.Progress{}) || !isTerminal(p.out) {
		return
	}
	number := func(n int64) string {
		if job.Progress.Unit == "bytes" {
			return units.HumanSize(float64(n))
		}
		return fmt.Sprint(n)
	}
	line := job.Progress.Doing + ": " + number(job.Progress.Done)
	if job.Progress.Total > 0 {
		line += " of " + number(job.Progress.Total)
	}
	if job.Progress.Unit != "bytes" {
		line += " " + job.Progress.Unit
	}
	fmt.Fprintf(p.out, "\r\033[K%s", line)
	p.shown = true
}

// close takes the line away.
func (p *jobProgress) close() {
	if p.shown {
		fmt.Fprint(p.out, "\r\033[K")
	}
}
