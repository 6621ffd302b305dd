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
	fmt.Fprintf(p.out, "\r\033[K%s", progressLine(job.Progress))
	p.shown = true
}

// progressLine is what people see of a job: "collecting: 3 of 5 entries".
func progressLine(p wire.Progress) string {
	if p.Done == 0 && p.Total == 0 {
		return p.Doing
	}
	number := func(n int64) string { return fmt.Sprint(n) }
	unit := " " + p.Unit
	if p.Unit == "bytes" {
		number, unit = func(n int64) string { return units.HumanSize(float64(n)) }, ""
	}
	line := p.Doing + ": " + number(p.Done)
	if p.Total > 0 {
		line += " of " + number(p.Total)
	}
	return line + unit
}

// close takes the line away.
func (p *jobProgress) close() {
	if p.shown {
		fmt.Fprint(p.out, "\r\033[K")
	}
}
