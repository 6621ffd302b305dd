package control

import (
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"berth.internal/internal/control"
	"berth.internal/storage"
	"berth.internal/storage/backup"
	"berth.internal/storage/bolt"
	"berth.internal/storage/disk"
	"berth.internal/storage/gc"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

// TestBackup holds what is told of a backup; the rest is told in package backup.
func TestBackup(t *testing.T) {
	data := t.TempDir()
	index, err := bolt.Open(filepath.Join(data, "index.db"), kv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	store, err := disk.Open(data, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	real := storage.Drivers{Store: store, Index: index, Records: index, Opener: storage.Opener{
		Index: func(path string) (storage.Index, error) { return bolt.Open(path, kv.Options{}) },
		Store: func(dir string) (storage.Store, error) { return disk.Open(dir, disk.Options{}) },
	}}
	memory := storage.Drivers{Store: new(mem.Store), Index: mem.NewIndex(kv.Options{})}
	dir := filepath.Join(t.TempDir(), "backup")
	for _, tc := range []struct {
		name    string
		drivers storage.Drivers
		dir     string
		want    *control.Error
	}{
		{"done", real, dir, nil},
		{"again", real, dir, nil},
		{"inside", real, filepath.Join(data, "x"), control.Invalid.In("dir")},
		{"relative", real, "x", control.Invalid.In("dir")},
		{"in memory", memory, dir, control.Unsupported},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := boss{t, newHandler(Admin)}
			b.h.Collector = gc.New(tc.drivers.Store, tc.drivers.Index, gc.Config{}, slog.New(slog.DiscardHandler))
			b.h.Backup = backup.Source{Drivers: tc.drivers, Data: data}
			j := b.ask("POST", "/backup", fmt.Sprintf(`{"dir":%q}`, tc.dir), http.StatusAccepted)
			for j.State == control.JobRunning {
				j = b.get(j, fmt.Sprint("?watch=", j.Revision))
			}
			switch {
			case tc.want == nil && (j.Error != nil || !strings.Contains(string(j.Result), `"blobs":0`) || !strings.Contains(string(j.Result), `"time":"20`)):
				t.Errorf("job = %+v %s", j, j.Result)
			case tc.want != nil && (j.Error == nil || j.Error.Code != tc.want.Code || j.Error.Field != tc.want.Field):
				t.Errorf("job ended with %+v, want %+v", j.Error, tc.want)
			}
		})
	}
}
