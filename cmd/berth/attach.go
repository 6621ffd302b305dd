package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

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

// attached is a container whose streams are ours.
type attached struct {
	node    *client.Client
	id      string
	signals chan os.Signal
	streams func() error
	exited  client.ContainerWaitResult
}

// attach joins std to the container before it starts, so that nothing of its
// output is lost. From here on signals go to the container.
func attach(ctx context.Context, std stdio, node *client.Client, id string, stdin, removed bool) (*attached, error) {
	conn, err := node.ContainerAttach(ctx, id, client.ContainerAttachOptions{
		Stream: true, Stdin: stdin, Stdout: true, Stderr: true,
	})
	if err != nil {
		return nil, err
	}
	condition := container.WaitConditionNextExit
	if removed {
		condition = container.WaitConditionRemoved
	}
	a := &attached{node: node, id: id, signals: make(chan os.Signal, 16)}
	signal.Notify(a.signals, proxied...)
	a.exited = node.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: condition})
	a.streams = streams(std, conn.HijackedResponse, stdin)
	return a, nil
}

// wait returns when the container has ended, with its exit code as an error
// unless that is zero.
func (a *attached) wait(ctx context.Context) error {
	defer signal.Stop(a.signals)
	for asked := 0; ; {
		select {
		case res := <-a.exited.Result:
			if res.Error != nil {
				return fmt.Errorf("wait for container %s: %s", a.id[:12], res.Error.Message)
			}
			if err := a.streams(); err != nil {
				return fmt.Errorf("read the output of container %s: %w", a.id[:12], err)
			}
			return exitCode(int(res.StatusCode))
		case err := <-a.exited.Error:
			return fmt.Errorf("lost the node while container %s ran, which goes on without it: %w", a.id[:12], err)
		case sig := <-a.signals:
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

// exitCode passes on the exit code of a process in a container.
func exitCode(code int) error {
	if code == 0 {
		return nil
	}
	return &exit{code: code}
}
