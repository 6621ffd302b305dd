package host

import (
	"io"
	"strings"
	"testing"
)

// TestKillAtFirstOutput kills, and executes in, a container as soon as it has said
// something: its client knows then that it runs.
func TestKillAtFirstOutput(t *testing.T) {
	n := newNode(t)
	for range 10 {
		id := n.create(t, "quick", "echo ready; sleep 1000", nil)
		a, err := n.Attach(t.Context(), id, AttachOptions{Stdout: true, Stream: true})
		if err != nil {
			t.Fatal(err)
		}
		out, in := io.Pipe()
		ran := make(chan error, 1)
		go func() {
			ran <- a.Run(t.Context(), Streams{Output: func(_ bool, p []byte) error {
				_, err := in.Write(p)
				return err
			}})
		}()
		started := make(chan error, 1)
		go func() { started <- n.Start(t.Context(), id) }()
		text := make([]byte, 6)
		if _, err := io.ReadFull(out, text); err != nil || strings.TrimSpace(string(text)) != "ready" {
			t.Fatalf("read %q, %v", text, err)
		}
		if _, err := n.CreateExec(t.Context(), id, ExecSpec{Args: []string{"true"}}); err != nil {
			t.Errorf("exec in a container that has said something: %v", err)
		}
		if err := n.Kill(t.Context(), id, "KILL"); err != nil {
			t.Fatalf("kill a container that has said something: %v", err)
		}
		if err := <-started; err != nil {
			t.Error(err)
		}
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if err := n.Remove(t.Context(), id, true); err != nil {
			t.Error(err)
		}
	}
}
