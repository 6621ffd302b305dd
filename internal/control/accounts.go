package control

import "time"

// AccountsQuery asks for users or robots.
type AccountsQuery struct {
	After string `json:"after,omitempty"` // Next of the page before
	Limit int    `json:"limit,omitempty"` // entries of a page: 1 to 1000, by default 100
}

// UserQuery names a user.
type UserQuery struct {
	User string `json:"user"`
}

// RobotQuery names a robot.
type RobotQuery struct {
	Robot string `json:"robot"`
}

// Users is one page of users, by name.
type Users struct {
	Users []User `json:"users"`
	Next  string `json:"next,omitempty"` // empty: these are the last
}

// User is somebody who may log in.
type User struct {
	Name     string    `json:"name"`
	Groups   []string  `json:"groups"`
	Disabled bool      `json:"disabled"`
	Created  time.Time `json:"created,omitzero"`
	Revision uint64    `json:"revision"`

	// Issuer is the OpenID provider that the user logs in by, and Until when the next
	// login is due; absent: a user of berth's own.
	Issuer string    `json:"issuer,omitempty"`
	Until  time.Time `json:"until,omitzero"`

	// Source is where the user is kept, if not by the server itself: in its htpasswd
	// file, or in its directory, such as LDAP. Then there is neither Created nor
	// Revision.
	Source string `json:"source,omitempty"`

	// Password is in the answer to a CreateUser without one, and nowhere else.
	Password string `json:"password,omitempty"`
}

// The sources of users that are not the server's own.
const (
	SourceHtpasswd  = "htpasswd"
	SourceDirectory = "directory"
)

// CreateUser makes a user.
type CreateUser struct {
	Name     string   `json:"name"`
	Groups   []string `json:"groups,omitempty"`
	Disabled bool     `json:"disabled,omitempty"`
	Password string   `json:"password,omitempty"` // absent: the server makes one
}

// ReplaceUser changes what it names of a user.
type ReplaceUser struct {
	User     string    `json:"user"`
	Groups   *[]string `json:"groups,omitempty"`
	Disabled *bool     `json:"disabled,omitempty"`
	Password *string   `json:"password,omitempty"`
}

// ChangePassword gives a user another password.
type ChangePassword struct {
	User        string `json:"user"`
	Password    string `json:"password"` // the one that the user has
	NewPassword string `json:"new_password"`
}

// Grant is some actions, of pull, push, overwrite and delete, on the repositories
// that a pattern such as team/** matches.
type Grant struct {
	Repositories string   `json:"repositories"`
	Actions      []string `json:"actions"`
}

// Keys are the API keys of a user, the oldest first.
type Keys struct {
	Keys []Key `json:"keys"`
}

// Key is an API key of a user: a password beside the password.
type Key struct {
	ID          string    `json:"id"`
	User        string    `json:"user"`
	Description string    `json:"description"`
	Grants      []Grant   `json:"grants"` // what it is good for at most; empty: for all that its user may do
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires,omitzero"` // absent: never

	// Secret is what is shown as the password, in the answer to CreateKey and
	// nowhere else.
	Secret string `json:"secret,omitempty"`
}

// CreateKey makes an API key.
type CreateKey struct {
	User        string    `json:"user"` // of the path
	Description string    `json:"description,omitempty"`
	Grants      []Grant   `json:"grants,omitempty"` // absent: all that the user may do
	Expires     time.Time `json:"expires,omitzero"` // absent: never
}

// KeyQuery names an API key.
type KeyQuery struct {
	User string `json:"user"`
	ID   string `json:"id"`
}

// Robots is one page of robots, by name.
type Robots struct {
	Robots []Robot `json:"robots"`
	Next   string  `json:"next,omitempty"` // empty: these are the last
}

// Robot is a program that may log in.
type Robot struct {
	Name     string    `json:"name"`
	Login    string    `json:"login"`  // the name that it logs in with
	Grants   []Grant   `json:"grants"` // what it may do at most
	Disabled bool      `json:"disabled"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires,omitzero"` // absent: never
	Revision uint64    `json:"revision"`

	// Secret is the password, in the answer to CreateRobot and nowhere else.
	Secret string `json:"secret,omitempty"`
}

// CreateRobot makes a robot.
type CreateRobot struct {
	Name     string    `json:"name"`
	Grants   []Grant   `json:"grants"`
	Disabled bool      `json:"disabled,omitempty"`
	Expires  time.Time `json:"expires,omitzero"` // absent: never
}

// ReplaceRobot changes what it names of a robot.
type ReplaceRobot struct {
	Robot    string     `json:"robot"`
	Grants   *[]Grant   `json:"grants,omitempty"`
	Disabled *bool      `json:"disabled,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"`
}
