package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/jsonstream"
	apiregistry "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth.internal/internal/oci"
)

func newPull(std stdio) *cobra.Command {
	var quiet, asJSON bool
	cmd := &cobra.Command{
		Use:   "pull [flags] IMAGE",
		Short: "Pull an image onto the node",
		Example: `  berth pull team/app:1.2
  berth pull team/app@sha256:…`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the image's name")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the node reports, a JSON object a line")
	return onNode(cmd, func(ctx context.Context, node *client.Client, args []string) error {
		if asJSON {
			return pullJSON(ctx, std, node, args[0])
		}
		if err := pull(ctx, std, node, args[0], quiet); err != nil {
			return err
		}
		fmt.Fprintln(std.out, args[0])
		return nil
	})
}

// pull asks the node to pull an image and shows how far it is: on a terminal
// with a bar over all layers, elsewhere with a line for what is settled.
func pull(ctx context.Context, std stdio, node *client.Client, image string, quiet bool) error {
	res, err := startPull(ctx, node, image)
	if err != nil {
		return err
	}
	defer res.Close()
	var bar *pullBar
	if !quiet && isTerminal(std.out) {
		bar = newPullBar(std.out, image)
		defer bar.close()
	}
	for msg, err := range res.JSONMessages(ctx) {
		switch {
		case err != nil:
			return fmt.Errorf("pull %s: %w", image, err)
		case msg.Error != nil:
			return fmt.Errorf("pull %s: %w", image, msg.Error)
		case quiet:
		case bar != nil:
			bar.show(msg)
		case msg.ID == "" && msg.Status != "":
			fmt.Fprintln(std.out, msg.Status)
		}
	}
	return nil
}

// startPull asks the node to pull the image: as who has logged in to its registry
// with docker login or podman login, else as the node itself.
func startPull(ctx context.Context, node *client.Client, image string) (client.ImagePullResponse, error) {
	var opts client.ImagePullOptions
	cluster := ""
	if info, err := node.Info(ctx, client.InfoOptions{}); err == nil { // if not, the pull says why
		cluster = info.Info.IndexServerAddress
	}
	ref, err := oci.ParseReference(image, cluster)
	if err != nil || ref.Registry == "" {
		return node.ImagePull(ctx, image, opts) // the node says what is wrong with it
	}
	user, password, err := login(ref.Registry)
	if err != nil {
		return nil, err
	}
	if user != "" {
		shown := apiregistry.AuthConfig{Username: user, Password: password, ServerAddress: ref.Registry}
		if user == "<token>" {
			shown = apiregistry.AuthConfig{IdentityToken: password, ServerAddress: ref.Registry}
		}
		if opts.RegistryAuth, err = authconfig.Encode(shown); err != nil {
			return nil, err
		}
	}
	return node.ImagePull(ctx, image, opts)
}

// pullJSON passes on what the node reports.
func pullJSON(ctx context.Context, std stdio, node *client.Client, image string) error {
	res, err := startPull(ctx, node, image)
	if err != nil {
		return err
	}
	defer res.Close()
	dec := json.NewDecoder(res)
	for {
		var line json.RawMessage
		if err := dec.Decode(&line); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("pull %s: %w", image, err)
		}
		fmt.Fprintf(std.out, "%s\n", line)
		var msg jsonstream.Message
		if err := json.Unmarshal(line, &msg); err == nil && msg.Error != nil {
			return fmt.Errorf("pull %s: %w", image, msg.Error)
		}
	}
}

// pullBar is one bar for all layers of an image: layers come and go in any
// order, and what a user wants to know is how long it still takes.
type pullBar struct {
	bar    *progressbar.ProgressBar
	layers map[string]jsonstream.Progress
}

func newPullBar(out io.Writer, image string) *pullBar {
	return &pullBar{
		bar: progressbar.NewOptions64(-1,
			progressbar.OptionSetWriter(out), progressbar.OptionSetDescription(image),
			progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish()),
		layers: map[string]jsonstream.Progress{},
	}
}

func (b *pullBar) show(msg jsonstream.Message) {
	if msg.Progress == nil || msg.Progress.Total <= 0 {
		return
	}
	b.layers[msg.ID+msg.Status] = *msg.Progress
	var current, total int64
	for _, p := range b.layers {
		current += p.Current
		total += p.Total
	}
	// A bar that cannot be drawn is no reason to stop the pull.
	b.bar.ChangeMax64(total)
	_ = b.bar.Set64(current)
}

func (b *pullBar) close() { _ = b.bar.Finish() }

// isTerminal reports whether what is read from or written to is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
