package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth.internal/client"
	"berth.internal/internal/oci"
)

func newRepoRm(std stdio, reg *registries) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "rm [flags] REF",
		Short: "Remove a tag or a manifest from a registry",
		Long: `Remove a tag or a manifest from a registry. REF names a tag, whose image stays
as long as something else names it, or a digest: then the manifest goes, and
every tag on it.`,
		Example: `  berth repo rm team/app:1
  berth repo rm --yes team/app@sha256:…`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(reg.complete),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, registry, err := reg.find(args[0])
		if err != nil {
			return err
		}
		if ref.Tag == "" && ref.Digest == "" {
			return misuse(fmt.Errorf("%q names a whole repository; add :TAG or @DIGEST", args[0]))
		}
		if ok, err := confirm(std, yes, "Remove "+ref.String()+"?"); err != nil || !ok {
			return err
		}
		if err := remove(cmd.Context(), registry, ref); err != nil {
			return err
		}
		_, err = fmt.Fprintln(std.out, ref)
		return err
	}
	return cmd
}

func remove(ctx context.Context, registry *client.Registry, ref oci.Reference) error {
	if ref.Digest != "" {
		return registry.DeleteManifest(ctx, ref.Repository, ref.Digest)
	}
	return registry.DeleteTag(ctx, ref.Repository, ref.Tag)
}

// confirm asks on a terminal; elsewhere, and with yes, the answer is yes.
func confirm(std stdio, yes bool, question string) (bool, error) {
	f, ok := std.in.(*os.File)
	if yes || !ok || !term.IsTerminal(int(f.Fd())) {
		return true, nil
	}
	if _, err := fmt.Fprintf(std.err, "%s [y/N] ", question); err != nil {
		return false, err
	}
	answer := bufio.NewScanner(std.in)
	if !answer.Scan() {
		return false, answer.Err()
	}
	word := strings.ToLower(strings.TrimSpace(answer.Text()))
	return word == "y" || word == "yes", nil
}
