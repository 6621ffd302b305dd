package control

import (
	"context"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"berth.internal/internal/control"
	"berth.internal/server/audit"
)

// Table returns the operations that there are. An operation is one row here
// and one function: it gets the request, which is of a wire type, and returns
// the answer. Fields of the request that the path names in braces come from
// the path; of a GET or DELETE the others are query parameters, else they are
// the members of the body. An operation on a repository has a field repo. What
// takes longer than a request is a long row.
func Table() []Operation {
	return []Operation{
		row(http.MethodGet, "/server", Everyone, (*Handler).server,
			"Which server this is, whether it is ready and, for callers that it knows, what it supports."),

		row(http.MethodGet, "/login", Everyone, (*Handler).loginIssuers,
			"The issuers of ID tokens that people can log in by."),
		row(http.MethodPost, "/login", Everyone, (*Handler).logIn,
			"Makes an API key in exchange for an ID token of an issuer.").as("login"),

		row(http.MethodGet, "/history", Pull, (*Handler).history,
			"What the tags of a repository were on, those that are gone included."),
		row(http.MethodGet, "/trash", Pull, (*Handler).trash,
			"The manifests of a repository that were deleted and can be restored."),
		row(http.MethodDelete, "/trash", Delete, (*Handler).purge,
			"Takes a manifest out of the trash for good.").as("manifest.purge"),
		row(http.MethodPost, "/restore", Push, (*Handler).restore,
			"Puts a tag back, or brings a deleted manifest back with its tags.").as("manifest.restore"),

		row(http.MethodGet, "/policy", Admin, (*Handler).policy,
			"Who may do what."),
		row(http.MethodPut, "/policy", Admin, (*Handler).putPolicy,
			"Replaces the policy whose revision the header If-Match names.").as("policy.change"),
		row(http.MethodPost, "/policy/test", Admin, (*Handler).testPolicy,
			"Whether a caller may do something, and which rule decides; with rules, whether they would allow it."),

		row(http.MethodGet, "/users", Admin, (*Handler).listUsers,
			"The users, without those of an htpasswd file."),
		row(http.MethodPost, "/users", Admin, (*Handler).createUser,
			"Makes a user. Without a password it makes one, which is in the answer and nowhere else.").as("user.add"),
		row(http.MethodGet, "/users/{user}", Self, (*Handler).user,
			"One user, also of the htpasswd file or the directory; ~ is the user who asks, as in all paths below."),
		row(http.MethodPut, "/users/{user}", Admin, (*Handler).replaceUser,
			"Changes what is given of a user; with If-Match, of that revision. A new password ends all that the old one has opened.").as("user.change"),
		row(http.MethodDelete, "/users/{user}", Admin, (*Handler).deleteUser,
			"Deletes a user, whose tokens are void at once.").as("user.delete"),

		row(http.MethodPost, "/users/{user}/password", Self, (*Handler).changePassword,
			"Gives a user whose password is known another one.").as("user.password"),
		row(http.MethodGet, "/users/{user}/keys", Self, (*Handler).listKeys,
			"The API keys of a user."),
		row(http.MethodPost, "/users/{user}/keys", Self, (*Handler).createKey,
			"Makes an API key, a password beside the password, that is in the answer and nowhere else.").as("key.add"),
		row(http.MethodDelete, "/users/{user}/keys/{id}", Self, (*Handler).deleteKey,
			"Deletes an API key; what was given out for it is void at once.").as("key.delete"),

		row(http.MethodGet, "/robots", Admin, (*Handler).listRobots,
			"The robots."),
		row(http.MethodPost, "/robots", Admin, (*Handler).createRobot,
			"Makes a robot, with a secret that is in the answer and nowhere else.").as("robot.add"),
		row(http.MethodGet, "/robots/{robot}", Admin, (*Handler).robot,
			"One robot."),
		row(http.MethodPut, "/robots/{robot}", Admin, (*Handler).replaceRobot,
			"Changes what is given of a robot; with If-Match, of that revision.").as("robot.change"),
		row(http.MethodDelete, "/robots/{robot}", Admin, (*Handler).deleteRobot,
			"Deletes a robot, whose secret and tokens are void at once.").as("robot.delete"),

		row(http.MethodGet, "/config", Admin, (*Handler).config,
			"The configuration in force, without secrets."),
		row(http.MethodPost, "/config/reload", Admin, (*Handler).reload,
			"Reads the configuration and the files that it names again, and says what has changed and what needs a restart.").as("config.reload"),

		row(http.MethodGet, "/audit", Admin, (*Handler).audit,
			"What the audit log has: who did what, was denied or logged in."),

		row(http.MethodGet, "/jobs", Admin, (*Handler).listJobs,
			"The jobs that run, and the last that have ended, without their results."),
		row(http.MethodGet, "/jobs/{id}", Admin, (*Handler).job,
			"One job; with watch, as soon as it has changed since that revision, or after a minute."),
		row(http.MethodDelete, "/jobs/{id}", Admin, (*Handler).cancelJob,
			"Cancels a job, which ends soon; one that has ended stays as it is.").as("job.cancel"),

		row(http.MethodGet, "/gc", Admin, (*Handler).planGC,
			"What the collector would do now with what is due, or in time with what is queued, entry by entry with the reason; changes nothing."),
		long("/gc", Admin, (*Handler).collect,
			"Does a round of the collector now."),

		long("/fsck", Admin, (*Handler).fsck,
			"Compares what the index says with itself and with the bytes of the store; changes nothing."),
		row(http.MethodGet, "/scrub", Admin, (*Handler).scrubState,
			"How far the scrub is, which reads everything again and again and quarantines what is damaged."),
		long("/scrub", Admin, (*Handler).scrub,
			"Reads everything now, at full speed, and quarantines what is damaged."),
		row(http.MethodGet, "/quarantine", Admin, (*Handler).quarantine,
			"The content that is known to be damaged; it is answered 404 until it is pushed again."),
		long("/backup", Admin, (*Handler).backUp,
			"Copies all data into a directory on the server's machine, or makes the backup there anew; the server goes on to serve."),
	}
}

// Operation is a row of the table.
type Operation struct {
	Method string
	Path   string // below control.Base
	Needs  Right
	Status int // of the answer if all goes well
	Says   string

	does    string // what the audit log calls it; empty: it changes nothing
	request fields
	answer  reflect.Type
	result  reflect.Type // of the job that the answer is; nil: it is none
	do      func(h *Handler, r *http.Request, request reflect.Value) (any, error)
}

// as gives an operation that changes something its name in the audit log.
func (o Operation) as(name string) Operation {
	o.does = name
	return o
}

// objects are the fields that say what an operation is on, beside fieldRepo.
var objects = []string{fieldUser, "robot", "name", "id", "dir"}

// note tells the audit log what the request is about, and which other fields are
// given: not their values, which may be secret.
func (o Operation) note(n *audit.Note, request reflect.Value) {
	var on, given []string
	for _, name := range o.request.names {
		field := request.FieldByIndex(o.request.byName[name].Index)
		switch {
		case field.IsZero():
		case name == fieldRepo:
			n.Repo = field.String()
		case name == "digest" || name == "tag":
			n.Names(field.String())
		case slices.Contains(objects, name) && field.Kind() == reflect.String:
			on = append(on, field.String())
		default:
			given = append(given, name)
		}
	}
	n.Object, n.Detail = strings.Join(on, " "), strings.Join(given, " ")
}

// The fields that name what an operation is on.
const (
	fieldRepo = "repo"
	fieldUser = "user" // of one that needs Self
)

// Myself stands for the name of who asks, where a path names a user. It is nobody's
// name.
const Myself = "~"

// row makes a row whose request is a Q and whose answer is an A.
func row[Q, A any](method, path string, needs Right, does func(*Handler, *http.Request, Q) (A, error), says string) Operation {
	op := Operation{
		Method: method, Path: path, Needs: needs, Status: http.StatusOK, Says: says,
		request: fieldsOf(reflect.TypeFor[Q]()), answer: reflect.TypeFor[A](),
		do: func(h *Handler, r *http.Request, request reflect.Value) (any, error) {
			return does(h, r, request.Interface().(Q))
		},
	}
	for _, name := range op.request.names {
		if !op.hasBody() || strings.Contains(path, "{"+name+"}") {
			_ = op.request.set(reflect.New(op.request.of).Elem(), name, "") // panics if it is of a kind that cannot be there
		}
	}
	return op
}

// long makes a row that starts a job with POST. Its result is an R, also with an
// error: then it is what was done until then.
func long[Q, R any](path string, needs Right, does func(*Handler, context.Context, tell, Q) (R, error), says string) Operation {
	op := row(http.MethodPost, path, needs, func(h *Handler, r *http.Request, q Q) (control.Job, error) {
		return h.jobs.start(r.Context(), path[1:], func(ctx context.Context, tell tell) (any, error) {
			return does(h, ctx, tell, q)
		})
	}, says)
	op.does = path[1:] + ".start"
	op.Status, op.result = http.StatusAccepted, reflect.TypeFor[R]()
	return op
}

// repository returns what the request of an operation on a repository names.
func (o Operation) repository(request reflect.Value) (string, bool) {
	if o.Needs == Everyone || o.Needs == Admin || o.Needs == Self {
		return "", false
	}
	return request.FieldByIndex(o.request.byName[fieldRepo].Index).String(), true
}

// Features are the names by which clients ask what a server supports: the
// first words of the paths that it knows.
func Features(table []Operation) []string {
	var names []string
	for _, op := range table {
		name, _, _ := strings.Cut(op.Path[1:], "/")
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// route finds the row of a request, and what stands where its path has braces.
// If the path has rows, but not for this method, allow says which there are.
func route(table []Operation, r *http.Request) (op Operation, values map[string]string, allow []string) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	path := strings.TrimPrefix(r.URL.EscapedPath(), control.Base)
	for _, op := range table {
		values, ok := match(op.Path, path)
		if !ok {
			continue
		}
		if op.Method == method {
			return op, values, nil
		}
		allow = append(allow, op.Method)
		if op.Method == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	slices.Sort(allow)
	return Operation{}, nil, allow
}

// match compares a path, still escaped, with that of a row.
func match(pattern, path string) (map[string]string, bool) {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return nil, false
	}
	var values map[string]string
	for i, word := range want {
		name, ok := strings.CutPrefix(word, "{")
		if !ok {
			if word != got[i] {
				return nil, false
			}
			continue
		}
		value, err := url.PathUnescape(got[i])
		if err != nil || value == "" {
			return nil, false
		}
		if values == nil {
			values = map[string]string{}
		}
		values[strings.TrimSuffix(name, "}")] = value
	}
	return values, true
}
