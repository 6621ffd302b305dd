package container

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParsePressure(t *testing.T) {
	got, ok := parsePressure([]byte("some avg10=1.50 avg60=0.25 avg300=0.01 total=1234567\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n"))
	want := Pressure{
		Some: PressureTimes{Avg10: 1.5, Avg60: 0.25, Avg300: 0.01, Total: 1234567 * time.Microsecond},
		Full: PressureTimes{Total: 99 * time.Microsecond},
	}
	if !ok || got != want {
		t.Errorf("parsePressure = %+v, %t, want %+v", got, ok, want)
	}
	if _, ok := parsePressure(nil); ok {
		t.Error("an empty file is a pressure")
	}
}

func TestParseBlocks(t *testing.T) {
	want := []BlockStats{{Major: 8, Minor: 16, ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4}, {Major: 254, ReadBytes: 5}}
	if got := parseIOStat([]byte("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=7 dios=8\n254:0 rbytes=5\n")); !reflect.DeepEqual(got, want) {
		t.Errorf("parseIOStat = %+v, want %+v", got, want)
	}
	got := parseBlkio(
		[]byte("8:16 Read 1\n8:16 Write 2\n8:16 Sync 3\n8:16 Total 3\n254:0 Read 5\nTotal 8\n"),
		[]byte("8:16 Read 3\n8:16 Write 4\nTotal 7\n"),
	)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parseBlkio = %+v, want %+v", got, want)
	}
}

func TestNoLimitOfMemory(t *testing.T) {
	for _, page := range []int64{4 << 10, 16 << 10, 64 << 10} {
		if n := math.MaxInt64 / page * page; n < noLimit1 {
			t.Errorf("with pages of %d bytes, no limit is %d, which counts as one", page, n)
		}
	}
}

// TestMissingController sets limits where a controller is not, as on machines whose
// memory is not counted: that is refused, unless nothing is lost by it.
func TestMissingController(t *testing.T) {
	h := hierarchies{only2: true, unified: t.TempDir()}
	dir := filepath.Join(h.unified, "c")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"cgroup.controllers": "cpu pids\n", "pids.max": "max\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set := func(r *specs.LinuxResources) error {
		list, err := settings(true, r, r)
		if err == nil {
			_, err = h.set("c", list)
		}
		return err
	}
	limit := int64(1 << 30)
	for _, tc := range []struct {
		name string
		r    specs.LinuxResources
		want string
	}{
		{"memory", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(5))}, Memory: &specs.LinuxMemory{Limit: &limit}}, "linux.resources.memory.limit: this node has no cgroup controller memory"},
		{"file", specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: new(uint64(5))}}, "linux.resources.cpu.burst: this kernel has no cpu.max.burst"},
		{"no burst", specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: new(uint64(0)), Idle: new(int64(0))}}, ""},
		{"pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(7))}}, ""},
	} {
		err := set(&tc.r)
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want an error with %q", tc.name, err, tc.want)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "pids.max")); err != nil || tc.name == "memory" && !strings.HasPrefix(string(b), "max") {
			t.Errorf("%s: afterwards the limit of pids is %q, %v", tc.name, b, err)
		}
	}
}

// FuzzStats reads files of cgroups that are damaged. What comes out can be said in
// JSON, and is not below zero.
func FuzzStats(f *testing.F) {
	for _, s := range []string{
		"", "\n", "some", "some avg10=NaN avg60=1e999 avg300=- total=18446744073709551615\nfull avg10\n",
		"8:0 rbytes=1 wbytes\n:\n1:2:3 Read 7\n8:0 Read\n8:0 Read 5\n", "cache 18446744073709551615\n \nusage_usec 9\n", "max\n", "1 2 3 \n",
	} {
		f.Add([]byte(s), []byte("8:0 Write 18446744073709551615\n"))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s := Stats{MemoryDetails: parseKeyed(a), Blocks: append(parseIOStat(a), parseBlkio(a, b)...), Pids: number(a)}
		s.cpu2(a)
		p, _ := parsePressure(a)
		s.Pressure = map[string]Pressure{"cpu": p}
		if _, err := json.Marshal(s); err != nil {
			t.Errorf("%q: %v", a, err)
		}
		if s.CPU < 0 || s.Throttled < 0 || p.Some.Total < 0 {
			t.Errorf("%q: time below zero in %+v", a, s)
		}
	})
}

var fileName = regexp.MustCompile(`^[a-z_]+\.[a-zA-Z0-9_.]+$`)

// FuzzSettings translates limits from anywhere. No file is outside of the cgroup's
// directory, or moves or kills processes.
func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"unified":{"memory.high":"1","../x.y":"2","cgroup.procs":"1","a.b/../c":""},"hugepageLimits":[{"pageSize":"2MB/../..","limit":1}]}`), true)
	f.Add([]byte(`{"memory":{"limit":-5,"swap":3},"cpu":{"shares":0,"quota":-7},"rdma":{"a\nb":{"hcaHandles":1}},"network":{"priorities":[{"name":"a b","priority":1}]}}`), false)
	f.Fuzz(func(t *testing.T, data []byte, only2 bool) {
		r := new(specs.LinuxResources)
		if json.Unmarshal(data, r) != nil {
			return
		}
		whole := merge(&specs.LinuxResources{}, r)
		list, err := settings(only2, r, whole)
		if err != nil {
			return
		}
		for _, s := range list {
			if !fileName.MatchString(s.file) || s.file == "cgroup.procs" || s.file == "cgroup.kill" || s.file == "cgroup.freeze" || s.file == "cgroup.threads" {
				t.Errorf("%s: setting %+v", data, s)
			}
			if s.key != "" && !word().MatchString(s.key) {
				t.Errorf("%s: line %+v", data, s)
			}
		}
		if again := merge(whole, r); !reflect.DeepEqual(again, whole) {
			t.Errorf("%s: set twice it is %+v, once %+v", data, again, whole)
		}
	})
}
