package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/docker/go-units"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"berth.internal/client"
	"berth.internal/client/transfer"
	"berth.internal/internal/oci"
)

// transferFlags are those that push, pull and copy have in common.
type transferFlags struct {
	platform  string
	referrers bool
	parallel  int
	quiet     bool
	json      bool
}

func (f *transferFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.platform, "platform", "", "only the image for this `OS/ARCH[/VARIANT]`; else all of them")
	cmd.Flags().BoolVar(&f.referrers, "referrers", false, "also what refers to the image, such as signatures")
	cmd.Flags().IntVar(&f.parallel, "parallel", 6, "blobs to move at a time")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "do not show the progress")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the result as JSON")
}

// options are the flags as package transfer has them.
func (f *transferFlags) options() (transfer.Options, error) {
	o := transfer.Options{Referrers: f.referrers, Parallel: f.parallel}
	if f.parallel < 1 {
		return o, misuse(fmt.Errorf("--parallel must be 1 or more, not %d", f.parallel))
	}
	if f.platform != "" {
		p, err := transfer.ParsePlatform(f.platform)
		if err != nil {
			return o, misuse(fmt.Errorf("--platform: %w", err))
		}
		o.Platform = &p
	}
	return o, nil
}

// transferred is what --json prints. Its field names are kept.
type transferred struct {
	Reference string `json:"reference"` // in the registry that was pushed to or pulled from
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
	Uploaded  int    `json:"blobs_moved"`
	Existed   int    `json:"blobs_existed"`
	Mounted   int    `json:"blobs_mounted"`
	Bytes     int64  `json:"bytes_moved"` // of blobs
}

// run copies src to dst, shows how far it is, and prints what came of it. verb
// and ref say what the user wanted.
func (f *transferFlags) run(ctx context.Context, std stdio, dst transfer.Target, src transfer.Source, o transfer.Options, verb string, ref oci.Reference) error {
	if !f.quiet {
		p := newProgress(std.err, verb+" "+ref.String())
		defer p.close()
		o.Watch = p
	}
	res, err := transfer.Copy(ctx, dst, src, o)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, ref, err)
	}
	if f.json {
		return printJSON(std, transferred{
			Reference: ref.String(), Digest: res.Root.Digest.String(), MediaType: res.Root.MediaType,
			Uploaded: res.Blobs[client.Uploaded], Existed: res.Blobs[client.Existed], Mounted: res.Blobs[client.Mounted],
			Bytes: res.Bytes,
		})
	}
	ref.Digest = res.Root.Digest
	_, err = fmt.Fprintln(std.out, ref)
	return err
}

// progress shows a transfer: on a terminal one bar for all blobs, elsewhere a
// line for each.
type progress struct {
	out io.Writer
	bar *progressbar.ProgressBar // nil: no terminal

	mu      sync.Mutex
	through map[string]int64 // by digest
	sum     int64
}

func newProgress(out io.Writer, what string) *progress {
	p := &progress{out: out, through: map[string]int64{}}
	if isTerminal(out) {
		p.bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(out), progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish())
	}
	return p
}

// Planned is told how much there is to move.
func (p *progress) Planned(_ int, bytes int64) {
	if p.bar != nil && bytes > 0 {
		p.bar.ChangeMax64(bytes)
	}
}

// Moved is told how far a blob has come.
func (p *progress) Moved(d v1.Descriptor, through int64) {
	if p.bar == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum += through - p.through[d.Digest.String()]
	p.through[d.Digest.String()] = through
	_ = p.bar.Set64(p.sum) // a bar that cannot be drawn is no reason to stop
}

// Done is told that a blob is there.
func (p *progress) Done(d v1.Descriptor, how client.PushResult) {
	p.Moved(d, d.Size)
	if p.bar != nil {
		return
	}
	word := "moved"
	switch how {
	case client.Existed:
		word = "already there"
	case client.Mounted:
		word = "mounted"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "%.19s %9s %s\n", d.Digest, units.HumanSize(float64(d.Size)), word)
}

func (p *progress) close() {
	if p.bar != nil {
		_ = p.bar.Finish() // as above
	}
}
