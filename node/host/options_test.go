package host

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
	"berth.internal/node/image"
)

func TestHealthFill(t *testing.T) {
	img := image.Image{RawConfig: []byte(`{"config":{"Healthcheck":{"Test":["CMD","image"],"Interval":7000000000,"Retries":9}}}`)}
	for _, tc := range []struct {
		name string
		user *Health
		img  image.Image
		want string
	}{
		{"neither", nil, image.Image{}, "null"},
		{"the image's", nil, img, `{"test":["CMD","image"],"interval":7000000000,"retries":9}`},
		{"the user's", &Health{Test: []string{"CMD", "user"}, Retries: 1}, img, `{"test":["CMD","user"],"interval":7000000000,"retries":1}`},
		{"the image's, more often", &Health{Interval: time.Second}, img, `{"test":["CMD","image"],"interval":1000000000,"retries":9}`},
		{"none", &Health{Test: []string{HealthNone}}, img, `{"test":["NONE"],"interval":7000000000,"retries":9}`},
		{"an image that is not Docker's", nil, image.Image{RawConfig: []byte(`[`)}, "null"},
	} {
		got, err := json.Marshal(tc.user.fill(tc.img))
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: %s %v, want %s", tc.name, got, err, tc.want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec Spec
		says string // "": fine
	}{
		{"nothing", Spec{}, ""},
		{"another's network", Spec{Network: "container:x"}, ""},
		{"nobody's network", Spec{Network: "container:"}, "names no container"},
		{"a network that is none", Spec{Network: "bridge0"}, `network "bridge0" is not supported`},
		{"IPC that is none", Spec{Namespaces: Namespaces{IPC: "x"}}, `IPC mode "x" is not supported`},
		{"UTS of another", Spec{Namespaces: Namespaces{UTS: "container:x"}}, `UTS mode "container:x" is not supported`},
		{"host name of another's network", Spec{Network: "container:x", Hostname: "h"}, "hostname and the network mode"},
		{"hosts of another's network", Spec{Network: "container:x", ExtraHosts: []Alias{{"a", "1.1.1.1"}}}, "custom host-to-IP mapping"},
		{"host name of the node", Spec{Namespaces: Namespaces{UTS: NamespaceHost}, Hostname: "h"}, "hostname and the UTS mode"},
		{"paths without end", Spec{Security: Security{MaskedPaths: make([]string, maxPaths+1)}}, "masked and read-only paths"},
		{"umask", Spec{Umask: new(uint32(0o1777))}, "invalid umask"},
		{"profile", Spec{Security: Security{Seccomp: "{"}}, "decoding seccomp profile failed"},
		{"no profile", Spec{Security: Security{Seccomp: SeccompUnconfined}}, ""},
		{"device", Spec{Devices: []Device{{"/dev/null", "/dev/n", "rwm"}}}, ""},
		{"no device", Spec{Devices: []Device{{"/dev/nosuch", "/dev/n", "rwm"}}}, "no such file"},
		{"a device elsewhere", Spec{Devices: []Device{{"/dev/null", "/tmp/n", "rwm"}}}, "devices are below /dev"},
		{"a device out of /dev", Spec{Devices: []Device{{"/dev/null", "/dev/../tmp/n", "rwm"}}}, "devices are below /dev"},
		{"access", Spec{Devices: []Device{{"/dev/null", "/dev/n", "x"}}}, "it is of r, w and m"},
		{"a relative device", Spec{Devices: []Device{{"null", "/dev/n", "r"}}}, "must be absolute"},
		{"rule", Spec{DeviceRules: []string{"c 1:* rw"}}, ""},
		{"a rule that is none", Spec{DeviceRules: []string{"c 1:99999999999 rw"}}, "invalid device cgroup rule"},
	} {
		if tc.spec.Network == "" {
			tc.spec.Network = NetworkNone
		}
		err := tc.spec.checkOptions()
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: %v, want something of %q", tc.name, err, tc.says)
		case err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported):
			t.Errorf("%s: %v is neither ErrInvalid nor ErrUnsupported", tc.name, err)
		}
	}
}

func TestResourcesAreChecked(t *testing.T) {
	for _, tc := range []struct {
		res  Resources
		says string // "": fine
	}{
		{Resources{}, ""},
		{Resources{Memory: minMemory, MemorySwap: -1}, ""},
		{Resources{Memory: -5}, "Minimum memory limit"},
		{Resources{Memory: 5}, "Minimum memory limit"},
		{Resources{MemorySwap: 5}, "always set the Memory limit"},
		{Resources{Memory: 2 * minMemory, MemorySwap: minMemory}, "memoryswap limit should be larger"},
		{Resources{MemorySwap: -2}, "invalid memoryswap limit"},
		{Resources{Swappiness: new(int64(101))}, "swappiness"},
		{Resources{OOMKillDisable: true}, "no memory limit is set"},
		{Resources{CpusetCPUs: "0-3,5"}, ""},
		{Resources{CpusetCPUs: "3-1"}, "cpuset cpus"},
		{Resources{CpusetMems: "0,"}, "cpuset mems"},
		{Resources{CpusetCPUs: "99999"}, "cpuset cpus"},
		{Resources{CPURealtimePeriod: 5, CPURealtimeRuntime: 6}, "real-time runtime"},
		{Resources{Blkio: Blkio{Weight: 5}}, "from 10 to 1000"},
		{Resources{Blkio: Blkio{Weights: []DeviceLimit{{"/dev/a", 5000}}}}, "from 10 to 1000"},
	} {
		err := tc.res.check()
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%+v: %v, want something of %q", tc.res, err, tc.says)
		}
	}
}

func TestDifference(t *testing.T) {
	for _, tc := range []struct {
		name     string
		from, to Resources
		want     string
	}{
		{"nothing", Resources{Memory: minMemory}, Resources{Memory: minMemory}, "null"},
		{"memory", Resources{}, Resources{Memory: minMemory}, `{"memory":{"limit":6291456,"swap":12582912}}`},
		{"no memory limit", Resources{Memory: minMemory}, Resources{}, `{"memory":{"limit":-1,"reservation":-1,"swap":-1}}`},
		{"quota", Resources{CPUShares: 5}, Resources{CPUShares: 5, CPUQuota: 1000}, `{"cpu":{"shares":5,"quota":1000}}`},
		{"no quota", Resources{CPUShares: 5, CPUQuota: 1000}, Resources{CPUShares: 5}, `{"cpu":{"shares":5,"quota":-1}}`},
		{"no cpu limits", Resources{CPUShares: 5, CPUQuota: 1000}, Resources{}, `{"cpu":{"shares":1024,"quota":-1}}`},
		{"no pids limit", Resources{Pids: 5}, Resources{}, `{"pids":{"limit":-1}}`},
		{"weight", Resources{}, Resources{Blkio: Blkio{Weight: 10}}, `{"blockIO":{"weight":10}}`},
	} {
		changed, err := difference(tc.from, tc.to)
		got, jerr := json.Marshal(changed)
		if err != nil || jerr != nil || string(got) != tc.want {
			t.Errorf("%s: %s %v %v, want %s", tc.name, got, err, jerr, tc.want)
		}
	}
}

func TestDevices(t *testing.T) {
	spec := func() *specs.Spec { return container.DefaultSpec() }
	s := spec()
	defaults := len(s.Linux.Resources.Devices)
	if err := addDevices(s, Spec{Devices: []Device{{"/dev/null", "/dev/n", "rw"}}, DeviceRules: []string{"b *:7 r"}}); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(s.Linux.Resources.Devices[defaults:])
	if err != nil || string(text) != `[{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},{"allow":true,"type":"b","minor":7,"access":"r"}]` {
		t.Errorf("rules are %s %v", text, err)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/n" || d[0].Type != "c" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("devices are %+v", d)
	}
	// In a user namespace the node's owner would be somebody else.
	s = spec()
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}}
	if err := addDevices(s, Spec{Devices: []Device{{"/dev/null", "/dev/n", "rw"}}}); err != nil || s.Linux.Devices[0].UID != nil {
		t.Errorf("device has owner %v, %v", s.Linux.Devices[0].UID, err)
	}
	// A privileged container has all, but for what is its own.
	s = spec()
	if err := addDevices(s, Spec{Security: Security{Privileged: true}}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, d := range s.Linux.Devices {
		seen[d.Path] = true
		if strings.HasPrefix(d.Path, "/dev/pts/") || d.Path == "/dev/ptmx" || d.Path == "/dev/console" {
			t.Errorf("a privileged container has the node's %s", d.Path)
		}
	}
	if !seen["/dev/null"] || !seen["/dev/zero"] || len(s.Linux.Resources.Devices) != 1 {
		t.Errorf("a privileged container has %d devices and %d rules", len(s.Linux.Devices), len(s.Linux.Resources.Devices))
	}
}

func TestLogConfig(t *testing.T) {
	for _, tc := range []struct {
		log  Log
		want container.LogConfig
	}{
		{Log{}, container.LogConfig{Path: "p", MaxSize: DefaultLogSize, MaxFiles: DefaultLogFiles}},
		{Log{MaxSize: -1, MaxFiles: 1}, container.LogConfig{Path: "p", MaxFiles: 1}},
		{Log{Driver: "json-file", MaxSize: 5, MaxFiles: 7}, container.LogConfig{Path: "p", MaxSize: 5, MaxFiles: 7}},
		{Log{Driver: LogNone}, container.LogConfig{}},
	} {
		if got := tc.log.config("p"); got != tc.want {
			t.Errorf("%+v is %+v, want %+v", tc.log, got, tc.want)
		}
	}
}
