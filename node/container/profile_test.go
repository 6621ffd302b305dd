package container_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.internal/node/container"
)

// TestLoadSeccomp reads profiles of both forms, and what is none.
func TestLoadSeccomp(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		calls      string // names of what is allowed
		has        string // in the error
		is         error
	}{
		{"runtime-spec", `{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"}]}`, "read write", "", nil},
		{"docker", `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
			"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_CHOWN"]}},{"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
			{"name":"write","action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},{"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"99.0"}}]}`, "read write", "", nil},
		{"flags", `{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}`, "", "", nil},
		{"not JSON", `unconfined`, "", "invalid character", nil},
		{"empty", `{}`, "", "neither defaultAction nor syscalls", nil},
		{"null entry", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`, "", "null", nil},
		{"notify", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`, "", "SCMP_ACT_NOTIFY", container.ErrUnsupported},
		{"listener", `{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}`, "", "/run/x", container.ErrUnsupported},
		{"unknown flag", `{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}`, "", "WAIT_KILLABLE_RECV", container.ErrUnsupported},
		{"unknown operator", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP_XX"}]}]}`, "", "SCMP_CMP_XX", container.ErrUnsupported},
		{"both lists of architectures", `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}`, "", "both", nil},
		{"large", `{"defaultAction":"` + strings.Repeat("x", 1<<20) + `"}`, "", "more than", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := container.DefaultSpec()
			err := container.LoadSeccomp([]byte(tc.text), s)
			if tc.has != "" {
				if err == nil || !strings.Contains(err.Error(), tc.has) || tc.is != nil && !errors.Is(err, tc.is) || s.Linux.Seccomp != nil {
					t.Fatalf("LoadSeccomp = %v, %+v; want an error with %q", err, s.Linux.Seccomp, tc.has)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var calls []string
			for _, c := range s.Linux.Seccomp.Syscalls {
				calls = append(calls, c.Names...)
			}
			if got := strings.Join(calls, " "); got != tc.calls {
				t.Errorf("calls %q, want %q", got, tc.calls)
			}
		})
	}
}

func FuzzLoadSeccomp(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64"}],"syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}}]}`))
	f.Add([]byte(`{"syscalls":[null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s := container.DefaultSpec()
		if err := container.LoadSeccomp(text, s); (err == nil) != (s.Linux.Seccomp != nil) {
			t.Errorf("LoadSeccomp = %v, profile %v", err, s.Linux.Seccomp)
		}
	})
}

// TestProfileOfUser runs containers under profiles of their users'.
func TestProfileOfUser(t *testing.T) {
	n := newNode(t)
	const all = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":`
	for _, tc := range []struct {
		name, profile, want string
		exit                int
	}{
		{"errno", all + `"SCMP_ACT_ERRNO","errnoRet":28}]}`, "mkdir: can't create directory '/tmp/x': No space left on device\n", 1},
		{"kill", all + `"SCMP_ACT_KILL_PROCESS"}]}`, "", 159},
		{"trap", all + `"SCMP_ACT_TRAP"}]}`, "", 159},
		{"trace without a tracer", all + `"SCMP_ACT_TRACE"}]}`, "mkdir: can't create directory '/tmp/x': Function not implemented\n", 1},
		{"log", all + `"SCMP_ACT_LOG"}],"flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}`, "", 0},
	} {
		for _, nnp := range []bool{false, true} {
			b := n.bundle(t, "mkdir", "/tmp/x")
			b.Spec.Process.NoNewPrivileges = nnp
			if err := container.LoadSeccomp([]byte(tc.profile), b.Spec); err != nil {
				t.Fatal(err)
			}
			if _, stderr, s := n.run(t, b); stderr != tc.want || s.ExitCode != tc.exit {
				t.Errorf("%s: %q, exit code %d; want %q, %d", tc.name, stderr, s.ExitCode, tc.want, tc.exit)
			}
		}
	}
}

// TestSeccompOfExec gives a further process the filter of the container's own, with
// its flags.
func TestSeccompOfExec(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "sleep", "100")
	if err := container.LoadSeccomp([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}`), b.Spec); err != nil {
		t.Fatal(err)
	}
	n.create(t, b)
	n.start(t, b.ID)
	e, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: *processWith(b, "sh", "-c", "mkdir /tmp/x 2>&1"), AttachOptions: container.AttachOptions{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, e.Stdout); !strings.Contains(got, "No space left") {
		t.Errorf("mkdir says %q", got)
	}
	if _, err := e.Wait(testContext(t)); err != nil {
		t.Error(err)
	}
	_ = e.Close()
	// Without its profile, or the module that it is of, a process would be weaker than
	// asked.
	p := *processWith(b, "true")
	p.ApparmorProfile = "strict"
	if _, err := n.Exec(testContext(t), b.ID, container.ExecSpec{Process: p}); err == nil || !strings.Contains(err.Error(), "strict") {
		t.Errorf("exec under a profile that is not there = %v, want an error that names it", err)
	}
}

func TestDefaultAppArmorIsAWarning(t *testing.T) {
	n := newNode(t)
	b := n.bundle(t, "true")
	b.Spec.Process.ApparmorProfile = container.DefaultAppArmor
	n.create(t, b)
	s, err := n.State(testContext(t), b.ID)
	want := "apply AppArmor profile berth-default on a kernel without AppArmor: operation not supported"
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && b[0] == 'Y' {
		want = "apply AppArmor profile berth-default: no such file or directory"
	}
	if err != nil || len(s.Warnings) != 1 || s.Warnings[0] != want {
		t.Errorf("warnings %q, %v; want %q", s.Warnings, err, want)
	}
	n.start(t, b.ID)
	if _, err := n.Wait(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	if err := n.Delete(testContext(t), b.ID); err != nil {
		t.Fatal(err)
	}
	if err := container.LoadSeccomp([]byte(`{}`), &specs.Spec{}); err == nil {
		t.Error("a profile was loaded into a spec without capabilities")
	}
}
