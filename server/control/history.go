package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"

	"berth.internal/internal/control"
	"berth.internal/internal/oci"
	"berth.internal/server/audit"
	"berth.internal/storage"
)

const (
	historyPage    = 100  // tags or manifests of a page, unless the client says how many
	historyPageMax = 1000 // and at most
)

// history answers GET /history.
func (h *Handler) history(r *http.Request, q control.HistoryQuery) (control.History, error) {
	ctx := r.Context()
	limit, err := pageSize(q.Limit, historyPage, historyPageMax)
	if err != nil {
		return control.History{}, err
	}
	tags, changes := []string{q.Tag}, storage.HistoryMax
	answer := control.History{Tags: []control.TagHistory{}}
	if q.Tag == "" {
		changes = 2
		if tags, err = h.Index.PastTags(ctx, q.Repo, q.After, limit); err != nil {
			return answer, err
		}
		if len(tags) == limit {
			answer.Next = tags[limit-1]
		}
	}
	states := map[digest.Digest]string{"": ""}
	for _, tag := range tags {
		list, err := h.Index.History(ctx, q.Repo, tag, changes)
		if err != nil {
			return answer, err
		}
		if len(list) == 0 { // an unknown tag, or one whose history ended just now
			continue
		}
		life := control.TagHistory{Tag: tag}
		for _, c := range list {
			if _, known := states[c.Digest]; !known {
				if states[c.Digest], err = h.stateOf(ctx, q.Repo, c.Digest); err != nil {
					return answer, err
				}
			}
			life.Changes = append(life.Changes, control.TagChange{Time: c.Time, Digest: c.Digest.String(), State: states[c.Digest]})
		}
		answer.Tags = append(answer.Tags, life)
	}
	if q.Tag != "" && len(answer.Tags) == 0 {
		return answer, control.NotFound.With(fmt.Sprintf("nothing is known of a tag %s in %s", q.Tag, q.Repo))
	}
	return answer, nil
}

// The states of a manifest that a tag was on.
const (
	stateThere = "there"
	stateTrash = "trash"
	stateGone  = "gone"
)

func (h *Handler) stateOf(ctx context.Context, repo string, d digest.Digest) (string, error) {
	_, err := h.Index.Manifest(ctx, repo, d)
	if err == nil {
		return stateThere, nil
	}
	if !storage.IsNotFound(err) {
		return "", err
	}
	switch _, err := h.Index.TrashedManifest(ctx, repo, d); {
	case err == nil:
		return stateTrash, nil
	case storage.IsNotFound(err):
		return stateGone, nil
	default:
		return "", err
	}
}

// trash answers GET /trash.
func (h *Handler) trash(r *http.Request, q control.TrashQuery) (control.Trash, error) {
	answer := control.Trash{Manifests: []control.Trashed{}}
	limit, err := pageSize(q.Limit, historyPage, historyPageMax)
	if err != nil {
		return answer, err
	}
	list, err := h.Index.Trashed(r.Context(), q.Repo, digest.Digest(q.After), limit)
	if err != nil {
		return answer, err
	}
	for _, m := range list {
		answer.Manifests = append(answer.Manifests, control.Trashed{
			Digest: m.Digest.String(), MediaType: m.MediaType, SizeBytes: m.Size,
			Tags: append([]string{}, m.Tags...), Deleted: m.Deleted, Until: m.Until,
		})
	}
	if len(list) == limit {
		answer.Next = list[limit-1].Digest.String()
	}
	return answer, nil
}

// restore answers POST /restore.
func (h *Handler) restore(r *http.Request, q control.RestoreRequest) (control.Restored, error) {
	ctx := context.WithoutCancel(r.Context())
	d, tags, err := h.target(ctx, q)
	if err != nil {
		return control.Restored{}, err
	}
	rules := h.Rules(q.Repo)
	denied := h.Access(r, q.Repo, Overwrite)
	if denied != nil {
		rules.Immutable = func(string) bool { return true }
	}
	n := h.Audit.Note(r)
	n.Digest = d.String()
	set, err := h.Index.Restore(ctx, q.Repo, d, tags, rules)
	var missing *storage.MissingError
	switch {
	case denied != nil && errors.Is(err, storage.ErrImmutable):
		return control.Restored{}, denied
	case errors.As(err, &missing):
		return control.Restored{}, control.Conflict.With(fmt.Sprintf("%s cannot be whole again: %s is gone for good; push the image again",
			d, missing.Digests[0])).Because(err)
	case errors.Is(err, storage.ErrImmutable):
		n.Deny(string(Overwrite), q.Repo, "immutable_tags", "the tag is immutable")
		return control.Restored{}, control.Conflict.With("the tag is immutable and is on another manifest").Because(err)
	case storage.IsNotFound(err):
		return control.Restored{}, control.NotFound.With(fmt.Sprintf("%s is neither in %s nor in its trash", d, q.Repo)).Because(err)
	}
	if err == nil {
		n.Tags = nil
		for _, tag := range set {
			n.Tags = append(n.Tags, audit.Tag{Name: tag})
		}
	}
	return control.Restored{Digest: d.String(), Tags: append([]string{}, set...)}, err
}

// target says which manifest q wants back, and with which tags; nil are those
// that it had.
func (h *Handler) target(ctx context.Context, q control.RestoreRequest) (d digest.Digest, tags []string, err error) {
	if q.Tag == "" && q.Digest == "" {
		return "", nil, control.Invalid.With("name a tag, a digest or both").In("tag")
	}
	if q.Digest != "" {
		if d, err = oci.ParseDigest(q.Digest); err != nil {
			return "", nil, control.Invalid.With(messageOf(err)).In("digest")
		}
	}
	if q.Tag == "" {
		return d, nil, nil
	}
	if _, err := oci.ParseTag(q.Tag); err != nil {
		return "", nil, control.Invalid.With(messageOf(err)).In("tag")
	}
	if d == "" {
		d, err = h.before(ctx, q.Repo, q.Tag)
	}
	return d, []string{q.Tag}, err
}

// before returns what tag was on before its last change.
func (h *Handler) before(ctx context.Context, repo, tag string) (digest.Digest, error) {
	list, err := h.Index.History(ctx, repo, tag, storage.HistoryMax)
	if err != nil {
		return "", err
	}
	for _, c := range list[min(1, len(list)):] {
		if c.Digest != "" && c.Digest != list[0].Digest {
			return c.Digest, nil
		}
	}
	return "", control.NotFound.With(fmt.Sprintf("nothing is known of an earlier image of %s:%s", repo, tag))
}

// purge answers DELETE /trash.
func (h *Handler) purge(r *http.Request, q control.PurgeRequest) (control.None, error) {
	d, err := oci.ParseDigest(q.Digest)
	if err != nil {
		return control.None{}, control.Invalid.With(messageOf(err)).In("digest")
	}
	err = h.Index.Purge(context.WithoutCancel(r.Context()), q.Repo, d, h.Rules(q.Repo))
	if storage.IsNotFound(err) {
		err = control.NotFound.With(fmt.Sprintf("%s is not in the trash of %s", d, q.Repo)).Because(err)
	}
	return control.None{}, err
}
