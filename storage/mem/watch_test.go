package mem_test

import (
	"errors"
	"fmt"
	"testing"

	"berth.internal/storage"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

func TestWatchCompacted(t *testing.T) {
	x := mem.NewIndex(kv.Options{Changes: 3})
	for i := range 5 {
		if _, err := x.Put(t.Context(), fmt.Sprint("key-", i), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for cursor, want := range []error{storage.ErrCompacted, storage.ErrCompacted, nil, nil, nil} {
		changes, next, err := x.Watch(t.Context(), "", uint64(cursor), 10)
		if !errors.Is(err, want) || want == nil && (len(changes) != 5-cursor || next != 5) {
			t.Errorf("Watch from %d of 5, with 3 kept = %d changes, next %d, %v; want %v", cursor, len(changes), next, err, want)
		}
	}
}
