// Command berth is the whole of berth in one binary: the registry, the node
// that pulls from it and runs containers, and the tool people type.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"berth.internal/node/container/shim"
)

// stdio is what a command reads and writes, so that a test can stand in for
// the terminal.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

func main() {
	// Without berth-init inside, berth executes itself as the shim of its
	// containers.
	if filepath.Base(os.Args[0]) == shim.Name {
		os.Exit(shim.Main())
	}

	if filepath.Base(os.Args[0]) == ociName {
		os.Exit(ociRun(context.Background(), stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Args[1:]))
	}

	// The first SIGINT or SIGTERM asks for a clean end, the second one ends at
	// once: after the first, the signals do again what they do by default.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)

	os.Exit(run(ctx, stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Args[1:]))
}
