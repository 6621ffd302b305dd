package shim

import (
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNameProcess names this process from each kind of thread.
func TestNameProcess(t *testing.T) {
	before, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	defer nameProcess(string(before[:len(before)-1]))
	elsewhere := false
	for _, name := range []string{"one", "two"} {
		var named sync.WaitGroup
		named.Go(func() {
			runtime.LockOSThread() // for good: one of the two has another thread than the first
			nameProcess(name)
			got, err := os.ReadFile("/proc/self/comm")
			if err != nil {
				t.Error(err)
			}
			elsewhere = elsewhere || unix.Gettid() != os.Getpid()
			if string(got) != name+"\n" {
				t.Errorf("named %s, it is %q", name, got)
			}
		})
		named.Wait()
	}
	if !elsewhere {
		t.Error("both ran on the first thread")
	}
}
