package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"

	"berth.internal/internal/detach"
	"berth.internal/node/host"
)

// newEngine returns an engine for requests that never reach a host.
func newEngine() *Engine {
	return New(nil, Config{Version: "test"}, slog.New(slog.DiscardHandler))
}

func TestVersions(t *testing.T) {
	for _, tc := range []struct {
		path   string
		status int
		says   string
	}{
		{"/_ping", 200, ""},
		{"/v1.41/_ping", 200, ""},
		{"/v1.51/version", 200, `"ApiVersion":"1.51"`},
		{"/v1.40/_ping", 400, "client version 1.40 is too old. Minimum supported API version is 1.41"},
		{"/v1.52/_ping", 400, "client version 1.52 is too new. Maximum supported API version is 1.51"},
		{"/v2.0/_ping", 400, "too new"},
		{"/v1.41/nothing", 404, "page not found"},
		{"/v1.41/swarm", 503, "not a swarm manager"},
		{"/services/x", 503, "not a swarm manager"},
		{"/containers/x/export", 501, "export is not supported by berth yet"},
		{"/v1.45/plugins", 200, "[]"},
	} {
		w := httptest.NewRecorder()
		newEngine().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", tc.path, nil))
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.says) {
			t.Errorf("GET %s = %d %s, want %d %s", tc.path, w.Code, w.Body, tc.status, tc.says)
		}
		if v := w.Header().Get("Api-Version"); v != "1.51" {
			t.Errorf("GET %s has Api-Version %q", tc.path, v)
		}
	}
}

// TestNothingToPrune: docker system prune stops at the first kind that is refused.
func TestNothingToPrune(t *testing.T) {
	for path, want := range map[string]string{
		"/networks/prune": `{"NetworksDeleted":[]}`,
		"/volumes/prune":  `{"VolumesDeleted":[],"SpaceReclaimed":0}`,
		"/build/prune":    `{"CachesDeleted":[],"SpaceReclaimed":0}`,
	} {
		w := httptest.NewRecorder()
		newEngine().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", path, nil))
		if got := strings.TrimSpace(w.Body.String()); w.Code != 200 || got != want {
			t.Errorf("POST %s = %d %s, want 200 %s", path, w.Code, got, want)
		}
	}
}

// TestEveryFieldIsHonouredOrRefused sets each field of a create request in turn
// to something that is not its zero value. What the node does not list as
// honoured must be refused by its name.
func TestEveryFieldIsHonouredOrRefused(t *testing.T) {
	for prefix, typ := range map[string]reflect.Type{"": reflect.TypeFor[container.Config](), "HostConfig": reflect.TypeFor[container.HostConfig]()} {
		for path, value := range settings(prefix, typ) {
			body := nest(strings.Split(path, "."), value)
			err := checkHonoured([]byte(body))
			listed := false
			for p := path; p != ""; p = p[:max(strings.LastIndexByte(p, '.'), 0)] {
				listed = listed || honoured[p]
			}
			switch {
			case listed && err != nil:
				t.Errorf("%s is honoured, but refused: %v", path, err)
			case !listed && err == nil:
				t.Errorf("%s is neither honoured nor refused", body)
			case !listed && !strings.Contains(err.Error(), path):
				t.Errorf("%s is refused, but not by its name: %v", path, err)
			}
		}
	}
}

// settings returns a JSON value that is not zero for each field of typ.
func settings(prefix string, typ reflect.Type) map[string]string {
	all := map[string]string{}
	for f := range typ.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if f.Anonymous && name == "" {
			maps.Copy(all, settings(prefix, f.Type))
			continue
		}
		if name == "" {
			name = f.Name
		}
		path := strings.TrimPrefix(prefix+"."+name, ".")
		inner := f.Type
		for inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch inner.Kind() {
		case reflect.Bool:
			all[path] = "true"
		case reflect.String:
			all[path] = `"something"`
		case reflect.Slice, reflect.Array:
			all[path] = `["something"]`
		case reflect.Map:
			all[path] = `{"something":"more"}`
		case reflect.Struct:
			maps.Copy(all, settings(path, inner))
		default:
			all[path] = "7"
		}
	}
	return all
}

func nest(path []string, value string) string {
	for _, name := range slices.Backward(path) {
		value = fmt.Sprintf("{%q:%s}", name, value)
	}
	return value
}

func TestUnknownFieldsAreRefused(t *testing.T) {
	for _, body := range []string{
		`{"FutureField":true}`, `{"HostConfig":{"FutureField":{"Deep":1}}}`, `{"hostconfig":{"Privileged":true}}`,
	} {
		if err := checkHonoured([]byte(body)); err == nil {
			t.Errorf("%s is accepted and ignored", body)
		}
	}
	// What the docker CLI sends for a plain run.
	if err := checkHonoured([]byte(`{"Hostname":"","Tty":false,"Cmd":["sh"],"Image":"x","OnBuild":null,"HostConfig":{"NetworkMode":"default","RestartPolicy":{"Name":"no","MaximumRetryCount":0},"ConsoleSize":[0,0],"MemorySwappiness":-1,"LogConfig":{"Type":"","Config":{}}}}`)); err != nil {
		t.Errorf("a plain docker run: %v", err)
	}
}

func FuzzReadSpec(f *testing.F) {
	f.Add([]byte(`{"Image":"x","HostConfig":{"Binds":["/a:/b:ro"],"Tmpfs":{"/t":"size=1k"},"NanoCpus":1}}`))
	f.Add([]byte(`{"HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"rshared"}}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		spec, _, err := readSpec(body)
		if err == nil && spec.Network != host.NetworkNone && spec.Network != host.NetworkHost && !strings.HasPrefix(string(spec.Network), "container:") {
			t.Fatalf("%s asks for network %q", body, spec.Network)
		}
	})
}

func TestFramesAreDockers(t *testing.T) {
	var wire bytes.Buffer
	f := frames{to: &wire}
	for _, part := range []struct {
		stderr bool
		text   string
	}{{false, "out "}, {true, "err "}, {false, ""}, {false, "more"}} {
		if err := f.write(part.stderr, []byte(part.text)); err != nil {
			t.Fatal(err)
		}
	}
	var out, err bytes.Buffer
	if _, e := stdcopy.StdCopy(&out, &err, &wire); e != nil {
		t.Fatal(e)
	}
	if out.String() != "out more" || err.String() != "err " {
		t.Errorf("a client reads %q and %q", out.String(), err.String())
	}
}

// TestTerminalStreams checks what a client of a terminal sends and reads: bytes as they
// are, until it presses the keys.
func TestTerminalStreams(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	conn := &hijacked{Conn: ours, from: ours}
	go func() { _, _ = theirs.Write([]byte("ab\x10\x10\x11never")) }()
	keys, err := detach.Parse("")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(inputOf(conn, true, keys))
	if string(got) != "ab\x10" || !errors.Is(err, host.ErrDetached) {
		t.Errorf("a terminal's input is %q, %v, want what came before the keys, and host.ErrDetached", got, err)
	}
	if inputOf(conn, false, keys) != host.Input(conn) {
		t.Error("keys are looked for without a terminal")
	}
	var out bytes.Buffer
	for _, stderr := range []bool{false, true} {
		if err := newOutput(&out, true).write(stderr, []byte("x\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	if out.String() != "x\r\nx\r\n" {
		t.Errorf("a terminal's output is %q", out.String())
	}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/x", nil)
	r = r.WithContext(context.WithValue(r.Context(), versionKey{}, maxVersion))
	if tty, plain := streamType(r, true), streamType(r, false); tty != rawStream || plain != multiplexed {
		t.Errorf("content types are %s and %s", tty, plain)
	}
}

func TestFilters(t *testing.T) {
	read := func(text string) (filters, error) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/x", nil)
		q := r.URL.Query()
		q.Set("filters", text)
		r.URL.RawQuery = q.Encode()
		return readFilters(r, "name", "label")
	}
	for _, text := range []string{`{"name":{"a":true,"b":true}}`, `{"name":["a","b"]}`} {
		f, err := read(text)
		if err != nil || !reflect.DeepEqual(f["name"], []string{"a", "b"}) {
			t.Errorf("%s = %v, %v", text, f, err)
		}
	}
	for _, text := range []string{`{"status":["x"]}`, `{"name":"a"}`, `[`} {
		if _, err := read(text); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
	f, err := read(`{"label":["a=1","b"]}`)
	if err != nil || !f.labels(map[string]string{"a": "1", "b": ""}) || f.labels(map[string]string{"a": "2", "b": ""}) || f.labels(map[string]string{"a": "1"}) {
		t.Errorf("labels do not all have to fit: %v %v", f, err)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/containers/create", io.LimitReader(endless{}, maxBody+1))
	w := httptest.NewRecorder()
	newEngine().ServeHTTP(w, r)
	var answer struct{ Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code < 400 || w.Code >= 500 {
		t.Errorf("a body without end = %d %s", w.Code, w.Body)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}
