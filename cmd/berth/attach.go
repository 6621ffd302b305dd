package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth.internal/internal/detach"
)

func newAttach(std stdio) *cobra.Command {
	var noStdin bool
	var keys string
	cmd := &cobra.Command{
		Use:   "attach [flags] CONTAINER",
		Short: "Join the terminal or the output of a running container",
		Long: `Join the terminal, or the input and output, of a running container. berth exits with
the container's exit code, or with 0 when you leave with the detach keys, ctrl-p ctrl-q,
which a terminal has.`,
		Example:           "  berth attach web\n  berth attach --detach-keys ctrl-x,x web",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(completeContainers),
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "only watch: send no input")
	detachKeysFlag(cmd.Flags(), &keys)
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		seq, err := detach.Parse(keys)
		if err != nil {
			return misuse(fmt.Errorf("--detach-keys: %w", err))
		}
		res, err := node.ContainerInspect(ctx, args[0], client.ContainerInspectOptions{})
		if err != nil {
			return err
		}
		c := res.Container
		switch {
		case c.State.Paused:
			return fmt.Errorf("container %s is paused: berth unpause %s", args[0], args[0])
		case !c.State.Running:
			return fmt.Errorf("container %s is not running", args[0])
		}
		stdin := c.Config.OpenStdin && !noStdin
		ctx = context.WithoutCancel(ctx) // the signals that end it belong to the container
		a, err := attach(ctx, std, node, c.ID, attachOptions{stdin: stdin, removed: c.HostConfig.AutoRemove, tty: c.Config.Tty, keys: seq})
		if err != nil {
			return err
		}
		return a.run(ctx, nil)
	})
}

// streams joins a container's streams to std, until the container closes its
// own. The function that it returns waits for that.
//
// A read of the terminal cannot be interrupted, so the goroutine that copies
// stdin is the one that nobody waits for: it ends with the process.
func streams(std stdio, conn client.HijackedResponse, stdin bool) (wait func() error) {
	if stdin {
		go func() {
			// What fails here fails the other direction, too, which reports it.
			_, _ = io.Copy(conn.Conn, std.in)
			_ = conn.CloseWrite()
		}()
	}
	copied := make(chan error, 1)
	go func() {
		_, err := stdcopy.StdCopy(std.out, std.err, conn.Reader)
		copied <- err
	}()
	return func() error {
		defer conn.Close()
		return <-copied
	}
}

// proxied are the signals that reach an attached container instead of us.
var proxied = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
}

// impatience is how many times a user has to ask a container to end until
// berth lets go of it.
const impatience = 3

// attachOptions say how a container is joined.
type attachOptions struct {
	stdin, tty bool
	removed    bool   // it goes when it ends
	keys       []byte // by which its user leaves a terminal
}

// attached is a container whose streams are ours.
type attached struct {
	node   *client.Client
	id     string
	std    stdio
	opts   attachOptions
	conn   client.HijackedResponse
	term   *terminal // with opts.tty
	exited client.ContainerWaitResult
}

// attach joins the container, before it starts if it does not run, so that nothing of
// its output is lost. What is joined must be run.
func attach(ctx context.Context, std stdio, node *client.Client, id string, opts attachOptions) (*attached, error) {
	a := &attached{node: node, id: id, std: std, opts: opts}
	var err error
	if opts.tty {
		if a.term, err = openTerminal(std, opts.stdin); err != nil {
			return nil, err
		}
	}
	res, err := node.ContainerAttach(ctx, id, client.ContainerAttachOptions{
		Stream: true, Stdin: opts.stdin, Stdout: true, Stderr: true,
	})
	if err != nil {
		return nil, err
	}
	a.conn = res.HijackedResponse
	condition := container.WaitConditionNextExit
	if opts.removed {
		condition = container.WaitConditionRemoved
	}
	a.exited = node.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: condition})
	return a, nil
}

// run starts the container, if start is given, and returns when it has ended, with its
// exit code as an error unless that is zero. Meanwhile signals go to the container; from a
// terminal it gets keys instead.
func (a *attached) run(ctx context.Context, start func() error) error {
	if a.opts.tty {
		return a.runTerminal(ctx, start)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, proxied...)
	defer signal.Stop(signals)
	wait := streams(a.std, a.conn, a.opts.stdin)
	if start != nil {
		if err := start(); err != nil {
			a.conn.Close()
			return err
		}
	}
	for asked := 0; ; {
		select {
		case res := <-a.exited.Result:
			if err := wait(); err != nil {
				return fmt.Errorf("read the output of container %s: %w", a.id[:12], err)
			}
			return a.ended(res)
		case err := <-a.exited.Error:
			return a.lost(err)
		case sig := <-signals:
			if sig == syscall.SIGINT || sig == syscall.SIGTERM {
				asked++
			}
			if asked == impatience {
				return fmt.Errorf("container %s does not end: stop it with: berth stop %s", a.id[:12], a.id[:12])
			}
			// It fails when the container has just ended, which we hear anyway.
			_, _ = a.node.ContainerKill(ctx, a.id, client.ContainerKillOptions{Signal: unix.SignalName(sig.(syscall.Signal))})
		}
	}
}

// runTerminal is run for a container with a terminal.
func (a *attached) runTerminal(ctx context.Context, start func() error) error {
	s := session{std: a.std, term: a.term, keys: a.opts.keys, stdin: a.opts.stdin, resize: func(ctx context.Context, size client.ConsoleSize) error {
		_, err := a.node.ContainerResize(ctx, a.id, client.ContainerResizeOptions(size))
		return err
	}}
	err := s.run(ctx, a.conn, start)
	switch {
	case errors.Is(err, errLeft):
		fmt.Fprintf(a.std.err, "\nberth: container %s goes on; come back with: berth attach %s\n", a.id[:12], a.id[:12])
		return nil
	case err != nil:
		return err
	}
	select {
	case res := <-a.exited.Result:
		return a.ended(res)
	case err := <-a.exited.Error:
		return a.lost(err)
	}
}

// ended is the end of the container.
func (a *attached) ended(res container.WaitResponse) error {
	if res.Error != nil {
		return fmt.Errorf("wait for container %s: %s", a.id[:12], res.Error.Message)
	}
	return exitCode(int(res.StatusCode))
}

// lost is the end of the node before that of the container.
func (a *attached) lost(err error) error {
	return fmt.Errorf("lost the node while container %s ran, which goes on without it: %w", a.id[:12], err)
}

// exitCode passes on the exit code of a process in a container.
func exitCode(code int) error {
	if code == 0 {
		return nil
	}
	return &exit{code: code}
}
