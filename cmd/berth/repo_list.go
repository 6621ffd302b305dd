package main

import (
	"fmt"
	"iter"

	"github.com/spf13/cobra"
)

func newRepoLs(std stdio, reg *registries) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls [flags]",
		Short: "List a registry's repositories",
		Example: `  berth repo ls
  berth repo ls --registry registry.example.com --json`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		registry, err := reg.configured()
		if err != nil {
			return err
		}
		names, err := printed(std, registry.Repositories(cmd.Context()), asJSON)
		if err != nil || !asJSON {
			return err
		}
		return printJSON(std, struct {
			Registry     string   `json:"registry"`
			Repositories []string `json:"repositories"`
		}{registry.Host(), names})
	}
	return cmd
}

func newRepoTags(std stdio, reg *registries) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "tags [flags] REPOSITORY",
		Short:             "List a repository's tags",
		Example:           "  berth repo tags team/app\n  berth repo tags --json team/app",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(reg.complete),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, registry, err := reg.findRepository(args[0])
		if err != nil {
			return err
		}
		tags, err := printed(std, registry.Tags(cmd.Context(), ref.Repository), asJSON)
		if err != nil || !asJSON {
			return err
		}
		return printJSON(std, struct {
			Repository string   `json:"repository"`
			Tags       []string `json:"tags"`
		}{ref.Name(), tags})
	}
	return cmd
}

// printed prints names one a line as they come, or collects them.
func printed(std stdio, names iter.Seq2[string, error], collect bool) ([]string, error) {
	all := []string{} // in JSON an empty list, not null
	for name, err := range names {
		if err != nil {
			return nil, err
		}
		if collect {
			all = append(all, name)
		} else if _, err := fmt.Fprintln(std.out, name); err != nil {
			return nil, err
		}
	}
	return all, nil
}
