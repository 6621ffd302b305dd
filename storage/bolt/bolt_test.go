package bolt_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/bolt"
	"berth.internal/storage/kv"
	"berth.internal/storage/storagetest"
)

func newData(t *testing.T, now func() time.Time) func() storagetest.Data {
	path := filepath.Join(t.TempDir(), "index.db")
	return func() storagetest.Data {
		x, err := bolt.Open(path, kv.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
}

func TestIndex(t *testing.T) { storagetest.TestIndex(t, newData) }

func TestRecords(t *testing.T) { storagetest.TestRecords(t, newData) }

func TestModel(t *testing.T) { storagetest.TestModel(t, newData, 3) }

// TestLeaseOfTheDead lets a process die that holds a lease: the next one over the
// file takes it at once, and with a token of its own.
func TestLeaseOfTheDead(t *testing.T) {
	open := newData(t, time.Now)
	x := open()
	dead, err := x.Acquire(t.Context(), "scrub", "dead", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Acquire(t.Context(), "scrub", "living", time.Hour); !errors.Is(err, storage.ErrHeld) {
		t.Errorf("Acquire of a lease that lives = %v, want ErrHeld", err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	x = open()
	defer x.Close()
	living, err := x.Acquire(t.Context(), "scrub", "living", time.Hour)
	if err != nil || living.Token <= dead.Token {
		t.Errorf("Acquire after that = %+v, %v; want the lease, and a token after %d", living, err, dead.Token)
	}
}
