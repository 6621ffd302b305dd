// Package e2e_test tells stories: what a user does with berth, from end to end,
// with the built binary and the clients that people have. Each file in testdata
// is one story. They need root and the programs of `make deps`; what is missing
// fails, it is not skipped.
//
// Beside the commands of testscript, a story has:
//
//	serve NAME [FLAG...]         starts berth serve on $WORK/NAME, sets $NAME to its address
//	node NAME REGISTRY [FLAG...] starts berth node on $WORK/NAME, sets $NAME to its socket
//	spawn NAME REGEXP PROGRAM [ARG...]
//	                             starts a program, waits until it writes a line that
//	                             matches, sets $NAME to what the first group matched
//	halt NAME [SIGNAL]           sends TERM or SIGNAL and waits for the end
//	expect NAME REGEXP           waits until NAME has written a line that matches
//	tar FILE ENTRY...            writes a tar: see entry
//	image LAYOUT TAG TAR...      adds an image of these layers to an OCI layout: see cmdImage
//	damage DIR flip|cut          damages the largest file below DIR
//	mounted IMAGE DIR            mounts an image of a file system
//	oras LOGIN CA ...            does what programs built on oras-go do: see cmdOras
//	acme NAME ADDRESS            starts a CA that speaks ACME: see cmdACME
//	eventually PROGRAM [ARG...]  runs it until it succeeds, for 10 s
//	port NAME                    sets $NAME to a port of 127.0.0.1 that is free
//	provider NAME                starts an OpenID provider, sets $NAME to its URL
//	browse URL NAME              opens a page of the provider's, and logs in there as NAME
//	tty NAME REGEXP PROGRAM [ARG...]
//	                             spawn, with a terminal of 24 rows and 80 columns
//	type NAME KEYS               presses keys on it: letters, \r for return, \x10 for ctrl-p
//	resize NAME ROWS COLUMNS     changes its size
//	ended NAME                   waits until NAME has ended, well, or with ! badly
package e2e_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// binary is the berth under test: $BERTH, or where make build puts it.
func binary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(cmp.Or(os.Getenv("BERTH"), "../../bin/berth"))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("no berth to test; run make build first: %v", err)
	}
	return path
}

func TestStories(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the stories run containers and need root")
	}
	berth := binary(t)
	// Much of what follows makes many files, which memory does best. One story
	// brings its own ext4.
	if err := os.WriteFile("/dev/shm/berth-e2e", nil, 0o600); err == nil {
		t.Cleanup(func() { os.Remove("/dev/shm/berth-e2e") })
		t.Setenv("GOTMPDIR", "/dev/shm")
	}
	cache := debianCache(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Values[actorsKey{}] = &actors{}
			for name, value := range map[string]string{
				"PATH":                    filepath.Dir(berth) + ":" + os.Getenv("PATH") + ":" + gopath() + "/bin:/usr/sbin:/sbin",
				"HOME":                    env.WorkDir,
				"DEBIAN":                  cache,
				"GOROOT":                  goroot(),
				"CONTAINERS_STORAGE_CONF": filepath.Join(env.WorkDir, ".storage.conf"),
				"DOCKER_CONFIG":           filepath.Join(env.WorkDir, ".docker"),
				"BUILDAH_ISOLATION":       "chroot",
			} {
				env.Setenv(name, value)
			}
			if err := os.MkdirAll(env.Getenv("DOCKER_CONFIG"), 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(env.Getenv("DOCKER_CONFIG"), "config.json"), []byte("{}"), 0o600); err != nil {
				return err
			}
			storage := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = \"%[1]s/.containers\"\nrunroot = \"%[1]s/.containers-run\"\n", env.WorkDir)
			return os.WriteFile(filepath.Join(env.WorkDir, ".storage.conf"), []byte(storage), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":      cmdServe,
			"node":       cmdNode,
			"spawn":      cmdSpawn,
			"halt":       cmdHalt,
			"expect":     cmdExpect,
			"tar":        cmdTar,
			"image":      cmdImage,
			"damage":     cmdDamage,
			"mounted":    cmdMounted,
			"eventually": cmdEventually,
			"port":       cmdPort,
			"acme":       cmdACME,
			"oras":       cmdOras,
			"provider":   cmdProvider,
			"browse":     cmdBrowse,
			"ended":      cmdEnded,
			"tty":        cmdTTY,
			"type":       cmdType,
			"resize":     cmdResize,
		},
	})
}

func gopath() string { return goEnv("GOPATH") }
func goroot() string { return goEnv("GOROOT") }

func goEnv(name string) string {
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// debianCache is the directory of a real, small Debian, made once on a machine.
func debianCache(t *testing.T) string {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	dir := filepath.Join(base, "berth-test", "debian")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.MkdirTemp(filepath.Dir(dir), "fresh")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "debootstrap", "--variant=minbase", "bookworm", fresh).CombinedOutput()
	if err != nil {
		t.Fatalf("debootstrap: %v\n%s", err, out)
	}
	if err := os.Rename(fresh, dir); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return dir
}
