package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"berth.internal/client/contexts"
	"berth.internal/client/signin"
	wire "berth.internal/internal/control"
)

// loginWait is how long berth login waits for somebody who logs in elsewhere.
const loginWait = 10 * time.Minute

// byOIDC logs in with an account at an OpenID provider, and returns c with the API
// key that the server makes for it.
func byOIDC(ctx context.Context, std stdio, o loginOptions, c contexts.Context) (contexts.Context, error) {
	end, err := parseExpiry(o.expires, time.Now())
	if err != nil {
		return c, misuse(err)
	}
	reg, err := registryOf(c)
	if err != nil {
		return c, err
	}
	server, err := controlOf(reg)
	if err != nil {
		return c, err
	}
	defer server.Close()
	var known wire.LoginIssuers
	err = server.Get(ctx, "/login", nil, &known)
	if errors.Is(err, wire.Unsupported) {
		return c, fmt.Errorf("%s is a berth too old for berth login --oidc", c.Server)
	} else if err != nil {
		return c, err
	}
	issuer, err := issuerOf(known.Issuers, o.oidc, c.Server)
	if err != nil {
		return c, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, loginWait, fmt.Errorf("nobody has logged in within %d minutes", int(loginWait.Minutes())))
	defer cancel()
	idToken, err := signIn(ctx, std, o, issuer, c)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return c, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "a machine without a name"
	}
	var made wire.LoggedIn
	err = server.Do(ctx, http.MethodPost, "/login", wire.Login{
		Issuer: issuer.Name, IDToken: idToken, Description: fmt.Sprintf("berth login on %.100s", host), Expires: end,
	}, &made)
	if err != nil {
		return c, err
	}
	if len(made.Groups) > 0 {
		fmt.Fprintf(std.err, "In the groups %s.\n", strings.Join(made.Groups, ", "))
	}
	k := made.Key
	c.User, c.Secret, c.Key, c.Expires = k.User, k.Secret, k.ID, k.Expires
	return c, nil
}

// otherWays says how else one can log in at the server of c, as the end of a sentence.
func otherWays(ctx context.Context, c contexts.Context) string {
	c.LogOut()
	var known wire.LoginIssuers
	reg, err := registryOf(c)
	if err != nil {
		return ""
	}
	server, err := controlOf(reg)
	if err != nil {
		return ""
	}
	defer server.Close()
	if server.Get(ctx, "/login", nil, &known) != nil || len(known.Issuers) == 0 {
		return ""
	}
	var names []string
	for _, i := range known.Issuers {
		names = append(names, i.Name)
	}
	return "; accounts of " + strings.Join(names, ", ") + " log in with --oidc " + names[0]
}

// issuerOf finds the issuer of that name.
func issuerOf(known []wire.LoginIssuer, name, server string) (wire.LoginIssuer, error) {
	var names []string
	for _, i := range known {
		if i.Name == name {
			return i, nil
		}
		names = append(names, i.Name)
	}
	if names == nil {
		return wire.LoginIssuer{}, fmt.Errorf("nobody can log in at %s by OIDC: its configuration has no oidc with people", server)
	}
	return wire.LoginIssuer{}, misuse(fmt.Errorf("%s knows no OpenID provider %q, but %s", server, name, strings.Join(names, ", ")))
}

// signIn gets an ID token of the provider.
func signIn(ctx context.Context, std stdio, o loginOptions, issuer wire.LoginIssuer, c contexts.Context) (string, error) {
	provider, err := signin.Find(ctx, signin.Options{Issuer: issuer.Issuer, ClientID: issuer.ClientID, Scopes: issuer.Scopes, CA: []byte(c.CA)})
	if err != nil {
		return "", err
	}
	if o.device {
		return provider.Device(ctx, func(page, code, complete string) {
			fmt.Fprintf(std.err, "To log in at %s as the application %s, open on any machine\n\n  %s\n\nand type the code %s there.\n", issuer.Issuer, issuer.ClientID, page, code)
			if complete != "" {
				fmt.Fprintf(std.err, "Or open the page with the code in it: %s\n", complete)
			}
		})
	}
	return provider.Browser(ctx, func(page string) {
		fmt.Fprintf(std.err, "To log in at %s as the application %s, open in a browser on this machine\n\n  %s\n\nIf the browser is on another machine: berth login --oidc %s --device\n",
			issuer.Issuer, issuer.ClientID, page, issuer.Name)
		openPage(ctx, page)
	})
}

// openPage opens a page in the browser, where there is a desktop. If it does not, who
// reads the page's address opens it.
func openPage(ctx context.Context, page string) {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return
	}
	if path, err := exec.LookPath("xdg-open"); err == nil {
		cmd := exec.CommandContext(context.WithoutCancel(ctx), path, page)
		if cmd.Start() == nil {
			go func() { _ = cmd.Wait() }() // it may run as long as the browser
		}
	}
}
