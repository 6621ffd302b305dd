package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// defaultSocket is where a node listens and where commands look for it.
const defaultSocket = "/run/berth/node.sock"

// socketFlag gives cmd the flag that says where the node's local API is.
func socketFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("socket", cmp.Or(os.Getenv("BERTH_SOCKET"), defaultSocket),
		"`path` of the node's socket; default from BERTH_SOCKET")
}

// onNode makes cmd a command that talks to a node: do gets a client of its API.
func onNode(cmd *cobra.Command, do func(ctx context.Context, node *client.Client, args []string) error) *cobra.Command {
	cmd.GroupID = groupNode
	socket := socketFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		node, err := client.New(client.WithHost("unix://" + *socket))
		if err != nil {
			return misuse(fmt.Errorf("socket %s: %w", *socket, err))
		}
		defer node.Close()
		return explain(*socket, do(cmd.Context(), node, args))
	}
	return cmd
}

// forEach does something to each of names and goes on after a failure, so that
// one wrong name of many stops nothing. It prints the names that went well.
func forEach(std stdio, names []string, do func(name string) error) error {
	var errs []error
	for _, name := range names {
		if err := do(name); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(std.out, name)
	}
	return errors.Join(errs...)
}

// explain turns what Moby's client says into what a user of berth can act on.
func explain(socket string, err error) error {
	switch {
	case err == nil:
		return nil
	// Moby's client keeps the cause to itself.
	case client.IsErrConnectionFailed(err) && errors.Is(unix.Access(socket, unix.W_OK), os.ErrPermission):
		return fmt.Errorf("the node's socket %s is not yours to use: try again with sudo", socket)
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("no node answers at %s: start one with: sudo berth node --registry URL --socket %s", socket, socket)
	}
	if e, ok := errors.AsType[*exit](err); ok {
		return &exit{code: e.code, err: explain(socket, e.err)}
	}
	return plain{err}
}

// plain is an error of Moby's client without its talk of a daemon.
type plain struct{ error }

func (p plain) Unwrap() error { return p.error }

func (p plain) Error() string {
	return strings.ReplaceAll(p.error.Error(), "Error response from daemon: ", "")
}
