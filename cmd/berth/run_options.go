package main

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	ulimit "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"github.com/spf13/pflag"

	"berth.internal/internal/units"
)

// When run pulls the image.
const (
	pullMissing = "missing"
	pullAlways  = "always"
	pullNever   = "never"
)

// runOptions are the flags of run, in Docker's words. Those that the node can
// do nothing for are not here, and so refused by name.
type runOptions struct {
	detach, interactive, tty, remove, quiet bool
	pull, cidfile, detachKeys               string

	name, hostname, domainname, user, workdir, entrypoint string
	env, envFiles, labels, groups                         []string
	stopSignal                                            string
	stopTimeout                                           int

	network, userns                           string
	volumes, mounts, tmpfs, addHosts          []string
	memory, memoryReservation                 units.Bytes
	memorySwap                                limitOrNone
	shmSize                                   units.Bytes
	cpus                                      float64
	cpuShares, cpuQuota, cpuPeriod, pidsLimit int64
	cpusetCPUs, cpusetMems                    string
	oomScoreAdj                               int
	readOnly                                  bool
	capAdd, capDrop, securityOpt              []string
	ulimits, sysctls                          []string

	more moreOptions

	flags *pflag.FlagSet
}

func (o *runOptions) addFlags(fs *pflag.FlagSet) {
	o.flags = fs
	fs.BoolVarP(&o.interactive, "interactive", "i", false, "give the container our stdin")
	fs.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	fs.BoolVar(&o.remove, "rm", false, "remove the container when it has ended")
	fs.StringVar(&o.pull, "pull", pullMissing, "pull the image `when`: missing, always or never")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "say nothing about pulling")
	fs.StringVar(&o.cidfile, "cidfile", "", "write the container's id to a new `file`")

	fs.StringVar(&o.name, "name", "", "the container's `name`")
	fs.StringVarP(&o.hostname, "hostname", "h", "", "the container's host `name`")
	fs.Bool("help", false, "help for run") // -h is Docker's --hostname
	fs.StringVar(&o.domainname, "domainname", "", "the container's domain `name`")
	fs.StringVarP(&o.user, "user", "u", "", "`user[:group]`, names or numbers")
	fs.StringArrayVar(&o.groups, "group-add", nil, "a further `group` of the user")
	fs.StringVarP(&o.workdir, "workdir", "w", "", "`directory` to start in")
	fs.StringVar(&o.entrypoint, "entrypoint", "", "`program` to run instead of the image's entrypoint")
	fs.StringArrayVarP(&o.env, "env", "e", nil, "set `NAME=VALUE`, or pass NAME on from here")
	fs.StringArrayVar(&o.envFiles, "env-file", nil, "read variables from a `file`, one a line")
	fs.StringArrayVarP(&o.labels, "label", "l", nil, "set a label `NAME=VALUE`")
	fs.StringVar(&o.stopSignal, "stop-signal", "", "`signal` that asks the container to stop")
	fs.IntVar(&o.stopTimeout, "stop-timeout", 0, "`seconds` that a stop waits before it kills")

	fs.StringVar(&o.network, "network", "", "`network`: none, host, or container:NAME for another one's")
	fs.StringVar(&o.userns, "userns", "", "user `namespace`: host for none of its own")
	fs.StringArrayVar(&o.addHosts, "add-host", nil, "add `NAME:ADDRESS` to /etc/hosts")

	fs.StringArrayVarP(&o.volumes, "volume", "v", nil, "mount `DIR:TARGET[:ro]`")
	fs.StringArrayVar(&o.mounts, "mount", nil, "mount `type=bind|tmpfs,source=…,target=…[,readonly]`")
	fs.StringArrayVar(&o.tmpfs, "tmpfs", nil, "mount a tmpfs at `TARGET[:OPTIONS]`")
	fs.BoolVar(&o.readOnly, "read-only", false, "make the root file system read-only")
	fs.Var(&o.shmSize, "shm-size", "size of /dev/shm")

	fs.VarP(&o.memory, "memory", "m", "limit of memory")
	fs.Var(&o.memorySwap, "memory-swap", "limit of memory and swap together; -1 for none")
	fs.Var(&o.memoryReservation, "memory-reservation", "memory to leave to the container when it is short")
	fs.Float64Var(&o.cpus, "cpus", 0, "limit of `processors`, such as 1.5")
	fs.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "`weight` against other containers; 1024 is usual")
	fs.Int64Var(&o.cpuQuota, "cpu-quota", 0, "`microseconds` of processor time in a period")
	fs.Int64Var(&o.cpuPeriod, "cpu-period", 0, "`microseconds` of a period")
	fs.StringVar(&o.cpusetCPUs, "cpuset-cpus", "", "`processors` to run on, such as 0-3,5")
	fs.StringVar(&o.cpusetMems, "cpuset-mems", "", "memory `nodes` to use, such as 0-1")
	fs.Int64Var(&o.pidsLimit, "pids-limit", 0, "limit of processes and threads")
	fs.IntVar(&o.oomScoreAdj, "oom-score-adj", 0, "`preference` of the kernel to kill it, -1000 to 1000")
	fs.StringArrayVar(&o.ulimits, "ulimit", nil, "limit of each process, `NAME=SOFT[:HARD]`")
	fs.StringArrayVar(&o.sysctls, "sysctl", nil, "set a kernel setting of the container, `NAME=VALUE`")

	fs.StringArrayVar(&o.capAdd, "cap-add", nil, "give a `capability`")
	fs.StringArrayVar(&o.capDrop, "cap-drop", nil, "take a `capability` away")
	fs.StringArrayVar(&o.securityOpt, "security-opt", nil, "security `option`: no-new-privileges, seccomp=FILE, apparmor=NAME, systempaths=unconfined …")
	o.more.addFlags(fs)
}

// request turns the flags into what the node is asked for.
func (o *runOptions) request(image string, command []string) (client.ContainerCreateOptions, error) {
	var req client.ContainerCreateOptions
	switch o.pull {
	case pullMissing, pullAlways, pullNever:
	default:
		return req, fmt.Errorf("--pull %s: say %s, %s or %s", o.pull, pullMissing, pullAlways, pullNever)
	}
	env, err := environment(o.envFiles, o.env)
	if err != nil {
		return req, err
	}
	labels, err := pairs("label", o.labels)
	if err != nil {
		return req, err
	}
	cfg := &container.Config{
		Image: image, Cmd: command, Env: env, Labels: labels,
		Hostname: o.hostname, Domainname: o.domainname, User: o.user, WorkingDir: o.workdir,
		AttachStdin: o.interactive && !o.detach, AttachStdout: !o.detach, AttachStderr: !o.detach,
		OpenStdin: o.interactive, StdinOnce: o.interactive && !o.detach, Tty: o.tty,
		StopSignal: o.stopSignal,
	}
	if cfg.Healthcheck, err = o.more.healthcheck(o.flags); err != nil {
		return req, err
	}
	if o.flags.Changed("entrypoint") {
		cfg.Entrypoint = []string{o.entrypoint} // empty: none, also not the image's
	}
	if o.flags.Changed("stop-timeout") {
		cfg.StopTimeout = &o.stopTimeout
	}
	hostCfg, err := o.hostConfig()
	if err != nil {
		return req, err
	}
	return client.ContainerCreateOptions{Name: o.name, Config: cfg, HostConfig: hostCfg}, nil
}

func (o *runOptions) hostConfig() (*container.HostConfig, error) {
	mounts, err := parseMounts(o.mounts)
	if err != nil {
		return nil, err
	}
	binds, err := binds(o.volumes)
	if err != nil {
		return nil, err
	}
	sysctls, err := pairs("sysctl", o.sysctls)
	if err != nil {
		return nil, err
	}
	resources, err := o.resources()
	if err != nil {
		return nil, err
	}
	securityOpt, err := securityOptions(o.securityOpt)
	if err != nil {
		return nil, err
	}
	tmpfs := map[string]string{}
	for _, t := range o.tmpfs {
		target, options, _ := strings.Cut(t, ":")
		tmpfs[target] = options
	}
	hostCfg := &container.HostConfig{
		AutoRemove: o.remove, NetworkMode: container.NetworkMode(o.network), UsernsMode: container.UsernsMode(o.userns),
		Binds: binds, Mounts: mounts, Tmpfs: tmpfs, ExtraHosts: o.addHosts,
		ReadonlyRootfs: o.readOnly, ShmSize: int64(o.shmSize), CapAdd: o.capAdd, CapDrop: o.capDrop,
		SecurityOpt: securityOpt, GroupAdd: o.groups, OomScoreAdj: o.oomScoreAdj, Sysctls: sysctls,
		Resources: resources,
	}
	return hostCfg, o.more.apply(o.flags, hostCfg)
}

func (o *runOptions) resources() (container.Resources, error) {
	r := container.Resources{
		Memory: int64(o.memory), MemorySwap: int64(o.memorySwap), MemoryReservation: int64(o.memoryReservation),
		CPUShares: o.cpuShares, CPUQuota: o.cpuQuota, CPUPeriod: o.cpuPeriod,
		CpusetCpus: o.cpusetCPUs, CpusetMems: o.cpusetMems,
	}
	var err error
	if r.NanoCPUs, err = nanoCPUs(o.cpus); err != nil {
		return r, err
	}
	if o.flags.Changed("pids-limit") {
		r.PidsLimit = &o.pidsLimit
	}
	for _, u := range o.ulimits {
		limit, err := ulimit.ParseUlimit(u)
		if err != nil {
			return r, fmt.Errorf("--ulimit %s: %w", u, err)
		}
		r.Ulimits = append(r.Ulimits, limit)
	}
	return r, nil
}

// nanoCPUs reads a number of processors.
func nanoCPUs(cpus float64) (int64, error) {
	if cpus < 0 || cpus > 1<<20 {
		return 0, fmt.Errorf("--cpus %v: no such number of processors", cpus)
	}
	return int64(math.Round(cpus * 1e9)), nil
}

// environment reads the variables of files and flags, in this order, so that
// the node takes a flag's over a file's. A name alone is passed on from here,
// if it is set.
func environment(files, flags []string) ([]string, error) {
	var lines []string
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		scan := bufio.NewScanner(f)
		for scan.Scan() {
			if line := strings.TrimLeft(scan.Text(), " \t"); line != "" && line[0] != '#' {
				lines = append(lines, line)
			}
		}
		f.Close()
		if err := scan.Err(); err != nil {
			return nil, fmt.Errorf("--env-file %s: %w", path, err)
		}
	}
	var env []string
	for _, line := range append(lines, flags...) {
		name, _, set := strings.Cut(line, "=")
		if name == "" {
			return nil, fmt.Errorf("variable %q has no name", line)
		}
		if !set {
			value, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			line = name + "=" + value
		}
		env = append(env, line)
	}
	return env, nil
}

// pairs reads NAME=VALUE; a name alone has an empty value.
func pairs(flag string, list []string) (map[string]string, error) {
	m := map[string]string{}
	for _, s := range list {
		name, value, _ := strings.Cut(s, "=")
		if name == "" {
			return nil, fmt.Errorf("--%s %q has no name", flag, s)
		}
		m[name] = value
	}
	return m, nil
}

// binds makes the directories of --volume that begin with a dot absolute. The
// rest is the node's to judge.
func binds(volumes []string) ([]string, error) {
	var list []string
	for _, v := range volumes {
		if source, rest, ok := strings.Cut(v, ":"); ok && strings.HasPrefix(source, ".") {
			abs, err := filepath.Abs(source)
			if err != nil {
				return nil, fmt.Errorf("--volume %s: %w", v, err)
			}
			v = abs + ":" + rest
		}
		list = append(list, v)
	}
	return list, nil
}

// parseMounts reads --mount, a list of NAME=VALUE separated by commas.
func parseMounts(list []string) ([]mount.Mount, error) {
	var mounts []mount.Mount
	for _, s := range list {
		var m mount.Mount
		for field := range strings.SplitSeq(s, ",") {
			if err := setMount(&m, field); err != nil {
				return nil, fmt.Errorf("--mount %s: %w", s, err)
			}
		}
		if m.Type == "" || m.Target == "" {
			return nil, fmt.Errorf("--mount %s: needs type= and target=", s)
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

func setMount(m *mount.Mount, field string) (err error) {
	name, value, given := strings.Cut(field, "=")
	switch name {
	case "type":
		m.Type = mount.Type(value)
	case "source", "src":
		m.Source = value
	case "target", "dst", "destination":
		m.Target = value
	case "readonly", "ro":
		m.ReadOnly = true
		if given {
			m.ReadOnly, err = strconv.ParseBool(value)
		}
	case "bind-propagation":
		m.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(value)}
	case "tmpfs-size", "tmpfs-mode":
		if m.TmpfsOptions == nil {
			m.TmpfsOptions = new(mount.TmpfsOptions)
		}
		if name == "tmpfs-size" {
			var n units.Bytes
			err = n.Set(value)
			m.TmpfsOptions.SizeBytes = int64(n)
			break
		}
		var mode uint64
		mode, err = strconv.ParseUint(value, 8, 32)
		m.TmpfsOptions.Mode = os.FileMode(mode)
	default:
		return fmt.Errorf("there is no option %q", name)
	}
	return err
}
