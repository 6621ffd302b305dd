package control

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/control"
	"berth.internal/storage"
	"berth.internal/storage/gc"
	"berth.internal/storage/kv"
	"berth.internal/storage/mem"
)

func TestGC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		index := mem.NewIndex(kv.Options{})
		b := boss{t, newHandler(Admin)}
		b.h.Collector = gc.New(new(mem.Store), index, gc.Config{}, slog.New(slog.DiscardHandler))
		for i := range 5 {
			data := fmt.Append(nil, "blob ", i)
			put := storage.BlobPut{Repo: "repo", Grace: time.Hour, Content: storage.Content{Digest: digest.FromBytes(data), Size: int64(len(data)), Inline: data}}
			if _, err := index.PutBlob(t.Context(), put); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour) // the bubble's time
		var got []control.GCEntry
		pages := 0
		for after := ""; pages == 0 || after != ""; pages++ {
			w := ask(t, b.h, "GET", control.Base+"/gc?limit=2&after="+after, "")
			var page control.GCPlan
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != http.StatusOK || len(page.Entries) > 2 {
				t.Fatalf("GET /gc = %d %s, %v", w.Code, w.Body, err)
			}
			got, after = append(got, page.Entries...), page.Next
		}
		if len(got) != 5 || pages < 3 {
			t.Errorf("GET /gc gave %d entries on %d pages, want 5 on at least 3", len(got), pages)
		}
		for _, e := range got {
			if e.Kind != "blob" || e.Repo != "repo" || e.SizeBytes != 6 || !e.Goes || e.Why != "no manifest refers to it" || e.Holders != 1 {
				t.Errorf("GET /gc gave %+v", e)
			}
		}
		for _, query := range []string{"?limit=-1", "?limit=10001", "?after=x"} {
			if w := ask(t, b.h, "GET", control.Base+"/gc"+query, ""); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), `"field":"`) {
				t.Errorf("GET /gc%s = %d %s, want 400 and the field", query, w.Code, w.Body)
			}
		}

		j := b.ask("POST", "/gc", "", http.StatusAccepted)
		j = b.get(j, "?watch=1")
		for j.State == control.JobRunning {
			j = b.get(j, fmt.Sprint("?watch=", j.Revision))
		}
		var report control.GCReport
		if err := json.Unmarshal(j.Result, &report); err != nil {
			t.Fatal(err)
		}
		if report.Blobs != 5 || len(report.Gone) != 5 || report.Gone[0].Digest != got[0].Digest {
			t.Errorf("POST /gc did %+v", report)
		}
		if w := ask(t, b.h, "GET", control.Base+"/gc", ""); !strings.HasPrefix(w.Body.String(), `{"entries":[],"now":"2000-01-01T01:00:0`) || strings.Contains(w.Body.String(), "next") {
			t.Errorf("GET /gc afterwards = %s", w.Body)
		}
	})
}
