package powercut

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// rounds is how often the power is cut: few in CI, hundreds in make soak.
func rounds(t *testing.T) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("POWER_CUTS"), "6"))
	if err != nil {
		t.Fatalf("POWER_CUTS: %v", err)
	}
	return n
}

// TestBerthSurvivesPowerCuts pushes images from many clients, cuts the power at
// a random moment, and looks whether everything that was answered with 201 is
// there after the start on what the disk holds. Of what was not synced, nothing,
// some or most survives.
func TestBerthSurvivesPowerCuts(t *testing.T) {
	for round := range rounds(t) {
		keep := []float64{0, 0.3, 0.9}[round%3]
		t.Run(fmt.Sprintf("%d/keep=%v", round, keep), func(t *testing.T) {
			pushed, after := cutPower(t, uint64(round), keep, false)
			lost, err := missing(t, after, pushed)
			if err != nil {
				t.Fatal(err)
			}
			if len(lost) > 0 {
				t.Errorf("%d of %d acknowledged images are lost or damaged after the cut, such as %s", len(lost), len(pushed), lost[0])
			}
		})
	}
}

// TestBerthNeedsItsSyncs is the test of the test above: when fsync does
// nothing, acknowledged images must be found lost.
func TestBerthNeedsItsSyncs(t *testing.T) {
	pushed, after := cutPower(t, 1, 0, true)
	if lost, err := missing(t, after, pushed); err == nil && len(lost) == 0 {
		t.Errorf("without fsync all of %d images survived a power cut that kept nothing unsynced: the test proves nothing", len(pushed))
	}
}

// cutPower returns the images that a registry acknowledged before the power was
// cut, and the directory that holds what was on its disk.
func cutPower(t *testing.T, seed uint64, keep float64, loseSyncs bool) (pushed []string, after string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	disk := t.TempDir()
	f, err := Mount(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	f.LoseSyncs(loseSyncs)
	url, cmd := serve(t, filepath.Join(disk, "data"))
	acknowledged := make(chan string)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("c%d/i%d", client, i)
				if pushImage(url, name) != nil {
					return // the power is gone
				}
				select {
				case acknowledged <- name:
				case <-stop:
					return
				}
			}
		})
	}
	for range 20 + rnd.IntN(60) {
		pushed = append(pushed, <-acknowledged)
	}
	close(stop)
	kill(t, cmd)
	clients.Wait()
	after = filepath.Join(t.TempDir(), "data")
	if err := f.Cut(filepath.Dir(after), keep, rnd); err != nil {
		t.Fatal(err)
	}
	return pushed, after
}

// missing starts a registry on data and returns the images that cannot be
// pulled in full from it.
func missing(t *testing.T, data string, images []string) (lost []string, err error) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(data, "registry", "index.db")); err != nil {
		return images, nil // not even the index has survived
	}
	url, cmd := serve(t, data)
	defer kill(t, cmd)
	for _, name := range images {
		for _, want := range blobs(name) {
			if !holds(url+"/v2/"+name+"/blobs/"+digest(want), want) {
				lost = append(lost, name+": blob of "+strconv.Itoa(len(want))+" bytes")
			}
		}
		if !holds(url+"/v2/"+name+"/manifests/latest", manifest(name)) {
			lost = append(lost, name+": manifest")
		}
	}
	return lost, nil
}

func holds(url string, want []byte) bool {
	resp, err := http.Get(url)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK && bytes.Equal(got, want)
}

// blobs are the config and the layers of an image: one that the index keeps
// itself, and two that are files.
func blobs(name string) [][]byte {
	return [][]byte{content(name+" config", 300), content(name+" layer", 100_000), content(name+" patched", 200_000)}
}

func content(seed string, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b) // never fails
	return b
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func manifest(name string) []byte {
	b := blobs(name)
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d},{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		digest(b[0]), len(b[0]), digest(b[1]), len(b[1]), digest(b[2]), len(b[2]))
}

// pushImage pushes an image in all the ways that bytes come: a small blob, a
// large one at once, and one in a PATCH as docker does.
func pushImage(url, name string) error {
	for i, b := range blobs(name) {
		location, err := request(http.MethodPost, url+"/v2/"+name+"/blobs/uploads/", nil, http.StatusAccepted)
		if err != nil {
			return err
		}
		body := b
		if i == 2 {
			if location, err = request(http.MethodPatch, url+location, b, http.StatusAccepted); err != nil {
				return err
			}
			body = nil
		}
		if _, err := request(http.MethodPut, url+location+"?digest="+digest(b), body, http.StatusCreated); err != nil {
			return err
		}
	}
	_, err := request(http.MethodPut, url+"/v2/"+name+"/manifests/latest", manifest(name), http.StatusCreated)
	return err
}

func request(method, url string, body []byte, want int) (location string, err error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	if strings.Contains(url, "/manifests/") {
		req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return "", fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return resp.Header.Get("Location"), nil
}

var ready = regexp.MustCompile(`msg="registry is ready".* url=(\S+)`)

// serve starts the built berth on data and returns its URL.
func serve(t *testing.T, data string) (string, *exec.Cmd) {
	t.Helper()
	binary, err := filepath.Abs(cmp.Or(os.Getenv("BERTH"), "../../bin/berth"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "serve", "--listen", "127.0.0.1:0", "--data", data)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start berth; run make build first: %v", err)
	}
	var said strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if m := ready.FindStringSubmatch(lines.Text()); m != nil {
			go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
			return m[1], cmd
		}
	}
	t.Fatalf("berth does not start (%v): %s", cmd.Wait(), &said)
	return "", nil
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // "signal: killed"
}
