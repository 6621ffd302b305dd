package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestThreatsHaveTests reads docs/threat-model.md: each line of its tables names
// tests that exist, as DIRECTORY.TestName, or a story of conformance/e2e, or says
// that it is not defended.
func TestThreatsHaveTests(t *testing.T) {
	root := filepath.Join("..", "..")
	text, err := os.ReadFile(filepath.Join(root, "docs", "threat-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([^`]+)`")
	lines := 0
	for number, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 2 || strings.Contains(cells[1], "---") || strings.TrimSpace(cells[1]) == "attack" {
			continue
		}
		lines++
		if len(cells) != 5 {
			t.Errorf("line %d has %d cells, want 3: no | inside them", number+1, len(cells)-2)
			continue
		}
		tests := named.FindAllStringSubmatch(cells[3], -1)
		if undefended := strings.HasPrefix(strings.TrimSpace(cells[2]), "not defended: "); undefended == (len(tests) > 0) {
			t.Errorf("line %d names tests, or says that it is not defended: one of both: %s", number+1, line)
		}
		for _, name := range tests {
			if !testExists(t, root, name[1]) {
				t.Errorf("line %d: there is no %s", number+1, name[1])
			}
		}
	}
	if lines < 40 {
		t.Errorf("only %d lines were found", lines)
	}
	if testExists(t, root, "server.TestThatThereIsNot") || testExists(t, root, "conformance/e2e/none.txtar") {
		t.Error("every test exists")
	}
}

func testExists(t *testing.T, root, name string) bool {
	t.Helper()
	if strings.HasSuffix(name, ".txtar") {
		dir, file := filepath.Split(name)
		_, err := os.Stat(filepath.Join(root, dir, "testdata", file))
		return err == nil
	}
	dir, function, ok := strings.Cut(name, ".")
	if !ok {
		return false
	}
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(source), "\nfunc "+function+"(") {
			return true
		}
	}
	return false
}
