package main

import (
	"github.com/spf13/cobra"

	"berth.internal/client/transfer"
)

func newRepoCopy(std stdio, reg *registries) *cobra.Command {
	var flags transferFlags
	cmd := &cobra.Command{
		Use:   "copy [flags] REF NEWREF",
		Short: "Copy an image to another name or registry",
		Long: `Copy an image to another name or registry, and print NEWREF with its digest,
which is that of REF. Within a registry no layer is moved: the new repository
takes over what the old one holds.`,
		Example: `  berth repo copy team/app:1 team/app:stable
  berth repo copy team/app:1 other.example.com:5000/team/app:1`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: reg.complete,
	}
	flags.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := flags.options()
		if err != nil {
			return err
		}
		from, fromRegistry, err := reg.find(args[0])
		if err != nil {
			return err
		}
		to, toRegistry, err := reg.find(args[1])
		if err != nil {
			return err
		}
		src := &transfer.Remote{Registry: fromRegistry, Repository: from.Repository, Reference: from.Identifier()}
		dst := &transfer.Remote{Registry: toRegistry, Repository: to.Repository, Reference: to.Identifier()}
		if fromRegistry == toRegistry {
			dst.MountFrom = from.Repository
		}
		return flags.run(cmd.Context(), std, dst, src, o, "copy to", to)
	}
	return cmd
}
