package control

import "time"

// LoginIssuers are the issuers that people can log in by.
type LoginIssuers struct {
	Issuers []LoginIssuer `json:"issuers"`
}

// LoginIssuer is an issuer of ID tokens (OpenID Connect), as a client needs it that
// gets one.
type LoginIssuer struct {
	Name     string   `json:"name"`
	Issuer   string   `json:"issuer"` // its URL
	ClientID string   `json:"client_id"`
	Scopes   []string `json:"scopes"` // beside openid
}

// Login asks for an API key in exchange for an ID token.
type Login struct {
	Issuer      string    `json:"issuer"` // its name
	IDToken     string    `json:"id_token"`
	Description string    `json:"description,omitempty"` // of the key
	Expires     time.Time `json:"expires,omitzero"`      // absent: when the next login is due
}

// LoggedIn is who has logged in.
type LoggedIn struct {
	Groups []string  `json:"groups"` // that policy has the user in
	Until  time.Time `json:"until"`  // when the next login is due: then no key of the user is good any more
	Key    Key       `json:"key"`    // with its secret
}
