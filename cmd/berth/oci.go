package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/oci"
)

// ociName is what berth is called as to be an OCI runtime: by a link to it.
const ociName = "berth-oci"

// ociRun is berth as an OCI runtime, for engines of others. It returns what to exit
// with, as runc does: 1 for errors, 255 for those of exec, else the code of what was
// run.
func ociRun(ctx context.Context, std stdio, args []string) int {
	// A command is over, or waits, before a first collection of garbage would pay.
	debug.SetGCPercent(400)
	o := &ociCommand{std: std, log: &ociLog{to: std.err}}
	root := o.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if o.log.file != nil {
		defer o.log.file.Close()
	}
	if err == nil {
		return o.code
	}
	_ = o.log.Handle(ctx, slog.NewRecord(time.Now(), slog.LevelError, err.Error(), 0)) // engines read the message, no keys
	if o.log.file != nil {
		fmt.Fprintln(std.err, err)
	}
	if o.code != 0 {
		return o.code
	}
	return 1
}

// ociCommand is one call of the runtime.
type ociCommand struct {
	std  stdio
	log  *ociLog
	code int // to exit with

	dir, logFile, logFormat, rootless string
	debug, systemd                    bool
}

func (o *ociCommand) root() *cobra.Command {
	root := &cobra.Command{
		Use:   ociName,
		Short: "Run containers as an OCI runtime",
		Long: `berth-oci is an OCI runtime with runc's command line, for engines that bring their
own: podman, containerd, CRI-O. Make it a link to berth:

  ln -s "$(command -v berth)" /usr/local/bin/berth-oci

Containers of berth's own node do not need it.`,
		Example: `  podman --runtime /usr/local/bin/berth-oci --cgroup-manager cgroupfs run --rm alpine date
  berth-oci spec && berth-oci run demo        run the bundle in this directory`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Version:           buildVersion(),
		PersistentPreRunE: func(*cobra.Command, []string) error { return o.prepare() },
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(o.std.in)
	root.SetOut(o.std.out)
	root.SetErr(o.std.err)
	flags := root.PersistentFlags()
	flags.StringVar(&o.dir, "root", oci.DefaultRoot, "`directory` for what is known of containers")
	flags.StringVar(&o.logFile, "log", "", "`file` to write errors and warnings to, stderr without")
	flags.StringVar(&o.logFormat, "log-format", "text", "`form` of these: text or json")
	flags.BoolVar(&o.debug, "debug", false, "log more")
	flags.BoolVar(&o.systemd, "systemd-cgroup", false, "refused: cgroups are made in the file system (cgroupfs)")
	flags.StringVar(&o.rootless, "rootless", "auto", "true is refused: berth-oci is for root")
	root.AddCommand(
		o.create(), o.run(), o.start(), o.state(), o.kill(), o.delete(), o.exec(), o.list(), o.ps(),
		o.pause(), o.resume(), o.update(), o.events(), o.features(), o.spec(),
	)
	return root
}

// newOCI is the same below berth, for those who have no link.
func newOCI(std stdio) *cobra.Command {
	return &cobra.Command{
		Use:                "oci COMMAND",
		Short:              "Be an OCI runtime, as berth-oci is",
		Example:            "  berth oci list",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return exitCode(ociRun(context.WithoutCancel(cmd.Context()), std, args))
		},
	}
}

// prepare reads the flags of all commands.
func (o *ociCommand) prepare() error {
	if o.logFormat != "text" && o.logFormat != "json" {
		return fmt.Errorf("unknown log format %q: text and json are known", o.logFormat)
	}
	o.log.json, o.log.debug = o.logFormat == "json", o.debug
	if o.logFile != "" {
		f, err := os.OpenFile(o.logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		o.log.to, o.log.file = f, f
	}
	if o.systemd {
		return errors.New("--systemd-cgroup is not supported: berth-oci makes cgroups itself; tell the engine so (podman --cgroup-manager=cgroupfs, containerd SystemdCgroup = false)")
	}
	switch o.rootless {
	case "auto", "false":
		return nil
	case "true":
		return errors.New("--rootless=true is not supported: berth-oci needs root")
	}
	return fmt.Errorf("--rootless is %q, not true, false or auto", o.rootless)
}

// open opens the runtime.
func (o *ociCommand) open() (*oci.Runtime, error) {
	return oci.Open(oci.Config{Root: o.dir, Init: initProgram, Log: slog.New(o.log)})
}

// with makes fn the run function of cmd, for commands that the first SIGINT or
// SIGTERM shall end in good order.
func (o *ociCommand) with(cmd *cobra.Command, fn func(ctx context.Context, r *oci.Runtime, args []string) error) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		r, err := o.open()
		if err != nil {
			return err
		}
		return fn(ctx, r, args)
	}
	return cmd
}

// files returns the standard streams.
func (o *ociCommand) files() [3]*os.File { return [3]*os.File{os.Stdin, os.Stdout, os.Stderr} }

// inherited returns the n descriptors from first on that the caller left open. One that
// would be closed on exec is none of them: this process has opened it, as Go's runtime
// does with files of cgroups, and no container may get that.
func inherited(first, n int) ([]*os.File, error) {
	if n < 0 || n > 32 {
		return nil, fmt.Errorf("--preserve-fds %d is not from 0 to 32", n)
	}
	var files []*os.File
	for fd := first; fd < first+n; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
			return nil, fmt.Errorf("--preserve-fds %d: descriptor %d is not open", n, fd)
		}
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "inherited"))
	}
	return files, nil
}

// createFlags are those that create and run share.
type createFlags struct {
	oci.CreateOptions
	preserve int
	noPivot  bool
}

func (f *createFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.Bundle, "bundle", "b", ".", "`directory` with config.json")
	flags.StringVar(&f.ConsoleSocket, "console-socket", "", "unix `socket` that takes the terminal's master")
	flags.StringVar(&f.PidFile, "pid-file", "", "`file` that takes the number of the first process")
	flags.IntVar(&f.preserve, "preserve-fds", 0, "pass this `number` of further descriptors on, from 3")
	flags.BoolVar(&f.NoNewKeyring, "no-new-keyring", false, "leave the container the caller's session keyring")
	flags.BoolVar(&f.noPivot, "no-pivot", false, "refused: it makes escapes easy")
	flags.StringVar(&f.PidfdSocket, "pidfd-socket", "", "unix `socket` that takes a descriptor of the first process")
}

func (f *createFlags) options(o *ociCommand, id string) (oci.CreateOptions, error) {
	opts := f.CreateOptions
	opts.ID, opts.Stdio = id, o.files()
	if f.noPivot {
		return opts, errors.New("--no-pivot is not supported: a container whose root directory is only changed can leave it")
	}
	if n, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err == nil && os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		opts.Listeners = n // socket activation, passed on
	}
	var err error
	opts.Files, err = inherited(3, opts.Listeners+f.preserve)
	return opts, err
}

func (o *ociCommand) create() *cobra.Command {
	var f createFlags
	cmd := o.with(&cobra.Command{
		Use:     "create [flags] ID",
		Short:   "Create a container of a bundle, without starting it",
		Example: "  berth-oci create --bundle /bundles/web --pid-file /run/web.pid web",
		Args:    cobra.ExactArgs(1),
	}, func(ctx context.Context, r *oci.Runtime, args []string) error {
		opts, err := f.options(o, args[0])
		if err != nil {
			return err
		}
		return r.Create(ctx, opts)
	})
	f.add(cmd)
	return cmd
}

func (o *ociCommand) start() *cobra.Command {
	return o.with(&cobra.Command{
		Use:     "start ID",
		Short:   "Execute the program of a created container",
		Example: "  berth-oci start web",
		Args:    cobra.ExactArgs(1),
	}, func(ctx context.Context, r *oci.Runtime, args []string) error { return r.Start(ctx, args[0]) })
}

func (o *ociCommand) state() *cobra.Command {
	return o.with(&cobra.Command{
		Use:     "state ID",
		Short:   "Print the state of a container as JSON",
		Example: "  berth-oci state web",
		Args:    cobra.ExactArgs(1),
	}, func(_ context.Context, r *oci.Runtime, args []string) error {
		s, err := r.State(args[0])
		if err != nil {
			return err
		}
		return o.print(s)
	})
}

// print prints v as JSON for people.
func (o *ociCommand) print(v any) error {
	enc := json.NewEncoder(o.std.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (o *ociCommand) kill() *cobra.Command {
	var all bool
	cmd := o.with(&cobra.Command{
		Use:   "kill [flags] ID [SIGNAL]",
		Short: "Send a signal to a container, SIGTERM unless told otherwise",
		Example: `  berth-oci kill web
  berth-oci kill web KILL`,
		Args: cobra.RangeArgs(1, 2),
	}, func(_ context.Context, r *oci.Runtime, args []string) error {
		sig := unix.SIGTERM
		if len(args) == 2 {
			var err error
			if sig, err = parseSignal(args[1]); err != nil {
				return err
			}
		}
		return r.Kill(args[0], sig, all)
	})
	cmd.Flags().BoolVarP(&all, "all", "a", false, "send it to all processes")
	return cmd
}

// parseSignal reads a number, or a name with or without SIG.
func parseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("unknown signal %q", s)
		}
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func (o *ociCommand) delete() *cobra.Command {
	var force bool
	cmd := o.with(&cobra.Command{
		Use:     "delete [flags] ID",
		Short:   "Delete a container that does not run",
		Example: "  berth-oci delete --force web",
		Args:    cobra.ExactArgs(1),
	}, func(ctx context.Context, r *oci.Runtime, args []string) error { return r.Delete(ctx, args[0], force) })
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also one that runs, which is killed")
	return cmd
}

func (o *ociCommand) features() *cobra.Command {
	return o.with(&cobra.Command{
		Use:     "features",
		Short:   "Print what this runtime does, as JSON",
		Example: "  berth-oci features | jq .linux.namespaces",
		Args:    cobra.NoArgs,
	}, func(context.Context, *oci.Runtime, []string) error { return o.print(oci.Features()) })
}

// writeAll writes to a file that must not be there.
func writeAll(name string, v any) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	enc.SetIndent("", "\t")
	return errors.Join(enc.Encode(v), f.Close())
}

func (o *ociCommand) spec() *cobra.Command {
	var bundle string
	var rootless bool
	cmd := &cobra.Command{
		Use:     "spec [flags]",
		Short:   "Write a config.json to begin with",
		Example: "  mkdir -p demo/rootfs && berth-oci spec --bundle demo",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if rootless {
				return errors.New("--rootless is not supported: berth-oci needs root")
			}
			return writeAll(bundle+"/config.json", oci.ExampleSpec())
		},
	}
	cmd.Flags().StringVarP(&bundle, "bundle", "b", ".", "`directory` to write it to")
	cmd.Flags().BoolVar(&rootless, "rootless", false, "refused: berth-oci is for root")
	return cmd
}
