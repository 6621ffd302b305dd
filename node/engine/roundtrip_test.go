package engine

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"berth.internal/node/host"
)

// everything asks for all that a create request can ask for and that goes together.
const everything = `{
	"Image": "team/app:1", "Tty": true, "OpenStdin": true, "StdinOnce": true, "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
	"User": "1:2", "Env": ["A=b"], "Cmd": ["c"], "Entrypoint": ["e"], "WorkingDir": "/w", "Labels": {"l": "m"}, "StopSignal": "SIGINT", "StopTimeout": 3,
	"Healthcheck": {"Test": ["CMD", "true"], "Interval": 1000000000, "Timeout": 2000000000, "StartPeriod": 3000000000, "StartInterval": 4000000000, "Retries": 5},
	"HostConfig": {
		"Binds": ["/a:/b:ro,rslave"], "NetworkMode": "none", "AutoRemove": false, "CapAdd": ["NET_ADMIN"], "CapDrop": ["KILL"],
		"LogConfig": {"Type": "json-file", "Config": {"max-size": "1048576", "max-file": "2"}},
		"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 4}, "ConsoleSize": [30, 90], "Annotations": {"a": "b"},
		"CgroupnsMode": "host", "IpcMode": "none", "PidMode": "container:x", "UTSMode": "host", "UsernsMode": "host", "Privileged": true,
		"ExtraHosts": ["db:10.0.0.1"], "GroupAdd": ["audio"], "OomScoreAdj": 100, "ReadonlyRootfs": true,
		"SecurityOpt": ["no-new-privileges", "seccomp=unconfined", "apparmor=docker-default", "writable-cgroups=true",
			"label=user:u", "label=role:r", "label=type:t", "label=level:s0:c1,c2"],
		"ContainerIDFile": "/tmp/id", "Tmpfs": {"/t": "size=1k"}, "ShmSize": 1000, "Sysctls": {"net.ipv4.ip_forward": "1"}, "Runtime": "crun", "Umask": 7,
		"MaskedPaths": ["/proc/x"], "ReadonlyPaths": [], "Init": true,
		"CpuShares": 100, "Memory": 8388608, "MemorySwap": 9000000, "MemoryReservation": 7000000, "MemorySwappiness": 10, "OomKillDisable": true,
		"NanoCpus": 500000000, "CpuRealtimePeriod": 1000, "CpuRealtimeRuntime": 900, "CpusetCpus": "0-1", "CpusetMems": "0", "PidsLimit": 12,
		"BlkioWeight": 20, "BlkioWeightDevice": [{"Path": "/dev/a", "Weight": 30}],
		"BlkioDeviceReadBps": [{"Path": "/dev/a", "Rate": 1}], "BlkioDeviceWriteBps": [{"Path": "/dev/a", "Rate": 2}],
		"BlkioDeviceReadIOps": [{"Path": "/dev/a", "Rate": 3}], "BlkioDeviceWriteIOps": [{"Path": "/dev/a", "Rate": 4}],
		"Devices": [{"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "rw"}], "DeviceCgroupRules": ["c 1:3 rwm"],
		"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
		"Mounts": [{"Type": "bind", "Source": "/c", "Target": "/d", "ReadOnly": true}]
	}
}`

// TestInspectShowsWhatWasAsked creates a spec of a request and shows it again: what
// comes out must be what went in, field by field, but for what is filled in.
func TestInspectShowsWhatWasAsked(t *testing.T) {
	spec, _, err := readSpec([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	var asked struct {
		container.Config
		HostConfig container.HostConfig
	}
	if err := json.Unmarshal([]byte(everything), &asked); err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]any{
		"Config":     {asked.Config, newConfig(host.Container{Spec: spec})},
		"HostConfig": {asked.HostConfig, newHostConfig(spec)},
	} {
		want, got := fields(t, pair[0]), fields(t, pair[1])
		for field, value := range want {
			if !reflect.DeepEqual(got[field], value) {
				t.Errorf("%s.%s was asked to be %v and is shown as %v", name, field, value, got[field])
			}
		}
	}
	// And what is shown can be asked for again, as Portainer does to make a copy.
	again, _, err := readSpec(encodeRequest(t, newConfig(host.Container{Spec: spec}), newHostConfig(spec)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, spec) {
		t.Errorf("asked for again it is\n%+v\nand was\n%+v", again, spec)
	}
}

// fields returns the fields of v that are not null, empty or zero.
func fields(t *testing.T, v any) map[string]any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for name, value := range all {
		if field, _ := findUnhonoured(nil, name, value); field == "" {
			delete(all, name)
		}
	}
	return all
}

func encodeRequest(t *testing.T, cfg *container.Config, hc *container.HostConfig) []byte {
	t.Helper()
	text, err := json.Marshal(struct {
		*container.Config
		HostConfig *container.HostConfig
	}{cfg, hc})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestWrongOptionsAreRefused(t *testing.T) {
	for _, tc := range []struct{ hostConfig, says string }{
		{`{"RestartPolicy":{"Name":"sometimes"}}`, "invalid restart policy"},
		{`{"RestartPolicy":{"Name":"always","MaximumRetryCount":2}}`, "maximum retry count can only be used with 'on-failure'"},
		{`{"LogConfig":{"Type":"syslog"}}`, `HostConfig.LogConfig.Type "syslog" is not supported`},
		{`{"LogConfig":{"Config":{"max-size":"much"}}}`, `max-size: "much"`},
		{`{"LogConfig":{"Config":{"max-file":"0"}}}`, "max-file"},
		{`{"LogConfig":{"Config":{"tag":"x"}}}`, `log option "tag" is not supported`},
		{`{"LogConfig":{"Config":{"compress":"true"}}}`, "compress=true is not supported"},
		{`{"LogConfig":{"Type":"none","Config":{"max-file":"2"}}}`, "log driver none has no options"},
		{`{"ConsoleSize":[70000,1]}`, "invalid size of a terminal"},
		{`{"SecurityOpt":["seccomp="]}`, "names no profile"},
		{`{"SecurityOpt":["no-new-privileges=maybe"]}`, "invalid --security-opt"},
		{`{"SecurityOpt":["systempaths=some"]}`, "say systempaths=unconfined"},
		{`{"SecurityOpt":["label=user:"]}`, "is not supported"},
		{`{"NetworkMode":"container:x","PortBindings":{"80/tcp":[{"HostPort":"80"}]}}`, "conflicting options"},
		{`{"NanoCpus":1000,"CpuQuota":5000}`, "Conflicting options"},
		{`{"KernelMemory":1000}`, "HostConfig.KernelMemory is not supported"},
		{`{"CgroupParent":"x"}`, "HostConfig.CgroupParent is not supported"},
		{`{"BlkioWeightDevice":[null]}`, "invalid device weight"},
		{`{"BlkioDeviceReadBps":[null]}`, "invalid device limit"},
		{`{"Ulimits":[null]}`, "invalid ulimit"},
		{`{"Ulimits":[{"Name":"nofile","Soft":-5,"Hard":-1}]}`, "invalid ulimit: nofile=-5:-1"},
		{`{"ExtraHosts":["a\n8.8.8.8 b:1.2.3.4"]}`, "bad format for add-host"},
		{`{"Binds":["/a:/b:ro,rw"]}`, "invalid mode: ro,rw"},
		{`{"Binds":["/a:/b:rslave,ro,rprivate"]}`, "invalid mode: rslave,ro,rprivate"},
		{`{"Binds":["/a:/b:z"]}`, `option "z" of "/a:/b:z" is not supported`},
	} {
		_, _, err := readSpec([]byte(`{"Image":"x","HostConfig":` + tc.hostConfig + `}`))
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want something of %q", tc.hostConfig, err, tc.says)
		}
	}
}

// TestVolumesAndNetworks reads what docker-py and docker send beside a container's mounts
// and its network: their names again, which are fine, and others, which are not.
func TestVolumesAndNetworks(t *testing.T) {
	for _, tc := range []struct{ request, says string }{
		{`"Volumes":{"/a":{}}`, `anonymous volumes ("/a") are not supported yet`},
		{`"Volumes":{"/a":{},"/b/":{}},"HostConfig":{"Binds":["/x:/b"],"Tmpfs":{"/a":""}}`, ""},
		{`"NetworkingConfig":{"EndpointsConfig":{"default":{}}}`, ""},
		{`"NetworkingConfig":{"EndpointsConfig":{"none":{"IPAMConfig":null}}},"HostConfig":{"NetworkMode":"none"}`, ""},
		{`"NetworkingConfig":{"EndpointsConfig":{"none":{},"host":{}}},"HostConfig":{"NetworkMode":"none"}`, "more than one network (none and host)"},
		{`"NetworkingConfig":{"EndpointsConfig":{"host":null}}`, "more than one network (default and host)"},
		{`"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"SizeBytes":4096,"Mode":448}}]}`, ""},
	} {
		_, _, err := readSpec([]byte(`{"Image":"x",` + tc.request + `}`))
		if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", tc.request, err, tc.says)
		}
	}
}

func TestPsColumns(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"-ef", "USER PID PPID C STIME TTY TIME CMD"},
		{"aux", "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND"},
		{"-o pid,comm", "PID COMMAND"},
		{"-eopid,args", "PID COMMAND"},
		{"-e", "PID TTY TIME COMMAND"},
		{"--format=pid,rss", "PID RSS"},
		{"--forest", ""},
		{"-o", ""},
		{"-o nosuch", ""},
		{"-Z", ""},
	} {
		cols, err := psColumns(tc.args)
		got := ""
		for i, c := range cols {
			if i > 0 {
				got += " "
			}
			got += c.title
		}
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("ps %s has columns %q, %v, want %q", tc.args, got, err, tc.want)
		}
	}
}
