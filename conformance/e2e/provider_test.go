package e2e_test

import (
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdProvider starts the OpenID provider of provider/provider.mjs.
func cmdProvider(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 1, "provider NAME")
	base, err := os.UserCacheDir()
	ts.Check(err)
	modules := filepath.Join(base, "berth-test", "oidc-provider", "node_modules")
	if _, err := os.Stat(modules); err != nil {
		ts.Fatalf("no OpenID provider to log in with; run make deps first: %v", err)
	}
	here, err := os.Getwd()
	ts.Check(err)
	command := []string{"node", filepath.Join(here, "provider", "provider.mjs"), modules}
	if before, err := url.Parse(ts.Getenv(args[0])); err == nil && before.Port() != "" { // of an earlier one, whose place it takes
		command = append(command, before.Port())
	}
	enter(ts, args[0], `the provider is ready at (\S+)`, command...)
}

var (
	formTag  = regexp.MustCompile(`(?s)<form[^>]*\baction="([^"]*)"[^>]*>(.*?)</form>`)
	inputTag = regexp.MustCompile(`<input[^>]*>`)
	nameOf   = regexp.MustCompile(`\bname="([^"]*)"`)
	valueOf  = regexp.MustCompile(`\bvalue="([^"]*)"`)
)

// cmdBrowse does in a browser what a person does that logs in as NAME: it opens the
// page and sends the forms that it is shown, until there is none.
func cmdBrowse(ts *testscript.TestScript, neg bool, args []string) {
	positive(ts, neg, args, 2, "browse URL NAME")
	jar, err := cookiejar.New(nil)
	ts.Check(err)
	browser := &http.Client{Jar: jar, Timeout: patience}
	page, at, err := load(browser.Get(args[0]))
	ts.Check(err)
	for clicks := 0; ; clicks++ {
		form := formTag.FindStringSubmatch(page)
		if form == nil {
			break
		}
		if clicks == 10 {
			ts.Fatalf("one form after another, the last at %s:\n%s", at, page)
		}
		target, err := at.Parse(html.UnescapeString(form[1]))
		ts.Check(err)
		values := url.Values{}
		for _, input := range inputTag.FindAllString(form[2], -1) {
			if name := nameOf.FindStringSubmatch(input); name != nil {
				value := valueOf.FindStringSubmatch(input)
				switch {
				case name[1] == "login":
					values.Set("login", args[1])
				case name[1] == "password":
					values.Set("password", "anything")
				case value != nil:
					values.Set(name[1], html.UnescapeString(value[1]))
				}
			}
		}
		page, at, err = load(browser.PostForm(target.String(), values))
		ts.Check(err)
	}
	ts.Logf("the last page, %s, says:\n%s", at, page)
}

// load reads a page.
func load(resp *http.Response, err error) (string, *url.URL, error) {
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 400 {
		err = fmt.Errorf("%s: %s: %s", resp.Request.URL, resp.Status, text)
	}
	return string(text), resp.Request.URL, err
}

// cmdEnded waits until a program has ended, which must succeed.
func cmdEnded(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: ended NAME")
	}
	a := find(ts, args[0])
	select {
	case <-a.ended:
	case <-time.After(patience):
		ts.Check(errors.New(args[0] + " does not end"))
	}
	if failed := a.err != nil; failed != neg {
		ts.Fatalf("%s: %v\n%s", strings.Join(a.args, " "), a.err, a.output())
	}
}
