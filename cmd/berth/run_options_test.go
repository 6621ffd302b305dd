package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
)

// request parses the flags of run and returns what the node is asked for.
func request(t *testing.T, args ...string) (cfg, hostCfg string, err error) {
	t.Helper()
	var o runOptions
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.addFlags(fs)
	if err := fs.Parse(args); err != nil {
		return "", "", err
	}
	req, err := o.request("team/app:1", nil)
	if err != nil {
		return "", "", err
	}
	return encode(t, req.Config), encode(t, req.HostConfig), nil
}

// encode writes what of v is not its zero value.
func encode(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	for name, value := range fields {
		switch value := value.(type) {
		case nil:
			delete(fields, name)
		case bool:
			if !value {
				delete(fields, name)
			}
		case string:
			if value == "" {
				delete(fields, name)
			}
		case float64:
			if value == 0 {
				delete(fields, name)
			}
		case map[string]any:
			if len(value) == 0 {
				delete(fields, name)
			}
		}
	}
	// What every request holds.
	for _, name := range []string{"Image", "AttachStdout", "AttachStderr", "LogConfig", "RestartPolicy", "ConsoleSize"} {
		delete(fields, name)
	}
	text, err = json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRunOptions(t *testing.T) {
	t.Setenv("BERTH_TEST_PASSED_ON", "here")
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("vars", []byte("# comment\n\nFROM_FILE=1\nBERTH_TEST_PASSED_ON\nBERTH_TEST_UNSET\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("profile.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name         string
		args         []string
		cfg, hostCfg string
		err          string
	}{
		{"nothing", nil, `{}`, `{}`, ""},
		{"interactive", []string{"-i"}, `{"AttachStdin":true,"OpenStdin":true,"StdinOnce":true}`, `{}`, ""},
		{"variables", []string{"-e", "A=b=c", "--env-file", "vars"}, `{"Env":["FROM_FILE=1","BERTH_TEST_PASSED_ON=here","A=b=c"]}`, `{}`, ""},
		{"labels", []string{"-l", "a=b", "--label", "c"}, `{"Labels":{"a":"b","c":""}}`, `{}`, ""},
		{"entrypoint taken away", []string{"--entrypoint", ""}, `{"Entrypoint":[""]}`, `{}`, ""},
		{"stop later", []string{"--stop-timeout", "30"}, `{"StopTimeout":30}`, `{}`, ""},
		{"host name", []string{"-h", "box"}, `{"Hostname":"box"}`, `{}`, ""},
		{"limits", []string{"-m", "64m", "--cpus", "1.5", "--pids-limit", "10"}, `{}`, `{"Memory":67108864,"NanoCpus":1500000000,"PidsLimit":10}`, ""},
		{"ulimit", []string{"--ulimit", "nofile=10:20"}, `{}`, `{"Ulimits":[{"Hard":20,"Name":"nofile","Soft":10}]}`, ""},
		{"volume", []string{"-v", "/srv:/data:ro", "-v", "./here:/there"}, `{}`, `{"Binds":["/srv:/data:ro","` + filepath.Join(dir, "here") + `:/there"]}`, ""},
		{"mount", []string{"--mount", "type=bind,src=/srv,dst=/data,ro"}, `{}`, `{"Mounts":[{"ReadOnly":true,"Source":"/srv","Target":"/data","Type":"bind"}]}`, ""},
		{"tmpfs", []string{"--tmpfs", "/a:size=1m", "--mount", "type=tmpfs,target=/b,tmpfs-size=1m,tmpfs-mode=1770"}, `{}`, `{"Mounts":[{"Target":"/b","TmpfsOptions":{"Mode":1016,"SizeBytes":1048576},"Type":"tmpfs"}],"Tmpfs":{"/a":"size=1m"}}`, ""},
		{"network", []string{"--network", "host", "--rm", "--read-only"}, `{}`, `{"AutoRemove":true,"NetworkMode":"host","ReadonlyRootfs":true}`, ""},

		{"terminal", []string{"-it"}, `{"AttachStdin":true,"OpenStdin":true,"StdinOnce":true,"Tty":true}`, `{}`, ""},
		{"no limit of swap", []string{"-m", "8m", "--memory-swap", "-1"}, `{}`, `{"Memory":8388608,"MemorySwap":-1}`, ""},
		{"devices", []string{"--device", "/dev/null", "--device", "/dev/zero:r", "--device", "/dev/full:/dev/x:rw"}, `{}`, `{"Devices":[{"CgroupPermissions":"rwm","PathInContainer":"/dev/null","PathOnHost":"/dev/null"},{"CgroupPermissions":"r","PathInContainer":"/dev/zero","PathOnHost":"/dev/zero"},{"CgroupPermissions":"rw","PathInContainer":"/dev/x","PathOnHost":"/dev/full"}]}`, ""},
		{"checks", []string{"--health-cmd", "true", "--health-interval", "1s", "--health-retries", "2"}, `{"Healthcheck":{"Interval":1000000000,"Retries":2,"Test":["CMD-SHELL","true"]}}`, `{}`, ""},
		{"no checks", []string{"--no-healthcheck"}, `{"Healthcheck":{"Test":["NONE"]}}`, `{}`, ""},
		{"seccomp", []string{"--security-opt", "seccomp=profile.json", "--security-opt", "seccomp=unconfined"}, `{}`, `{"SecurityOpt":["seccomp={}","seccomp=unconfined"]}`, ""},
		{"namespaces", []string{"--pid", "host", "--ipc", "none", "--uts", "host", "--cgroupns", "private", "--init", "--privileged"}, `{}`, `{"CgroupnsMode":"private","Init":true,"IpcMode":"none","PidMode":"host","Privileged":true,"UTSMode":"host"}`, ""},
		{"blocks", []string{"--blkio-weight", "100", "--device-write-bps", "/dev/sda:1m"}, `{}`, `{"BlkioDeviceWriteBps":[{"Path":"/dev/sda","Rate":1048576}],"BlkioWeight":100}`, ""},

		{"variable without a name", []string{"-e", "=x"}, "", "", `variable "=x" has no name`},
		{"no such file", []string{"--env-file", "nowhere"}, "", "", "--env-file: open nowhere: no such file or directory"},
		{"wrong mount", []string{"--mount", "type=bind,colour=red"}, "", "", `--mount type=bind,colour=red: there is no option "colour"`},
		{"mount nowhere", []string{"--mount", "type=bind,src=/a"}, "", "", "--mount type=bind,src=/a: needs type= and target="},
		{"wrong restart", []string{"--restart", "sometimes"}, "", "", "--restart sometimes: say no, always, unless-stopped or on-failure[:MAX]"},
		{"wrong device", []string{"--device", "/dev/null:/dev/x:q"}, "", "", `--device /dev/null:/dev/x:q: "q" is not made of r, w and m`},
		{"checked and not", []string{"--no-healthcheck", "--health-cmd", "true"}, "", "", "--no-healthcheck excludes the --health flags"},
		{"no profile", []string{"--security-opt", "seccomp=nowhere"}, "", "", "--security-opt seccomp=nowhere: stat nowhere: no such file or directory"},
		{"wrong rate", []string{"--device-read-bps", "/dev/sda:fast"}, "", "", `--device-read-bps /dev/sda:fast: "fast" is not a size such as 512k, 4MiB or 1.5g`},
		{"wrong pull", []string{"--pull", "soon"}, "", "", "--pull soon: say missing, always or never"},
		{"no number of processors", []string{"--cpus", "-1"}, "", "", "--cpus -1: no such number of processors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, hostCfg, err := request(t, tc.args...)
			msg := ""
			if err != nil {
				msg = err.Error()
			}
			if cfg != tc.cfg || hostCfg != tc.hostCfg || msg != tc.err {
				t.Errorf("run %q asks for\n config %s\n   want %s\n   host %s\n   want %s\n  error %q\n   want %q", tc.args, cfg, tc.cfg, hostCfg, tc.hostCfg, msg, tc.err)
			}
		})
	}
}
