package e2e_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"
)

// customerKey is what the CA has given its customer "customer".
const customerKey = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"

// cmdACME starts a CA that speaks ACME: Let's Encrypt's own test server, with a DNS
// in which all names of example.com are this machine. It connects for its checks to
// an address that becomes $ADDRESS, writes the certificate of its own web server to
// NAME.crt and the one that its certificates are by to NAME-root.crt. With a third
// argument only its customers get accounts.
func cmdACME(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 2, "acme NAME ADDRESS")
	for key, value := range map[string]string{"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"} {
		ts.Check(os.Setenv(key, value)) // it has no other way to be told; nobody else reads them
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	address := free.Addr().(*net.TCPAddr)
	ts.Check(free.Close()) // serve takes it

	names, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ready := make(chan struct{})
	server := &dns.Server{Listener: names, Handler: dns.HandlerFunc(resolve), NotifyStartedFunc: func() { close(ready) }}
	var running sync.WaitGroup
	running.Go(func() { _ = server.ActivateAndServe() }) // its end is wanted
	<-ready

	var out lockedBuffer
	logger := log.New(&out, "", log.LstdFlags)
	store := db.NewMemoryStore()
	ts.Check(store.AddExternalAccountKeyByID("customer", customerKey))
	issuer := ca.New(logger, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "the only one", ValidityPeriod: 7776000}})
	front := wfe.New(logger, store, va.New(logger, 1, address.Port, false, names.Addr().String(), store), issuer, []string{"ca.example.com"}, false, len(args) == 3, 1, 1)
	api := httptest.NewTLSServer(front.Handler())
	ts.Defer(func() {
		api.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(server.ShutdownContext(ctx)); err != nil {
			ts.Logf("the DNS of the CA: %v", err)
		}
		running.Wait()
		ts.Logf("[acme %s]\n%s", args[0], out.String())
	})
	writeCertificate(ts, args[0]+".crt", api.Certificate().Raw)
	root := httptest.NewRecorder()
	handler := front.ManagementHandler()
	handler.ServeHTTP(root, httptest.NewRequest(http.MethodGet, wfe.RootCertPath+"0", nil))
	block, _ := pem.Decode(root.Body.Bytes())
	if block == nil {
		ts.Fatalf("the CA shows no root: %d %s", root.Code, root.Body)
	}
	writeCertificate(ts, args[0]+"-root.crt", block.Bytes)
	ts.Setenv(args[0], api.URL+wfe.DirectoryPath)
	ts.Setenv(args[1], address.String())
}

func writeCertificate(ts *testscript.TestScript, name string, der []byte) {
	ts.Check(os.WriteFile(ts.MkAbs(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
}

// resolve answers a question of the DNS.
func resolve(w dns.ResponseWriter, question *dns.Msg) {
	answer := new(dns.Msg)
	answer.SetReply(question)
	for _, q := range question.Question {
		switch {
		case !strings.HasSuffix(strings.ToLower(q.Name), ".example.com."):
			answer.Rcode = dns.RcodeNameError
		case q.Qtype == dns.TypeA:
			answer.Answer = append(answer.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1),
			})
		}
	}
	_ = w.WriteMsg(answer) // who asked asks again
}

// lockedBuffer is one that several write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
