package control

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"berth.internal/auth"
	"berth.internal/auth/policy"
	"berth.internal/internal/control"
	"berth.internal/internal/oci"
	"berth.internal/storage"
)

// policy answers GET /policy.
func (h *Handler) policy(*http.Request, control.None) (control.Policy, error) {
	v := h.Policy.Version()
	answer := control.Policy{
		Rules: policy.Wire(v.Policy.Rules), Added: policy.Wire(h.Policy.Base), Source: v.Source, Revision: v.Revision,
	}
	if v.Problem != nil {
		answer.Problem = v.Problem.Error()
	}
	return answer, nil
}

// putPolicy answers PUT /policy.
func (h *Handler) putPolicy(r *http.Request, q control.PolicyUpdate) (control.Policy, error) {
	if q.Rules == nil {
		return control.Policy{}, control.Invalid.With("an empty list is a policy that allows nothing; none is not").In("rules")
	}
	rev, err := ifMatch(r)
	if err != nil {
		return control.Policy{}, err
	}
	p := policy.Policy{Rules: policy.FromWire(q.Rules)}
	h.Audit.Note(r).Detail = policy.Changes(h.Policy.Version().Policy, p)
	_, err = h.Policy.Put(r.Context(), p, rev)
	switch wrong, _ := errors.AsType[policy.Problems](err); {
	case wrong != nil:
		return control.Policy{}, invalidRules(wrong)
	case errors.Is(err, policy.ErrFile):
		return control.Policy{}, control.Conflict.With("this server reads its policy from a file: change that, and it follows in a few seconds")
	case errors.Is(err, storage.ErrConflict):
		return control.Policy{}, control.Conflict.With("somebody else has changed the policy since: get it, and make your change again").At(http.StatusPreconditionFailed)
	case err != nil:
		return control.Policy{}, err
	}
	return h.policy(r, control.None{})
}

// ifMatch is the revision that a write is to replace.
func ifMatch(r *http.Request) (uint64, error) {
	given := r.Header.Get("If-Match")
	if given == "" {
		return 0, control.Invalid.With("say which revision is to be replaced, in the header If-Match: 0 if there is none").At(http.StatusPreconditionRequired)
	}
	rev, err := strconv.ParseUint(strings.Trim(given, `"`), 10, 64)
	if err != nil {
		return 0, control.Invalid.With("the header If-Match must be a revision, a whole number")
	}
	return rev, nil
}

func invalidRules(wrong policy.Problems) error {
	message := wrong[0].Says
	if more := len(wrong) - 1; more > 0 {
		message = fmt.Sprintf("%d mistakes:\n%v", more+1, wrong)
	}
	return control.Invalid.With(message).In(wrong[0].Place())
}

// testPolicy answers POST /policy/test.
func (h *Handler) testPolicy(r *http.Request, q control.PolicyQuestion) (control.PolicyAnswer, error) {
	var answer control.PolicyAnswer
	kind, name, named := strings.Cut(q.Subject, ":")
	c := auth.Caller{Kind: auth.Kind(kind), Name: name, Groups: q.Groups, Claims: q.Claims}
	switch c.Kind {
	case auth.Job:
		known, err := h.Identities.Job(name, q.Claims)
		if refused, ok := errors.AsType[*auth.RefusedError](err); ok {
			return control.PolicyAnswer{Why: refused.Error()}, nil
		}
		c = known
	case auth.User, auth.Robot, auth.Node:
		if name == "" {
			return answer, control.Invalid.With("it needs a name, such as user:ann").In("subject")
		}
	case auth.Anonymous:
		if named {
			return answer, control.Invalid.With("anonymous has no name").In("subject")
		}
	default:
		return answer, control.Invalid.With("it is none of user:NAME, robot:NAME, node:NAME, job:ISSUER and anonymous").In("subject")
	}
	a := auth.Action(q.Action)
	if !slices.Contains(auth.Actions(), a) {
		return answer, control.Invalid.With("it is none of pull, push, overwrite, delete, admin").In("action")
	}
	switch {
	case a == auth.Admin && q.Repo != "":
		return answer, control.Invalid.With("admin is a right on the server as a whole: name no repository").In(fieldRepo)
	case a != auth.Admin:
		if _, err := oci.ParseName(q.Repo); err != nil {
			return answer, control.Invalid.With(messageOf(err)).In(fieldRepo)
		}
	}
	// Of accounts that are there the server knows more than the question says.
	if c.Kind == auth.User || c.Kind == auth.Robot {
		if known, err := h.Identities.Account(c.Kind, c.Name); err == nil {
			c.Limits = known.Grants
			if q.Groups == nil {
				c.Groups = known.Groups
			}
		} else if q.Groups == nil {
			known, err := h.Identities.Lookup(r.Context(), c.Kind, c.Name)
			if err != nil && !errors.Is(err, auth.ErrUnknown) {
				return answer, accountError(err)
			}
			c.Groups = known.Groups
		}
	}
	decider := h.Decider
	if q.Rules != nil {
		e, err := policy.Compile(policy.Policy{Rules: slices.Concat(policy.FromWire(q.Rules), h.Policy.Base)})
		if wrong, ok := errors.AsType[policy.Problems](err); ok {
			return answer, invalidRules(wrong)
		}
		decider = policy.WithRobots{Decider: e}
	}
	d := decider.Decide(c, q.Repo, a)
	return control.PolicyAnswer{Allowed: d.Allowed, Rule: d.Rule, Why: d.Why}, nil
}
