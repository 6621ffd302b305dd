package arch_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "berth.internal/"

// arrows says what a package may import of ours: the longest key that is the
// package or a folder above it counts. A value that ends in /... stands for a
// folder with all below it. It is the table of the style guide, section 2.
var arrows = map[string][]string{
	"cmd/berth":      {"auth/...", "client/...", "internal/...", "node/...", "server/...", "storage/..."},
	"cmd/berth-init": {"node/container/..."},

	"server":          {"auth/...", "internal/...", "server/...", "storage", "storage/backup", "storage/care", "storage/gc"},
	"server/audit":    {"auth/policy", "internal/..."},
	"server/registry": {"auth", "internal/...", "server/audit", "storage"},
	"server/control":  {"auth/...", "internal/...", "server/audit", "server/rollout", "storage", "storage/backup", "storage/care", "storage/gc"},
	"server/rollout":  {"auth", "internal/...", "storage"},
	"server/proxy":    {"auth", "client", "internal/...", "storage"},
	"server/web":      {"auth", "internal/...", "storage"},

	"node":           {"client", "internal/...", "node/...", "storage"},
	"node/engine":    {"client", "internal/...", "node/engine/...", "node/host", "node/image", "storage"},
	"node/host":      {"internal/...", "node/container/...", "node/host/...", "node/image", "node/network", "node/volume"},
	"node/image":     {"client", "internal/...", "node/image/...", "storage"},
	"node/peer":      {"client", "internal/...", "storage"},
	"node/network":   {"internal/..."},
	"node/volume":    {"internal/..."},
	"node/container": {"internal/durable", "internal/lazyregexp", "node/container/..."},

	"auth":     {"auth/...", "internal/...", "storage"},
	"client":   {"client/...", "internal/..."},
	"storage":  {"internal/...", "storage/..."},
	"internal": {"internal/..."},
}

// drivers may be named by the roof only.
var drivers = []string{"storage/bolt", "storage/disk", "storage/mem"}

// runtimeLibraries is what node/container may import of others, so that
// berth-init stays small.
var runtimeLibraries = []string{
	"golang.org/x/sys/", "github.com/opencontainers/runtime-spec/", "github.com/opencontainers/cgroups",
	"github.com/moby/profiles/seccomp", "github.com/moby/sys/mountinfo", "github.com/cyphar/filepath-securejoin",
}

// network is the one part of the runtime that speaks netlink, and networkLibraries what
// it may import for it. Only ociFront imports it, so that berth-init has none of it.
const (
	network  = "node/container/netdev"
	ociFront = "node/container/oci"
)

var networkLibraries = []string{"github.com/vishvananda/netlink/nl", "github.com/vishvananda/netns"}

// packageInfo is what go list tells of a package.
type packageInfo struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Imports    []string
}

func list(t *testing.T) []packageInfo {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Doc,GoFiles,Imports", "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []packageInfo
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p packageInfo
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
}

func TestArrows(t *testing.T) {
	for _, p := range list(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		allowed, ok := rule(from)
		if !ok {
			t.Errorf("%s is in no room of the house: add it to arrows, and to the style guide", from)
			continue
		}
		for _, path := range p.Imports {
			to, ours := strings.CutPrefix(path, module)
			switch {
			case !ours:
				if strings.HasPrefix(from, "node/container") && !runtimeMayImport(from, path) {
					t.Errorf("%s imports %s: the runtime is small and has few libraries", from, path)
				}
			case !permits(allowed, to):
				t.Errorf("%s imports %s, an arrow that does not point down", from, to)
			case to == network && from != ociFront:
				t.Errorf("%s imports %s, which only %s may", from, to, ociFront)
			case slices.Contains(drivers, to) && !strings.HasPrefix(from, "cmd/"):
				t.Errorf("%s names the driver %s: only the roof does", from, to)
			}
		}
	}
}

func rule(from string) ([]string, bool) {
	for dir := from; dir != "."; dir = filepath.Dir(dir) {
		if allowed, ok := arrows[dir]; ok {
			return allowed, true
		}
	}
	return nil, false
}

func permits(allowed []string, to string) bool {
	return slices.ContainsFunc(allowed, func(a string) bool {
		dir, below := strings.CutSuffix(a, "/...")
		return to == dir || below && strings.HasPrefix(to, dir+"/")
	})
}

func runtimeMayImport(from, path string) bool {
	if from == network && slices.Contains(networkLibraries, path) {
		return true
	}
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".") || slices.ContainsFunc(runtimeLibraries, func(l string) bool { return strings.HasPrefix(path+"/", l) })
}

func TestPackageComments(t *testing.T) {
	for _, p := range list(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestNothingCompiledAtStart finds regular expressions and templates in package
// variables: each of them would be compiled whenever any command of berth begins.
// sync.OnceValue has them compiled when they are used.
func TestNothingCompiledAtStart(t *testing.T) {
	for _, p := range list(t) {
		dir := filepath.Join("../..", strings.TrimPrefix(p.ImportPath, module))
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				vars, ok := d.(*ast.GenDecl)
				if !ok {
					continue
				}
				ast.Inspect(vars, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.FuncLit:
						return false
					case *ast.SelectorExpr:
						if x, ok := n.X.(*ast.Ident); ok && (x.Name == "regexp" || x.Name == "template") && strings.HasPrefix(n.Sel.Name, "Must") {
							t.Errorf("%s: %s.%s in a package variable", filepath.Join(dir, name), x.Name, n.Sel.Name)
						}
					}
					return true
				})
			}
		}
	}
}

// TestInitSize holds berth-init to the size that its memory is planned with.
func TestInitSize(t *testing.T) {
	const most = 3 << 20
	out := filepath.Join(t.TempDir(), "berth-init")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "../../cmd/berth-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > most {
		t.Errorf("berth-init has %d bytes, want at most %d", info.Size(), most)
	}
}
