package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"berth.internal/internal/units"
)

// limitOrNone is a size, or -1 for no limit.
type limitOrNone int64

func (l limitOrNone) String() string {
	if l < 0 {
		return "-1"
	}
	return units.Bytes(l).String()
}

// Set reads it from a flag.
func (l *limitOrNone) Set(s string) error {
	if s == "-1" {
		*l = -1
		return nil
	}
	n, err := units.ParseBytes(s)
	*l = limitOrNone(n)
	return err
}

// Type names it in a flag's help.
func (*limitOrNone) Type() string { return "size" }

// moreOptions are the flags of run for what most containers leave alone.
type moreOptions struct {
	init, privileged              bool
	restart, runtime              string
	pid, ipc, uts, cgroupns       string
	devices, deviceRules          []string
	logDriver                     string
	logOpts, annotations          []string
	noHealthcheck                 bool
	health                        container.HealthConfig
	healthCommand                 string
	blkio                         blkioOptions
	oomKillDisable                bool
	swappiness                    int64
	realtimePeriod, realtimeLimit int64
}

func (o *moreOptions) addFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.init, "init", false, "run a small init in the container, which reaps processes and passes signals on")
	fs.StringVar(&o.restart, "restart", "", "begin again `when` it ends: no, always, unless-stopped or on-failure[:MAX]")
	fs.StringVar(&o.runtime, "runtime", "", "`runtime` to run it with: berth, runc or crun")
	fs.StringArrayVar(&o.annotations, "annotation", nil, "give the runtime `NAME=VALUE`")
	fs.StringVar(&o.logDriver, "log-driver", "", "keep the output: local, json-file (the same) or `none`")
	fs.StringArrayVar(&o.logOpts, "log-opt", nil, "`NAME=VALUE` of the log: max-size (default 10m), max-file (default 3)")

	fs.BoolVar(&o.privileged, "privileged", false, "give it all capabilities and devices of the node, and the node's users")
	fs.StringArrayVar(&o.devices, "device", nil, "give it a device of the node, `PATH[:TARGET[:rwm]]`")
	fs.StringArrayVar(&o.deviceRules, "device-cgroup-rule", nil, "let it use devices that match a `rule`, such as \"c 1:* rw\"")
	fs.StringVar(&o.pid, "pid", "", "process `namespace`: host, or container:NAME for another one's")
	fs.StringVar(&o.ipc, "ipc", "", "IPC `namespace`: private, shareable, none, host, or container:NAME for another one's")
	fs.StringVar(&o.uts, "uts", "", "host name `namespace`: host for the node's")
	fs.StringVar(&o.cgroupns, "cgroupns", "", "cgroup `namespace`: private or host")

	fs.StringVar(&o.healthCommand, "health-cmd", "", "ask whether it is well with a `command` of its shell")
	fs.DurationVar(&o.health.Interval, "health-interval", 0, "`time` between two checks (default 30s)")
	fs.DurationVar(&o.health.Timeout, "health-timeout", 0, "`time` after which a check has failed (default 30s)")
	fs.DurationVar(&o.health.StartPeriod, "health-start-period", 0, "`time` at first in which failures do not count")
	fs.DurationVar(&o.health.StartInterval, "health-start-interval", 0, "`time` between two checks then (default 5s)")
	fs.IntVar(&o.health.Retries, "health-retries", 0, "`number` of failures that make it unhealthy (default 3)")
	fs.BoolVar(&o.noHealthcheck, "no-healthcheck", false, "do not check, also if the image says how")

	o.blkio.addFlags(fs)
	fs.BoolVar(&o.oomKillDisable, "oom-kill-disable", false, "let processes wait for memory instead of killing one (cgroup version 1)")
	fs.Int64Var(&o.swappiness, "memory-swappiness", -1, "`preference` to swap, 0 to 100 (cgroup version 1)")
	fs.Int64Var(&o.realtimePeriod, "cpu-rt-period", 0, "`microseconds` of a period of real-time scheduling")
	fs.Int64Var(&o.realtimeLimit, "cpu-rt-runtime", 0, "`microseconds` of it that real-time processes get")
}

// apply writes the options into what the node is asked for.
func (o *moreOptions) apply(fs *pflag.FlagSet, hc *container.HostConfig) (err error) {
	if o.init {
		hc.Init = &o.init
	}
	hc.Privileged, hc.Runtime, hc.DeviceCgroupRules = o.privileged, o.runtime, o.deviceRules
	hc.PidMode, hc.IpcMode = container.PidMode(o.pid), container.IpcMode(o.ipc)
	hc.UTSMode, hc.CgroupnsMode = container.UTSMode(o.uts), container.CgroupnsMode(o.cgroupns)
	if hc.RestartPolicy, err = parseRestart(o.restart); err != nil {
		return err
	}
	if len(o.annotations) > 0 {
		if hc.Annotations, err = pairs("annotation", o.annotations); err != nil {
			return err
		}
	}
	hc.LogConfig.Type = o.logDriver
	if len(o.logOpts) > 0 {
		if hc.LogConfig.Config, err = pairs("log-opt", o.logOpts); err != nil {
			return err
		}
	}
	for _, d := range o.devices {
		device, err := parseDevice(d)
		if err != nil {
			return err
		}
		hc.Devices = append(hc.Devices, device)
	}
	if o.oomKillDisable {
		hc.OomKillDisable = &o.oomKillDisable
	}
	if fs.Changed("memory-swappiness") {
		hc.MemorySwappiness = &o.swappiness
	}
	hc.CPURealtimePeriod, hc.CPURealtimeRuntime = o.realtimePeriod, o.realtimeLimit
	return o.blkio.apply(&hc.Resources)
}

// healthcheck returns the check that the flags ask for, nil for the image's.
func (o *moreOptions) healthcheck(fs *pflag.FlagSet) (*container.HealthConfig, error) {
	asked := false
	fs.Visit(func(f *pflag.Flag) { asked = asked || strings.HasPrefix(f.Name, "health-") })
	switch {
	case o.noHealthcheck && asked:
		return nil, fmt.Errorf("--no-healthcheck excludes the --health flags")
	case o.noHealthcheck:
		return &container.HealthConfig{Test: []string{"NONE"}}, nil
	case !asked:
		return nil, nil
	}
	for name, d := range map[string]time.Duration{
		"interval": o.health.Interval, "timeout": o.health.Timeout, "start-period": o.health.StartPeriod, "start-interval": o.health.StartInterval,
	} {
		if d < 0 {
			return nil, fmt.Errorf("--health-%s %s is below zero", name, d)
		}
	}
	health := o.health
	if o.healthCommand != "" {
		health.Test = []string{"CMD-SHELL", o.healthCommand}
	}
	return &health, nil
}

// parseRestart reads a restart policy, NAME[:MAX].
func parseRestart(s string) (p container.RestartPolicy, err error) {
	name, most, counted := strings.Cut(s, ":")
	p.Name = container.RestartPolicyMode(name)
	if counted {
		if p.MaximumRetryCount, err = strconv.Atoi(most); err != nil {
			return p, fmt.Errorf("--restart %s: %q is no number", s, most)
		}
	}
	if err := container.ValidateRestartPolicy(p); err != nil {
		return p, fmt.Errorf("--restart %s: say no, always, unless-stopped or on-failure[:MAX]", s)
	}
	return p, nil
}

// parseDevice reads PATH[:TARGET][:rwm].
func parseDevice(s string) (container.DeviceMapping, error) {
	parts := strings.Split(s, ":")
	d := container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
	access := func(s string) bool { return s != "" && strings.Trim(s, "rwm") == "" }
	switch {
	case parts[0] == "" || len(parts) > 3:
		return d, fmt.Errorf("--device %s: write PATH[:TARGET[:rwm]]", s)
	case len(parts) == 2 && access(parts[1]):
		d.CgroupPermissions = parts[1]
	case len(parts) >= 2:
		d.PathInContainer = parts[1]
	}
	if len(parts) == 3 {
		if !access(parts[2]) {
			return d, fmt.Errorf("--device %s: %q is not made of r, w and m", s, parts[2])
		}
		d.CgroupPermissions = parts[2]
	}
	return d, nil
}

// maxProfile is how large a seccomp profile may be, in bytes.
const maxProfile = 2 << 20

// securityOptions reads the file of seccomp=FILE, since the node cannot, and leaves
// the rest to the node.
func securityOptions(list []string) ([]string, error) {
	var out []string
	for _, opt := range list {
		name, value, _ := strings.Cut(opt, "=")
		if name != "seccomp" || value == "unconfined" || value == "builtin" || value == "" {
			out = append(out, opt)
			continue
		}
		info, err := os.Stat(value)
		if err != nil {
			return nil, fmt.Errorf("--security-opt %s: %w", opt, err)
		}
		if info.Size() > maxProfile {
			return nil, fmt.Errorf("--security-opt %s: the file is larger than %s", opt, units.Bytes(maxProfile))
		}
		profile, err := os.ReadFile(filepath.Clean(value))
		if err != nil {
			return nil, fmt.Errorf("--security-opt %s: %w", opt, err)
		}
		if !json.Valid(profile) {
			return nil, fmt.Errorf("--security-opt %s: the file is not JSON", opt)
		}
		out = append(out, "seccomp="+string(profile))
	}
	return out, nil
}

// blkioOptions are the flags for limits of block devices.
type blkioOptions struct {
	weight                                 uint16
	weights                                []string
	readBps, writeBps, readIOPS, writeIOPS []string
}

func (o *blkioOptions) addFlags(fs *pflag.FlagSet) {
	fs.Uint16Var(&o.weight, "blkio-weight", 0, "`weight` of its transfers against others', 10 to 1000")
	fs.StringArrayVar(&o.weights, "blkio-weight-device", nil, "the same for one device, `PATH:WEIGHT`")
	fs.StringArrayVar(&o.readBps, "device-read-bps", nil, "limit what it reads of a device in a second, `PATH:SIZE`")
	fs.StringArrayVar(&o.writeBps, "device-write-bps", nil, "limit what it writes to a device in a second, `PATH:SIZE`")
	fs.StringArrayVar(&o.readIOPS, "device-read-iops", nil, "limit how often it reads a device in a second, `PATH:NUMBER`")
	fs.StringArrayVar(&o.writeIOPS, "device-write-iops", nil, "limit how often it writes to a device in a second, `PATH:NUMBER`")
}

func (o *blkioOptions) apply(r *container.Resources) error {
	r.BlkioWeight = o.weight
	for _, w := range o.weights {
		path, weight, err := deviceNumber("blkio-weight-device", w, false)
		if err != nil {
			return err
		}
		if weight > 1000 {
			return fmt.Errorf("--blkio-weight-device %s: a weight is from 10 to 1000", w)
		}
		r.BlkioWeightDevice = append(r.BlkioWeightDevice, &blkiodev.WeightDevice{Path: path, Weight: uint16(weight)})
	}
	for _, l := range []struct {
		flag  string
		from  []string
		bytes bool
		to    *[]*blkiodev.ThrottleDevice
	}{
		{"device-read-bps", o.readBps, true, &r.BlkioDeviceReadBps},
		{"device-write-bps", o.writeBps, true, &r.BlkioDeviceWriteBps},
		{"device-read-iops", o.readIOPS, false, &r.BlkioDeviceReadIOps},
		{"device-write-iops", o.writeIOPS, false, &r.BlkioDeviceWriteIOps},
	} {
		for _, s := range l.from {
			path, rate, err := deviceNumber(l.flag, s, l.bytes)
			if err != nil {
				return err
			}
			*l.to = append(*l.to, &blkiodev.ThrottleDevice{Path: path, Rate: rate})
		}
	}
	return nil
}

// deviceNumber reads PATH:NUMBER, or PATH:SIZE.
func deviceNumber(flag, s string, size bool) (path string, n uint64, err error) {
	path, text, ok := strings.Cut(s, ":")
	if !ok || !filepath.IsAbs(path) {
		return "", 0, fmt.Errorf("--%s %s: write PATH:NUMBER", flag, s)
	}
	if size {
		b, err := units.ParseBytes(text)
		if err != nil {
			return "", 0, fmt.Errorf("--%s %s: %w", flag, s, err)
		}
		return path, uint64(b), nil
	}
	if n, err = strconv.ParseUint(text, 10, 64); err != nil {
		return "", 0, fmt.Errorf("--%s %s: %q is no number", flag, s, text)
	}
	return path, n, nil
}
