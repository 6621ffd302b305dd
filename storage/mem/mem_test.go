package mem_test

import (
	"testing"
	"time"

	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
	"berth.internal/storage/storagetest"
)

func TestStore(t *testing.T) {
	storagetest.TestStore(t, func(*testing.T) func() storage.Store {
		s := new(mem.Store)
		return func() storage.Store { return s }
	})
}

func newData(_ *testing.T, now func() time.Time) func() storagetest.Data {
	x := mem.NewIndex(kv.Options{Now: now})
	return func() storagetest.Data { return x }
}

func TestIndex(t *testing.T) { storagetest.TestIndex(t, newData) }

func TestRecords(t *testing.T) { storagetest.TestRecords(t, newData) }

func TestModel(t *testing.T) { storagetest.TestModel(t, newData, 30) }
