package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/docker/go-units"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"berth.internal/client"
	"berth.internal/client/transfer"
)

func newRepoInspect(std stdio, reg *registries) *cobra.Command {
	var asJSON, raw bool
	cmd := &cobra.Command{
		Use:   "inspect [flags] REF",
		Short: "Show an image in a registry: platforms, layers, configuration",
		Example: `  berth repo inspect team/app:1
  berth repo inspect --json team/app:1 | jq -r .digest
  berth repo inspect --raw team/app:1    the manifest as it is stored`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(reg.complete),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&raw, "raw", false, "print the manifest, byte for byte")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if asJSON && raw {
			return misuse(errors.New("--json and --raw exclude each other"))
		}
		ref, registry, err := reg.find(args[0])
		if err != nil {
			return err
		}
		desc, body, err := registry.Manifest(cmd.Context(), ref.Repository, ref.Identifier())
		if err != nil {
			return err
		}
		if raw {
			_, err := std.out.Write(body)
			return err
		}
		src := &transfer.Remote{Registry: registry, Repository: ref.Repository, Reference: ref.Identifier()}
		seen, err := look(cmd.Context(), src, desc, body)
		if err != nil {
			return fmt.Errorf("inspect %s: %w", ref, err)
		}
		seen.Reference = ref.String()
		if asJSON {
			return printJSON(std, seen)
		}
		return seen.print(std)
	}
	return cmd
}

// inspected is what --json prints. Its field names are kept.
type inspected struct {
	Reference   string            `json:"reference,omitempty"`
	Digest      string            `json:"digest"`
	MediaType   string            `json:"media_type"`
	Subject     string            `json:"subject,omitempty"` // what it refers to
	Size        int64             `json:"size_bytes"`        // to pull, of all layers and configs
	Platform    string            `json:"platform,omitempty"`
	Created     *time.Time        `json:"created,omitempty"`
	Config      *v1.ImageConfig   `json:"config,omitempty"`
	Layers      []inspectedLayer  `json:"layers,omitempty"`
	Images      []inspected       `json:"images,omitempty"` // of an index
	Annotations map[string]string `json:"annotations,omitempty"`
}

type inspectedLayer struct {
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
	Size      int64  `json:"size_bytes"`
}

// look reads a manifest, and of an index those of its images.
func look(ctx context.Context, src transfer.Source, d v1.Descriptor, body []byte) (inspected, error) {
	var m struct {
		Config      v1.Descriptor     `json:"config"`
		Layers      []v1.Descriptor   `json:"layers"`
		Manifests   []v1.Descriptor   `json:"manifests"`
		Subject     v1.Descriptor     `json:"subject"`
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return inspected{}, fmt.Errorf("manifest %s is not JSON: %w", d.Digest, err)
	}
	seen := inspected{Digest: d.Digest.String(), MediaType: d.MediaType, Subject: m.Subject.Digest.String(), Annotations: m.Annotations}
	if client.IsIndex(d.MediaType) {
		return seen, seen.lookInto(ctx, src, m.Manifests)
	}
	for _, l := range m.Layers {
		seen.Size += l.Size
		seen.Layers = append(seen.Layers, inspectedLayer{l.Digest.String(), l.MediaType, l.Size})
	}
	seen.Size += m.Config.Size
	if m.Config.MediaType != v1.MediaTypeImageConfig && m.Config.MediaType != "application/vnd.docker.container.image.v1+json" {
		return seen, nil // an artifact
	}
	config, err := transfer.Small(ctx, src, m.Config)
	if err != nil {
		return inspected{}, err
	}
	var image v1.Image
	if err := json.Unmarshal(config, &image); err != nil {
		return inspected{}, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	seen.Platform, seen.Created, seen.Config = transfer.FormatPlatform(image.Platform), image.Created, &image.Config
	return seen, nil
}

// lookInto reads the images of an index. Those that are not here, and indexes in
// the index, are listed with what it says of them.
func (seen *inspected) lookInto(ctx context.Context, src transfer.Source, children []v1.Descriptor) error {
	for _, d := range children {
		child := inspected{Digest: d.Digest.String(), MediaType: d.MediaType, Annotations: d.Annotations}
		if !client.IsIndex(d.MediaType) {
			body, err := src.Manifest(ctx, d)
			switch {
			case err == nil:
				child, err = look(ctx, src, d, body)
			case errors.Is(err, client.ErrNotFound): // the index is sparse
				err = nil
			}
			if err != nil {
				return err
			}
		}
		if d.Platform != nil {
			child.Platform = transfer.FormatPlatform(*d.Platform)
		}
		seen.Size += child.Size
		seen.Images = append(seen.Images, child)
	}
	return nil
}

// print shows it to people.
func (seen *inspected) print(std stdio) error {
	w := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", key, onScreen(value))
		}
	}
	line("Reference", seen.Reference)
	line("Digest", seen.Digest)
	line("Type", seen.MediaType)
	line("Subject", seen.Subject)
	line("Platform", seen.Platform)
	line("Size", units.HumanSize(float64(seen.Size)))
	if seen.Created != nil {
		line("Created", seen.Created.UTC().Format(time.RFC3339))
	}
	if c := seen.Config; c != nil {
		line("Entrypoint", strings.Join(c.Entrypoint, " "))
		line("Command", strings.Join(c.Cmd, " "))
		line("Directory", c.WorkingDir)
		line("User", c.User)
		for _, e := range c.Env {
			line("Environment", e)
		}
		for _, port := range slices.Sorted(maps.Keys(c.ExposedPorts)) {
			line("Port", port)
		}
		for _, key := range slices.Sorted(maps.Keys(c.Labels)) {
			line("Label", key+"="+c.Labels[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(seen.Annotations)) {
		line("Annotation", key+"="+seen.Annotations[key])
	}
	if len(seen.Layers) > 0 {
		fmt.Fprintln(w, "\nLAYER\tSIZE")
		for _, l := range seen.Layers {
			fmt.Fprintf(w, "%s\t%s\n", l.Digest, units.HumanSize(float64(l.Size)))
		}
	}
	if len(seen.Images) > 0 {
		fmt.Fprintln(w, "\nPLATFORM\tSIZE\tDIGEST")
		for _, image := range seen.Images {
			fmt.Fprintf(w, "%s\t%s\t%s\n", onScreen(image.Platform), units.HumanSize(float64(image.Size)), image.Digest)
		}
	}
	return w.Flush()
}

// onScreen takes out what would move a terminal: images come from anywhere.
func onScreen(s string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, s)
}
