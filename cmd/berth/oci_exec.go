package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth.internal/node/container/oci"
)

// usual are the signals that people and managers of services send.
var usual = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU,
	unix.SIGWINCH,
}

// passedOn returns the signals to this process, for the one it runs: the usual ones,
// and all others once rest was called. Go takes some 30 µs to begin to listen to one,
// 2 ms for all, and a short command shall not wait for those that hardly anybody
// sends. Nobody stops listening, which would take as long: this process ends.
func passedOn() (signals chan os.Signal, rest func()) {
	signals = make(chan os.Signal, 64)
	signal.Notify(signals, usual...)
	return signals, func() {
		var list []os.Signal
		for n := syscall.Signal(1); n <= 64; n++ {
			// What the kernel or Go's runtime tell this process is not meant for that one.
			if !slices.Contains([]syscall.Signal{unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG, unix.SIGKILL, unix.SIGSTOP}, n) {
				list = append(list, n)
			}
		}
		signal.Notify(signals, list...)
	}
}

func (o *ociCommand) run() *cobra.Command {
	var f createFlags
	var opts oci.RunOptions
	cmd := &cobra.Command{
		Use:     "run [flags] ID",
		Short:   "Create a container, start it, and delete it when it has stopped",
		Long:    "Create a container, start it, and delete it when it has stopped. berth-oci exits with its exit code.",
		Example: "  berth-oci run --bundle /bundles/web web",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.CreateOptions, err = f.options(o, args[0]); err != nil {
				return err
			}
			r, err := o.open()
			if err != nil {
				return err
			}
			opts.Signals, opts.Running = passedOn()
			o.code, err = r.Run(cmd.Context(), opts)
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVarP(&opts.Detach, "detach", "d", false, "return when it runs")
	cmd.Flags().BoolVar(&opts.Keep, "keep", false, "do not delete it when it has stopped")
	cmd.Flags().BoolVar(&opts.NoSubreaper, "no-subreaper", false, "do not become the reaper of what it leaves behind (only with --detach)")
	return cmd
}

// execFlags describe a process beside that of its container.
type execFlags struct {
	process, cwd, user, apparmor, label string
	env, caps                           []string
	gids                                []int64
	tty, noNewPrivs                     bool
	preserve                            int
}

func (o *ociCommand) exec() *cobra.Command {
	var f execFlags
	var opts oci.ExecOptions
	cmd := &cobra.Command{
		Use:   "exec [flags] ID [COMMAND [ARG...]]",
		Short: "Run a further process in a container",
		Long:  "Run a further process in a container. berth-oci exits with its exit code, or 255 if it could not be run.",
		Example: `  berth-oci exec web cat /etc/os-release
  berth-oci exec --process process.json --detach --pid-file /run/p.pid web`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.code = 255
			r, err := o.open()
			if err != nil {
				return err
			}
			opts.ID, opts.Stdio = args[0], o.files()
			if opts.Files, err = inherited(3, f.preserve); err != nil {
				return err
			}
			if opts.Process, err = f.build(cmd, r, args); err != nil {
				return err
			}
			opts.Signals, opts.Running = passedOn()
			code, err := r.Exec(cmd.Context(), opts)
			if err == nil {
				o.code = code
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the container is the command's
	flags.StringVarP(&f.process, "process", "p", "", "`file` with the process as JSON, as in config.json")
	flags.StringVar(&f.cwd, "cwd", "", "`directory` to start in")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set `NAME=VALUE`")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give it a terminal")
	flags.StringVarP(&f.user, "user", "u", "", "`uid[:gid]`")
	flags.Int64SliceVarP(&f.gids, "additional-gids", "g", nil, "further `groups`")
	flags.StringArrayVarP(&f.caps, "cap", "c", nil, "add a `capability`")
	flags.BoolVar(&f.noNewPrivs, "no-new-privs", false, "it cannot gain privileges")
	flags.StringVar(&f.apparmor, "apparmor", "", "AppArmor `profile`")
	flags.StringVar(&f.label, "process-label", "", "SELinux `label`")
	flags.StringArrayVar(&opts.Cgroups, "cgroup", nil, "run it in a `cgroup` below the container's, on version 1 also as controller,...:path")
	flags.StringVar(&opts.PidfdSocket, "pidfd-socket", "", "unix `socket` that takes a descriptor of the process")
	flags.IntVar(&f.preserve, "preserve-fds", 0, "pass this `number` of further descriptors on, from 3")
	flags.StringVar(&opts.ConsoleSocket, "console-socket", "", "unix `socket` that takes the terminal's master")
	flags.StringVar(&opts.PidFile, "pid-file", "", "`file` that takes the process's number")
	flags.BoolVarP(&opts.Detach, "detach", "d", false, "return when it runs")
	flags.BoolVar(&opts.IgnorePaused, "ignore-paused", false, "in a paused container it begins when that goes on")
	return cmd
}

// build returns the process: that of the file, or the container's own with what the
// flags change.
func (f *execFlags) build(cmd *cobra.Command, r *oci.Runtime, args []string) (*specs.Process, error) {
	if f.process != "" {
		data, err := os.ReadFile(f.process)
		if err != nil {
			return nil, err
		}
		p := new(specs.Process)
		if err := json.Unmarshal(data, p); err != nil {
			return nil, fmt.Errorf("%s: %w", f.process, err)
		}
		return p, nil
	}
	if len(args) < 2 {
		return nil, errors.New("a command is needed, or --process")
	}
	own, err := r.Process(args[0])
	if err != nil {
		return nil, err
	}
	p := *own
	p.Args, p.Terminal = args[1:], f.tty
	p.Env = slices.Concat(p.Env, f.env)
	if f.cwd != "" {
		p.Cwd = f.cwd
	}
	if cmd.Flags().Changed("no-new-privs") {
		p.NoNewPrivileges = f.noNewPrivs
	}
	if f.apparmor != "" {
		p.ApparmorProfile = f.apparmor
	}
	if f.label != "" {
		p.SelinuxLabel = f.label
	}
	p.Capabilities = withCaps(p.Capabilities, f.caps)
	if err := f.setUser(&p); err != nil {
		return nil, err
	}
	return &p, nil
}

// withCaps adds capabilities to those that a process has or may get; ambient ones stay
// as they are.
func withCaps(c *specs.LinuxCapabilities, more []string) *specs.LinuxCapabilities {
	if len(more) == 0 {
		return c
	}
	with := specs.LinuxCapabilities{}
	if c != nil {
		with = *c
	}
	with.Bounding = slices.Concat(with.Bounding, more)
	with.Effective = slices.Concat(with.Effective, more)
	with.Permitted = slices.Concat(with.Permitted, more)
	return &with
}

func (f *execFlags) setUser(p *specs.Process) error {
	if f.user != "" {
		uid, gid, ok := strings.Cut(f.user, ":")
		n, err := strconv.ParseUint(uid, 10, 31)
		if err != nil {
			return fmt.Errorf("--user %q: the user is not a number", f.user)
		}
		p.User.UID = uint32(n)
		if ok {
			if n, err = strconv.ParseUint(gid, 10, 31); err != nil {
				return fmt.Errorf("--user %q: the group is not a number", f.user)
			}
			p.User.GID = uint32(n)
		}
	}
	gids := slices.Clone(p.User.AdditionalGids)
	for _, g := range f.gids {
		if g < 0 || g >= 1<<31 {
			return fmt.Errorf("--additional-gids %d is not a group", g)
		}
		gids = append(gids, uint32(g))
	}
	p.User.AdditionalGids = gids
	return nil
}
