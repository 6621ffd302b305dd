package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"berth.internal/client"
	"berth.internal/internal/oci"
)

// defaultRegistry is where berth up and berth serve listen if not told
// otherwise.
const defaultRegistry = "127.0.0.1:5000"

func newRepo(std stdio) *cobra.Command {
	reg := registries{std: std}
	cmd := &cobra.Command{
		Use:   "repo",
		Short: "Push, pull, list, remove and restore images in a registry",
		Long: `Push, pull, list and remove images in a registry.

A reference without a registry means the one of --registry, else that of the
variable BERTH_REGISTRY, else ` + defaultRegistry + `. Passwords are those that
docker login or podman login keep.`,
		Example: `  berth repo push oci:./image team/app:1
  berth repo tags team/app
  berth repo pull team/app:1 docker-archive:app.tar`,
		GroupID: groupRegistry,
	}
	cmd.PersistentFlags().StringVar(&reg.address, "registry", "", "`URL` or host:port of the registry of references that name none")
	cmd.PersistentFlags().StringVar(&reg.caFile, "ca", "", "PEM `file` of the CA to trust beside the system's")
	cmd.AddCommand(
		newRepoPush(std, &reg), newRepoPull(std, &reg), newRepoCopy(std, &reg),
		newRepoLs(std, &reg), newRepoTags(std, &reg), newRepoInspect(std, &reg), newRepoRm(std, &reg),
		newRepoHistory(std, &reg), newRepoRestore(std, &reg), newRepoPurge(std, &reg),
	)
	return cmd
}

// registries are those that one command speaks with.
type registries struct {
	std     stdio
	address string // --registry
	caFile  string
	known   map[string]*client.Registry // by host
}

// configured is the registry of references that name none.
func (r *registries) configured() (*client.Registry, error) {
	return r.connect(cmp.Or(r.address, os.Getenv("BERTH_REGISTRY"), defaultRegistry))
}

// connect makes the client for an address, or returns the one there is.
func (r *registries) connect(address string) (*client.Registry, error) {
	// The address may be a URL: only the client knows its host.
	reg, err := client.New(client.Options{Registry: address})
	if err != nil {
		return nil, misuse(err)
	}
	host := reg.Host()
	if known := r.known[host]; known != nil {
		return known, nil
	}
	user, password, err := login(host)
	if err != nil {
		return nil, err
	}
	reg, err = client.New(client.Options{
		Registry: address, Username: user, Password: password, CAFile: r.caFile, UserAgent: "berth/" + buildVersion(),
		Warn: func(text string) { fmt.Fprintf(r.std.err, "berth: %s warns: %s\n", host, text) },
	})
	if err != nil {
		return nil, misuse(err)
	}
	if r.known == nil {
		r.known = map[string]*client.Registry{}
	}
	r.known[host] = reg
	return reg, nil
}

// find reads a reference and returns it with its registry's client.
func (r *registries) find(s string) (oci.Reference, *client.Registry, error) {
	reg, err := r.configured()
	if err != nil {
		return oci.Reference{}, nil, err
	}
	ref, err := oci.ParseReference(s, reg.Host())
	if err != nil {
		return oci.Reference{}, nil, misuse(err)
	}
	// The configured one is known by now, with the scheme it was given.
	reg, err = r.connect(ref.Registry)
	return ref, reg, err
}

// findRepository is find for what must be a repository, without tag or digest.
func (r *registries) findRepository(s string) (oci.Reference, *client.Registry, error) {
	ref, reg, err := r.find(s)
	if err == nil && (ref.Tag != "" || ref.Digest != "") {
		err = misuse(fmt.Errorf("%q names an image; here only its repository is wanted: %s", s, ref.Name()))
	}
	return ref, reg, err
}

// complete offers the repositories of the configured registry. One that does
// not answer has none: completion has nobody to tell.
func (r *registries) complete(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	reg, err := r.configured()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), patience)
	defer cancel()
	var names []string
	for name, err := range reg.Repositories(ctx) {
		if err != nil {
			break
		}
		names = append(names, name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
