package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	"berth.internal/internal/control"
	"berth.internal/internal/httpx"
	"berth.internal/storage"
)

const (
	accountsPage    = 100  // accounts of a page, unless the client says how many
	accountsPageMax = 1000 // and at most
)

// accounts returns a page of accounts and where the next one begins.
func (h *Handler) accounts(kind auth.Kind, q control.AccountsQuery) ([]auth.Account, string, error) {
	limit, err := pageSize(q.Limit, accountsPage, accountsPageMax)
	if err != nil {
		return nil, "", err
	}
	list := h.Identities.Accounts(kind, q.After, limit)
	if len(list) == limit {
		return list, list[limit-1].Name, nil
	}
	return list, "", nil
}

// listUsers answers GET /users.
func (h *Handler) listUsers(_ *http.Request, q control.AccountsQuery) (control.Users, error) {
	list, next, err := h.accounts(auth.User, q)
	answer := control.Users{Users: []control.User{}, Next: next}
	for _, a := range list {
		answer.Users = append(answer.Users, userOf(a))
	}
	return answer, err
}

func userOf(a auth.Account) control.User {
	u := control.User{Name: a.Name, Groups: append([]string{}, a.Groups...), Disabled: a.Disabled, Created: a.Created, Revision: a.Revision}
	if a.Origin != nil {
		u.Issuer, u.Until = a.Origin.Issuer, a.Origin.Until
	}
	return u
}

// user answers GET /users/{user}.
func (h *Handler) user(r *http.Request, q control.UserQuery) (control.User, error) {
	name, err := h.userNamed(r, q.User)
	if err != nil {
		return control.User{}, err
	}
	a, err := h.Identities.Account(auth.User, name)
	if !errors.Is(err, auth.ErrUnknown) {
		return userOf(a), accountError(err)
	}
	c, err := h.Identities.Lookup(r.Context(), auth.User, name)
	u := control.User{Name: c.Name, Groups: append([]string{}, c.Groups...), Source: control.SourceDirectory}
	if h.Identities.InHtpasswd(name) {
		u.Source = control.SourceHtpasswd
	}
	return u, accountError(err)
}

// createUser answers POST /users.
func (h *Handler) createUser(r *http.Request, q control.CreateUser) (control.User, error) {
	password, made := q.Password, ""
	if password == "" {
		made = rand.Text()
		password = made
	}
	a, err := h.Identities.AddUser(context.WithoutCancel(r.Context()), auth.Account{Name: q.Name, Groups: q.Groups, Disabled: q.Disabled}, password)
	u := userOf(a)
	u.Password = made
	return u, accountError(err)
}

// replaceUser answers PUT /users/{user}.
func (h *Handler) replaceUser(r *http.Request, q control.ReplaceUser) (control.User, error) {
	e := auth.Edit{Password: q.Password, Groups: q.Groups, Disabled: q.Disabled}
	a, err := h.edit(r, auth.User, q.User, e)
	return userOf(a), err
}

func (h *Handler) edit(r *http.Request, kind auth.Kind, name string, e auth.Edit) (auth.Account, error) {
	if match := r.Header.Get("If-Match"); match != "" {
		rev, err := strconv.ParseUint(strings.Trim(match, `"`), 10, 64)
		if err != nil || rev == 0 {
			return auth.Account{}, control.Invalid.With("If-Match must be the revision of the record that is replaced")
		}
		e.Revision = rev
	}
	a, err := h.Identities.Change(context.WithoutCancel(r.Context()), kind, name, e)
	return a, accountError(err)
}

// deleteUser answers DELETE /users/{user}.
func (h *Handler) deleteUser(r *http.Request, q control.UserQuery) (control.None, error) {
	return control.None{}, accountError(h.Identities.Remove(context.WithoutCancel(r.Context()), auth.User, q.User))
}

// listRobots answers GET /robots.
func (h *Handler) listRobots(_ *http.Request, q control.AccountsQuery) (control.Robots, error) {
	list, next, err := h.accounts(auth.Robot, q)
	answer := control.Robots{Robots: []control.Robot{}, Next: next}
	for _, a := range list {
		answer.Robots = append(answer.Robots, robotOf(a))
	}
	return answer, err
}

func robotOf(a auth.Account) control.Robot {
	return control.Robot{
		Name: a.Name, Login: auth.RobotPrefix + a.Name, Grants: wireGrants(a.Grants), Disabled: a.Disabled, Created: a.Created, Expires: a.Expires,
		Revision: a.Revision,
	}
}

func wireGrants(grants []auth.Grant) []control.Grant {
	list := []control.Grant{}
	for _, g := range grants {
		one := control.Grant{Repositories: g.Repositories, Actions: []string{}}
		for _, action := range g.Actions {
			one.Actions = append(one.Actions, string(action))
		}
		list = append(list, one)
	}
	return list
}

func grantsOf(list []control.Grant) ([]auth.Grant, error) {
	grants := []auth.Grant{}
	for i, g := range list {
		if err := policy.CheckPattern(g.Repositories); err != nil {
			return nil, control.Invalid.With(err.Error()).In(fmt.Sprintf("grants[%d].repositories", i))
		}
		one := auth.Grant{Repositories: g.Repositories}
		for _, action := range g.Actions {
			one.Actions = append(one.Actions, auth.Action(action))
		}
		grants = append(grants, one)
	}
	return grants, nil
}

// robot answers GET /robots/{robot}.
func (h *Handler) robot(_ *http.Request, q control.RobotQuery) (control.Robot, error) {
	a, err := h.Identities.Account(auth.Robot, q.Robot)
	return robotOf(a), accountError(err)
}

// createRobot answers POST /robots.
func (h *Handler) createRobot(r *http.Request, q control.CreateRobot) (control.Robot, error) {
	grants, err := grantsOf(q.Grants)
	if err != nil {
		return control.Robot{}, err
	}
	a, secret, err := h.Identities.AddRobot(context.WithoutCancel(r.Context()),
		auth.Account{Name: q.Name, Grants: grants, Disabled: q.Disabled, Expires: q.Expires})
	answer := robotOf(a)
	answer.Secret = secret
	return answer, accountError(err)
}

// replaceRobot answers PUT /robots/{robot}.
func (h *Handler) replaceRobot(r *http.Request, q control.ReplaceRobot) (control.Robot, error) {
	e := auth.Edit{Disabled: q.Disabled, Expires: q.Expires}
	if q.Grants != nil {
		grants, err := grantsOf(*q.Grants)
		if err != nil {
			return control.Robot{}, err
		}
		e.Grants = &grants
	}
	a, err := h.edit(r, auth.Robot, q.Robot, e)
	return robotOf(a), err
}

// deleteRobot answers DELETE /robots/{robot}.
func (h *Handler) deleteRobot(r *http.Request, q control.RobotQuery) (control.None, error) {
	return control.None{}, accountError(h.Identities.Remove(context.WithoutCancel(r.Context()), auth.Robot, q.Robot))
}

// userNamed returns the user that a path names.
func (h *Handler) userNamed(r *http.Request, name string) (string, error) {
	if name != Myself {
		return name, nil
	}
	c := h.Caller(r)
	if c.Kind != auth.User {
		return "", control.Invalid.With(fmt.Sprintf("%s stands for the user who asks, and %s is none: name one", Myself, c)).In(fieldUser)
	}
	return c.Name, nil
}

// changePassword answers POST /users/{user}/password. Who asks may have come with a
// key that was stolen: the password is wanted, too.
func (h *Handler) changePassword(r *http.Request, q control.ChangePassword) (control.None, error) {
	user, err := h.userNamed(r, q.User)
	if err != nil {
		return control.None{}, err
	}
	err = h.Identities.ChangePassword(context.WithoutCancel(r.Context()), user, q.Password, q.NewPassword, h.Address(r))
	limited, tooOften := errors.AsType[*auth.LimitedError](err)
	switch {
	case errors.Is(err, auth.ErrCredentials):
		return control.None{}, control.Invalid.With("this is not the password that the user has").In("password")
	case tooOften:
		return control.None{}, httpx.WithHeader(control.TooMany.With(limited.Error()), "Retry-After", strconv.Itoa(limited.Seconds()))
	case errors.Is(err, auth.ErrUnknown):
		return control.None{}, control.Unsupported.With("the password of " + user + " is not kept by this server, but by the htpasswd file or the directory that has the user: change it there")
	}
	return control.None{}, accountError(err)
}

// listKeys answers GET /users/{user}/keys.
func (h *Handler) listKeys(r *http.Request, q control.UserQuery) (control.Keys, error) {
	user, err := h.userNamed(r, q.User)
	answer := control.Keys{Keys: []control.Key{}}
	if err != nil {
		return answer, err
	}
	for _, k := range h.Identities.APIKeys(user) {
		answer.Keys = append(answer.Keys, keyOf(k))
	}
	return answer, nil
}

func keyOf(k auth.Key) control.Key {
	return control.Key{ID: k.ID, User: k.User, Description: k.Description, Grants: wireGrants(k.Grants), Created: k.Created, Expires: k.Expires}
}

// createKey answers POST /users/{user}/keys.
func (h *Handler) createKey(r *http.Request, q control.CreateKey) (control.Key, error) {
	user, err := h.userNamed(r, q.User)
	if err != nil {
		return control.Key{}, err
	}
	k := auth.Key{User: user, Description: q.Description, Expires: q.Expires}
	if q.Grants != nil {
		if k.Grants, err = grantsOf(q.Grants); err != nil {
			return control.Key{}, err
		}
	}
	made, text, err := h.Identities.AddKey(context.WithoutCancel(r.Context()), h.Caller(r), k)
	answer := keyOf(made)
	answer.Secret = text
	return answer, accountError(err)
}

// deleteKey answers DELETE /users/{user}/keys/{id}.
func (h *Handler) deleteKey(r *http.Request, q control.KeyQuery) (control.None, error) {
	user, err := h.userNamed(r, q.User)
	if err != nil {
		return control.None{}, err
	}
	return control.None{}, accountError(h.Identities.RemoveKey(context.WithoutCancel(r.Context()), user, q.ID))
}

// accountError is err in the words of the API.
func accountError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, auth.ErrUnknown), errors.Is(err, auth.ErrUnknownKey):
		return control.NotFound.With(err.Error())
	case errors.Is(err, auth.ErrExists):
		return control.Conflict.With(err.Error() + ": choose another, or delete that one first")
	case errors.Is(err, auth.ErrInvalid):
		return control.Invalid.With(strings.ReplaceAll(err.Error(), auth.ErrInvalid.Error()+": ", ""))
	case errors.Is(err, auth.ErrUnavailable):
		return control.Unavailable.With("the directory of users does not answer: try again in some seconds").Because(err)
	case errors.Is(err, auth.ErrBusy):
		return httpx.WithHeader(control.TooMany.With(err.Error()+": try again in a second"), "Retry-After", "1")
	case errors.Is(err, storage.ErrConflict):
		return control.Conflict.With("somebody else has changed it: read it again").At(http.StatusPreconditionFailed)
	}
	return err
}
