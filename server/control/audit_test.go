package control

import (
	"net/http"
	"testing"
)

// TestChangesAreNamed sees to it that what changes something is recorded, and what
// only looks is not.
func TestChangesAreNamed(t *testing.T) {
	looks := map[string]bool{"POST /policy/test": true}
	seen := map[string]string{}
	for _, op := range Table() {
		name := op.Method + " " + op.Path
		if changes := op.Method != http.MethodGet && !looks[name]; changes != (op.does != "") {
			t.Errorf("%s is %q in the audit log: give the row a name with as, if it changes something", name, op.does)
		}
		if other := seen[op.does]; op.does != "" && other != "" {
			t.Errorf("%s and %s are both %s in the audit log", name, other, op.does)
		}
		seen[op.does] = name
	}
}
