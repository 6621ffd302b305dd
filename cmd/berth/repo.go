package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"berth.internal/client"
	"berth.internal/client/contexts"
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

A reference without a registry means the one of --registry, else that of the login
that --context or BERTH_CONTEXT name, else the one of BERTH_REGISTRY, else that of
the current login, else ` + defaultRegistry + `. Passwords are those that berth login,
podman login or docker login keep.`,
		Example: `  berth repo push oci:./image team/app:1
  berth repo tags team/app
  berth repo pull team/app:1 docker-archive:app.tar`,
		GroupID: groupRegistry,
	}
	cmd.PersistentFlags().StringVar(&reg.address, "registry", "", "`URL` or host:port of the registry of references that name none")
	contextFlag(cmd.PersistentFlags(), &reg.context)
	_ = cmd.RegisterFlagCompletionFunc("context", completeContexts) // the flag is there
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
	context string // --context
	caFile  string
	kept    *contexts.File              // of berth login; nil: not read yet
	known   map[string]*client.Registry // by host
}

// configured is the registry of references that name none.
func (r *registries) configured() (*client.Registry, error) {
	if r.address != "" && r.context != "" {
		return nil, misuse(errors.New("--registry names an address and --context a login: give one of them"))
	}
	if r.address != "" {
		return r.connect(r.address)
	}
	variable := os.Getenv("BERTH_REGISTRY")
	if name := cmp.Or(r.context, os.Getenv(contextVar)); name != "" || variable == "" {
		kept, err := r.logins()
		if err != nil {
			return nil, err
		}
		if name != "" || kept.Current != "" {
			c, err := namedContext(name)
			if err != nil {
				return nil, err
			}
			return r.open(c.Server, c)
		}
	}
	return r.connect(cmp.Or(variable, defaultRegistry))
}

// logins are those of berth login.
func (r *registries) logins() (contexts.File, error) {
	if r.kept == nil {
		file, err := loadContexts()
		if err != nil {
			return file, err
		}
		r.kept = &file
	}
	return *r.kept, nil
}

// connect makes the client for an address, or returns the one there is.
func (r *registries) connect(address string) (*client.Registry, error) {
	// The address may be a URL: only the client knows its host.
	reg, err := client.New(client.Options{Registry: address})
	if err != nil {
		return nil, misuse(err)
	}
	if known := r.known[reg.Host()]; known != nil {
		return known, nil
	}
	kept, err := r.logins()
	if err != nil {
		return nil, err
	}
	c, ok := kept.At(reg.Host())
	switch {
	case ok && !strings.Contains(address, "://"):
		address = c.Server // who has logged in has said whether it speaks TLS
	case ok && reg.URL() != c.Server:
		c = contexts.Context{} // a secret for TLS is not sent without
	}
	return r.open(address, c)
}

// open makes the client for an address, with the login of c, if that has one, else
// with that of other programs.
func (r *registries) open(address string, c contexts.Context) (*client.Registry, error) {
	reg, err := client.New(client.Options{Registry: address})
	if err != nil {
		return nil, misuse(err)
	}
	host := reg.Host()
	if known := r.known[host]; known != nil {
		return known, nil
	}
	o := client.Options{
		Registry: address, Username: c.User, Password: c.Secret, CAFile: r.caFile, UserAgent: "berth/" + buildVersion(),
		Warn: func(text string) { fmt.Fprintf(r.std.err, "berth: %s warns: %s\n", host, text) },
	}
	if r.caFile == "" {
		o.CA = []byte(c.CA)
	}
	if o.Username == "" {
		if o.Username, o.Password, err = login(host); err != nil {
			return nil, err
		}
	}
	if reg, err = client.New(o); err != nil {
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
