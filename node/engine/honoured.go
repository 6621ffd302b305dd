package engine

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// honoured lists the fields of a create request that the node acts on, each
// with everything below it. Elements of lists have the path of their list.
var honoured = set(`
	Hostname Domainname User AttachStdin AttachStdout AttachStderr ExposedPorts OpenStdin StdinOnce
	Env Cmd Image WorkingDir Entrypoint Labels StopSignal StopTimeout Tty
	Volumes
	Healthcheck.Test Healthcheck.Interval Healthcheck.Timeout Healthcheck.StartPeriod Healthcheck.StartInterval
	Healthcheck.Retries
	HostConfig.Binds HostConfig.NetworkMode HostConfig.AutoRemove HostConfig.CapAdd HostConfig.CapDrop
	HostConfig.ExtraHosts HostConfig.GroupAdd HostConfig.OomScoreAdj HostConfig.ReadonlyRootfs
	HostConfig.SecurityOpt HostConfig.Tmpfs HostConfig.UsernsMode HostConfig.ShmSize HostConfig.Sysctls
	HostConfig.PortBindings HostConfig.LogConfig HostConfig.RestartPolicy HostConfig.ConsoleSize HostConfig.Annotations
	HostConfig.ContainerIDFile
	HostConfig.CgroupnsMode HostConfig.IpcMode HostConfig.PidMode HostConfig.UTSMode HostConfig.Privileged
	HostConfig.Init HostConfig.Runtime HostConfig.Umask HostConfig.MaskedPaths HostConfig.ReadonlyPaths
	HostConfig.Devices HostConfig.DeviceCgroupRules HostConfig.BlkioWeight HostConfig.BlkioWeightDevice
	HostConfig.BlkioDeviceReadBps HostConfig.BlkioDeviceWriteBps HostConfig.BlkioDeviceReadIOps
	HostConfig.BlkioDeviceWriteIOps HostConfig.CpuRealtimePeriod HostConfig.CpuRealtimeRuntime
	HostConfig.MemorySwappiness HostConfig.OomKillDisable
	HostConfig.CpuShares HostConfig.Memory HostConfig.NanoCpus HostConfig.CpuPeriod HostConfig.CpuQuota
	HostConfig.CpusetCpus HostConfig.CpusetMems HostConfig.MemoryReservation HostConfig.MemorySwap
	HostConfig.PidsLimit HostConfig.Ulimits
	HostConfig.Mounts.Type HostConfig.Mounts.Source HostConfig.Mounts.Target HostConfig.Mounts.ReadOnly
	HostConfig.Mounts.BindOptions.Propagation HostConfig.Mounts.BindOptions.NonRecursive
	HostConfig.Mounts.BindOptions.CreateMountpoint
	HostConfig.Mounts.TmpfsOptions.SizeBytes HostConfig.Mounts.TmpfsOptions.Mode
	HostConfig.Mounts.TmpfsOptions.Options`)

// neutral lists values of other fields that ask for what the node does anyway,
// as JSON. Beside them there are null, false, 0, "", [] and {}.
var neutral = map[string][]string{
	"HostConfig.Isolation":          {`"default"`},
	"HostConfig.Mounts.Consistency": {`"default"`},
	"HostConfig.VolumeDriver":       {`"local"`},
}

func set(names string) map[string]bool {
	m := map[string]bool{}
	for name := range strings.FieldsSeq(names) {
		m[name] = true
	}
	return m
}

// checkHonoured refuses by its name the first field of a create request, in
// alphabetical order, that asks for something the node does not do, also if
// this version of the node has never heard of it.
func checkHonoured(body []byte) error { return checkFields(body, "", honoured) }

// checkFields is checkHonoured for any request whose fields are below prefix.
func checkFields(body []byte, prefix string, honoured map[string]bool) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return invalidBody(err)
	}
	field, value := findUnhonoured(honoured, prefix, v)
	if field == "" {
		return nil
	}
	return unsupported("%s is not supported yet (it is set to %s)", field, value)
}

// findUnhonoured returns the path and the value of the first such field below
// path.
func findUnhonoured(honoured map[string]bool, path string, v any) (field, value string) {
	if honoured[path] {
		return "", ""
	}
	text, err := json.Marshal(v)
	if err != nil || slices.Contains(neutral[path], string(text)) {
		return "", ""
	}
	switch v := v.(type) {
	case nil:
		return "", ""
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if field, value := findUnhonoured(honoured, strings.TrimPrefix(path+"."+k, "."), v[k]); field != "" {
				return field, value
			}
		}
		return "", ""
	case []any:
		for _, e := range v {
			// An element that is set counts even if it is zero for its type,
			// but for a pair of zeros like ConsoleSize.
			if field, value := findUnhonoured(honoured, path, e); field != "" {
				return field, value
			}
		}
		return "", ""
	case bool:
		if !v {
			return "", ""
		}
	case json.Number:
		if f, err := v.Float64(); err == nil && f == 0 {
			return "", ""
		}
	case string:
		if v == "" {
			return "", ""
		}
	}
	const shown = 100
	if len(text) > shown {
		text = append(text[:shown:shown], "..."...)
	}
	return path, string(text)
}
