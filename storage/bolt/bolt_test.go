package bolt_test

import (
	"path/filepath"
	"testing"
	"time"

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
