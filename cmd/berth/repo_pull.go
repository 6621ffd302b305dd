package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"berth.internal/client/transfer"
)

func newRepoPull(std stdio, reg *registries) *cobra.Command {
	var flags transferFlags
	cmd := &cobra.Command{
		Use:   "pull [flags] REF TARGET",
		Short: "Copy an image from a registry to files",
		Long: `Copy an image from a registry to files and print REF with its digest. To run an
image on a node there is "berth pull". TARGET is one of

` + placesHelp + `

An image layout that is there already gets one image more. An archive that is
there already is replaced. A target is complete or not there at all.`,
		Example: `  berth repo pull team/app:1 oci:./image
  berth repo pull team/app:1 docker-archive:app.tar && docker load -i app.tar
  berth repo pull --platform linux/arm64 team/app:1 oci-archive:app.tar:1`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: first(reg.complete),
	}
	flags.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := parsePlace(args[1])
		if err != nil {
			return err
		}
		o, err := flags.options()
		if err != nil {
			return err
		}
		return pullTo(cmd.Context(), std, reg, &flags, o, args[0], to)
	}
	return cmd
}

func pullTo(ctx context.Context, std stdio, reg *registries, flags *transferFlags, o transfer.Options, from string, to place) (err error) {
	ref, registry, err := reg.find(from)
	if err != nil {
		return err
	}
	dst, err := to.create(ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	src := &transfer.Remote{Registry: registry, Repository: ref.Repository, Reference: ref.Identifier()}
	return flags.run(ctx, std, dst, src, o, "pull", ref)
}
