package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/template"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newInspect(std stdio) *cobra.Command {
	var kind, format string
	cmd := &cobra.Command{
		Use:   "inspect [flags] NAME...",
		Short: "Print all that the node knows about containers and images",
		Example: `  berth inspect web
  berth inspect -f '{{.State.Pid}}' web
  berth inspect --type image team/app:1`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeContainers,
	}
	cmd.Flags().StringVar(&kind, "type", "", "look only for a `kind`: container or image")
	cmd.Flags().StringVarP(&format, "format", "f", "", "print each through a Go `template`")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		if kind != "" && kind != "container" && kind != "image" {
			return misuse(fmt.Errorf("--type %s: say container or image", kind))
		}
		tmpl, err := template.New("--format").Option("missingkey=error").Parse(format)
		if err != nil {
			return misuse(fmt.Errorf("read --format: %w", err))
		}
		found := []any{}
		var errs []error
		for _, name := range args {
			v, err := inspect(ctx, node, kind, name)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			found = append(found, v)
		}
		if format == "" {
			return errors.Join(append(errs, printJSON(std, found))...)
		}
		for _, v := range found {
			if err := tmpl.Execute(std.out, v); err != nil {
				errs = append(errs, fmt.Errorf("use --format: %w", err))
			}
			fmt.Fprintln(std.out)
		}
		return errors.Join(errs...)
	})
}

// inspect returns the JSON of the container of that name, or else the image.
func inspect(ctx context.Context, node *client.Client, kind, name string) (any, error) {
	if kind != "image" {
		res, err := node.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
		if err == nil {
			return decodeAny(res.Raw)
		}
		if kind == "container" || !cerrdefs.IsNotFound(err) {
			return nil, err
		}
	}
	var raw bytes.Buffer
	_, err := node.ImageInspect(ctx, name, client.ImageInspectWithRawResponse(&raw))
	switch {
	case err == nil:
		return decodeAny(raw.Bytes())
	case kind == "" && cerrdefs.IsNotFound(err):
		return nil, fmt.Errorf("there is no container and no image %s", name)
	}
	return nil, err
}

// decodeAny keeps numbers as they are written.
func decodeAny(raw []byte) (v any, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	err = dec.Decode(&v)
	return v, err
}
