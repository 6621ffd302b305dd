package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// patience is how long a shell waits for names to complete.
const patience = time.Second

// first completes the first argument only.
func first(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return complete(cmd, args, typed)
	}
}

func completeContainers(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return completeFrom(cmd, args, typed, func(ctx context.Context, node *client.Client) (names []string, err error) {
		res, err := node.ContainerList(ctx, client.ContainerListOptions{All: true})
		for _, c := range res.Items {
			for _, name := range c.Names {
				names = append(names, strings.TrimPrefix(name, "/"))
			}
		}
		return names, err
	})
}

func completeImages(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return completeFrom(cmd, args, typed, func(ctx context.Context, node *client.Client) (names []string, err error) {
		res, err := node.ImageList(ctx, client.ImageListOptions{})
		for _, image := range res.Items {
			names = append(names, image.RepoTags...)
		}
		return names, err
	})
}

// completeFrom offers the names that list returns and args do not hold yet. A
// node that does not answer offers none: completion has nobody to tell.
func completeFrom(cmd *cobra.Command, args []string, typed string, list func(context.Context, *client.Client) ([]string, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	socket, err := cmd.Flags().GetString("socket")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	node, err := client.New(client.WithHost("unix://" + socket))
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer node.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), patience)
	defer cancel()
	names, err := list(ctx, node)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return !strings.HasPrefix(name, typed) || slices.Contains(args, name)
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
