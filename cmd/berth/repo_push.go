package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth.internal/client/layout"
	"berth.internal/client/transfer"
)

func newRepoPush(std stdio, reg *registries) *cobra.Command {
	var flags transferFlags
	var files fileFlags
	cmd := &cobra.Command{
		Use:   "push [flags] SOURCE REF",
		Short: "Store an image in a registry",
		Long: `Store an image in a registry and print REF with the digest it has there.
SOURCE is one of

` + placesHelp + `
  dir:PATH                    plain files: a directory becomes the image's root

An image of plain files has one layer and depends on nothing but the files'
names, content and modes: the same files have the same digest everywhere. All
times are that of the variable SOURCE_DATE_EPOCH, else 1970. Layers of a
docker-archive are stored as they are in it, usually uncompressed.`,
		Example: `  berth repo push oci:./image team/app:1
  berth repo push docker-archive:app.tar team/app:1
  berth repo push dir:./root --entrypoint /app --env MODE=prod team/app:1
  berth repo push dir:./berth --entrypoint '["/berth","version"]' berth:1`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags.add(cmd)
	files.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		from, err := parsePlace(args[0])
		if err != nil {
			return err
		}
		if given := files.given(cmd); from.kind != "dir" && given != "" {
			return misuse(fmt.Errorf("--%s says how to make an image of plain files (dir:PATH); %s holds a finished one", given, args[0]))
		}
		o, err := flags.options()
		if err != nil {
			return err
		}
		var recipe layout.Recipe
		if from.kind == "dir" {
			if recipe, err = files.recipe(); err != nil {
				return misuse(err)
			}
			recipe.Platform = transfer.HostPlatform()
			if o.Platform != nil {
				recipe.Platform = *o.Platform
			}
		}
		return push(cmd.Context(), std, reg, &flags, o, from, recipe, args[1])
	}
	return cmd
}

func push(ctx context.Context, std stdio, reg *registries, flags *transferFlags, o transfer.Options, from place, recipe layout.Recipe, to string) (err error) {
	ref, registry, err := reg.find(to)
	if err != nil {
		return err
	}
	src, err := from.open(ctx, recipe)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst := &transfer.Remote{Registry: registry, Repository: ref.Repository, Reference: ref.Identifier()}
	return flags.run(ctx, std, dst, src, o, "push", ref)
}

// fileFlags say what an image of plain files is like.
type fileFlags struct {
	entrypoint, cmd, user, workdir string
	env, labels                    []string
	keepOwner                      bool
}

func (f *fileFlags) add(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.entrypoint, "entrypoint", "", "of dir: the program to run, `words` or a JSON array")
	s.StringVar(&f.cmd, "cmd", "", "of dir: its arguments unless others are given, `words` or a JSON array")
	s.StringArrayVarP(&f.env, "env", "e", nil, "of dir: a variable `NAME=VALUE` for the program")
	s.StringVarP(&f.workdir, "workdir", "w", "", "of dir: the `directory` to run in")
	s.StringVarP(&f.user, "user", "u", "", "of dir: the `user` to run as")
	s.StringArrayVarP(&f.labels, "label", "l", nil, "of dir: a label `KEY=VALUE`")
	s.BoolVar(&f.keepOwner, "keep-owner", false, "of dir: files keep their numeric owners; else all belong to root")
}

// given names a flag of these that the user gave, empty if none.
func (f *fileFlags) given(cmd *cobra.Command) string {
	for _, name := range []string{"entrypoint", "cmd", "env", "workdir", "user", "label", "keep-owner"} {
		if cmd.Flags().Changed(name) {
			return name
		}
	}
	return ""
}

func (f *fileFlags) recipe() (layout.Recipe, error) {
	r := layout.Recipe{KeepOwner: f.keepOwner, Time: time.Unix(0, 0)}
	r.Config.Env, r.Config.WorkingDir, r.Config.User = f.env, f.workdir, f.user
	var errs [2]error
	r.Config.Entrypoint, errs[0] = words("--entrypoint", f.entrypoint)
	r.Config.Cmd, errs[1] = words("--cmd", f.cmd)
	if err := errors.Join(errs[:]...); err != nil {
		return r, err
	}
	if i := slices.IndexFunc(f.env, func(s string) bool { return strings.Index(s, "=") < 1 }); i >= 0 {
		return r, fmt.Errorf("--env %q: write NAME=VALUE", f.env[i])
	}
	if f.workdir != "" && !strings.HasPrefix(f.workdir, "/") {
		return r, fmt.Errorf("--workdir %q: write a path from the image's root on", f.workdir)
	}
	for _, l := range f.labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return r, fmt.Errorf("--label %q: write KEY=VALUE", l)
		}
		if r.Config.Labels == nil {
			r.Config.Labels = map[string]string{}
		}
		r.Config.Labels[key] = value
	}
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		s, err := strconv.ParseUint(epoch, 10, 33)
		if err != nil {
			return r, fmt.Errorf("SOURCE_DATE_EPOCH %q is not a number of seconds since 1970", epoch)
		}
		r.Time = time.Unix(int64(s), 0)
	}
	return r, nil
}

// words reads a command line: a JSON array, or words between blanks.
func words(flag, s string) ([]string, error) {
	if !strings.HasPrefix(strings.TrimSpace(s), "[") {
		return strings.Fields(s), nil
	}
	var w []string
	if err := json.Unmarshal([]byte(s), &w); err != nil {
		return nil, fmt.Errorf("%s %q begins like a JSON array of strings, but is none: %w", flag, s, err)
	}
	return w, nil
}
