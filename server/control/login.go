package control

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"berth.internal/auth"
	"berth.internal/internal/control"
	"berth.internal/internal/httpx"
)

// loginIssuers answers GET /login.
func (h *Handler) loginIssuers(*http.Request, control.None) (control.LoginIssuers, error) {
	answer := control.LoginIssuers{Issuers: []control.LoginIssuer{}}
	for _, i := range h.Identities.Logins() {
		answer.Issuers = append(answer.Issuers, control.LoginIssuer{
			Name: i.Name, Issuer: i.URL, ClientID: i.ClientID, Scopes: append([]string{}, i.Scopes...),
		})
	}
	return answer, nil
}

// logIn answers POST /login.
func (h *Handler) logIn(r *http.Request, q control.Login) (control.LoggedIn, error) {
	ctx := context.WithoutCancel(r.Context())
	c, until, err := h.Identities.LogIn(r.Context(), q.Issuer, q.IDToken, h.Address(r))
	n := h.Audit.Note(r)
	n.Credential = "id_token"
	if err != nil {
		n.Who = "unknown"
		if errors.Is(err, auth.ErrCredentials) {
			n.Deny("login", "", "", "the ID token is not accepted")
		}
		return control.LoggedIn{}, loginError(err)
	}
	n.Who = string(auth.User) + ":" + c.Name
	if q.Expires.IsZero() || q.Expires.After(until) {
		q.Expires = until
	}
	made, text, err := h.Identities.AddKey(ctx, c, auth.Key{User: c.Name, Description: q.Description, Expires: q.Expires})
	if err != nil {
		return control.LoggedIn{}, accountError(err)
	}
	n.Object = made.ID
	answer := control.LoggedIn{Groups: append([]string{}, c.Groups...), Until: until, Key: keyOf(made)}
	answer.Key.Secret = text
	return answer, nil
}

// loginError is err in the words of the API.
func loginError(err error) error {
	if limited, ok := errors.AsType[*auth.LimitedError](err); ok {
		return httpx.WithHeader(control.TooMany.With(limited.Error()), "Retry-After", strconv.Itoa(limited.Seconds()))
	}
	if refused, ok := errors.AsType[*auth.RefusedError](err); ok {
		return control.Unauthenticated.With(refused.Error())
	}
	if errors.Is(err, auth.ErrIssuer) {
		return httpx.WithHeader(control.Unavailable.With(auth.ErrIssuer.Error()+" to this server: try again later; its log says more").Because(err), "Retry-After", "5")
	}
	return err
}
