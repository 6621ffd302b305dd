package control_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.internal/client/control"
	wire "berth.internal/internal/control"
	"berth.internal/internal/socket"
)

// question is a request with what such have.
type question struct {
	Repo  string    `json:"repo,omitempty"`
	Count int       `json:"count,omitempty"`
	Force bool      `json:"force,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"name":%q,"unknown":1}`, strings.Join([]string{r.Method, r.URL.String(), r.Header.Get("Content-Type"), string(body)}, "|"))
}

func TestDo(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(echo))
	defer server.Close()
	client, err := control.New(server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		name, method string
		request      any
		want         string
	}{
		{"nothing to say", "GET", nil, `GET|/berth/v1/x||`},
		{"query", "GET", question{Repo: "a/b", Count: -1, Force: true, Since: since}, `GET|/berth/v1/x?count=-1&force=true&repo=a%2Fb&since=2026-01-02T03%3A04%3A05Z||`},
		{"query of a DELETE", "DELETE", question{Repo: "a"}, `DELETE|/berth/v1/x?repo=a||`},
		{"body", "POST", question{Repo: "a"}, `POST|/berth/v1/x|application/json|{"repo":"a"}`},
		{"no body", "POST", nil, `POST|/berth/v1/x||`},
	} {
		var answer wire.Server
		if err := client.Do(t.Context(), tc.method, "/x", tc.request, &answer); err != nil || answer.Name != tc.want {
			t.Errorf("%s: the server got %s, %v; want %s", tc.name, answer.Name, err, tc.want)
		}
	}
	if err := client.Do(t.Context(), "POST", "/x", nil, nil); err != nil {
		t.Errorf("without a wish for an answer: %v", err)
	}
}

func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		status     int
		is         error
		says       string
	}{
		{"failure", `{"error":{"code":"conflict","message":"job 7 runs","field":"kind","request_id":"R"}}`, 409, wire.Conflict, "kind: job 7 runs"},
		{"unknown code", `{"error":{"code":"tired","message":"no"}}`, 418, nil, "no"},
		{"another program", `<html>`, 502, nil, "502 Bad Gateway, but not as a berth server"},
		{"no JSON", `<html>`, 200, nil, "read the answer"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tc.status)
			_, _ = io.WriteString(w, tc.body)
		}))
		client, err := control.New(server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = client.Get(t.Context(), "/x", nil, new(wire.Server))
		if err == nil || !strings.Contains(err.Error(), tc.says) || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: %v, want %v: …%s", tc.name, err, tc.is, tc.says)
		}
		server.Close()
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("long", 30), "admin.sock")
	client := control.Socket(path)
	defer client.Close()
	if err := client.Get(t.Context(), "/server", nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a socket: %v, want os.ErrNotExist", err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := socket.Listen(t.Context(), path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(echo)}
	go server.Serve(l)
	var answer wire.Server
	if err := client.Get(t.Context(), "/server", nil, &answer); err != nil || answer.Name != "GET|/berth/v1/server||" {
		t.Errorf("by the socket: %+v, %v", answer, err)
	}
	if err := os.Link(path, path+".stale"); err != nil {
		t.Fatal(err)
	}
	server.Close()
	stale := control.Socket(path + ".stale")
	if err := stale.Get(t.Context(), "/server", nil, nil); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("by a stale socket: %v, want ECONNREFUSED", err)
	}
}

func TestAddresses(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1:5000", "ftp://host", "http://", "http://user:secret@host", "http://host/path"} {
		if _, err := control.New(address, nil); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("New(%q) = %v, want an error without secrets", address, err)
		}
	}
}
