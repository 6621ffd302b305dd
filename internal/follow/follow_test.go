package follow_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth.internal/internal/follow"
)

func TestFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		write := func(path, text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, time.Time{}, time.Now()); err != nil { // by the bubble's clock
				t.Fatal(err)
			}
		}
		write(a, "1")
		f := follow.New(a, b)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var calls atomic.Int64
		go f.Run(ctx, func() { calls.Add(1) })
		expect := func(after string, want int64) {
			t.Helper()
			synctest.Wait()
			if got := calls.Load(); got != want {
				t.Errorf("after %s: called %d times, want %d", after, got, want)
			}
		}
		time.Sleep(time.Minute)
		expect("nothing", 0)
		write(a, "2")
		time.Sleep(time.Minute)
		expect("a change", 1)
		write(b, "1")
		time.Sleep(time.Minute)
		expect("a new file", 2)
		write(filepath.Join(dir, "c"), "1")
		if err := os.Rename(filepath.Join(dir, "c"), b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		expect("a replaced file", 3)
		if err := os.Remove(a); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		expect("a removed file", 4)
		for range 100 {
			write(a, "3")
			time.Sleep(time.Second)
		}
		expect("a file that is being written", 4)
		f.Ask()
		expect("being asked", 5)
		time.Sleep(time.Minute)
		expect("that", 5)
	})
}
