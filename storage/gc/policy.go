package gc

import (
	"context"
	"encoding/json"
	"fmt"

	"berth.internal/storage"
)

// policyKey is the record of the policy by which the queue was reviewed last.
const policyKey = "gc/policy"

// takes is what a policy takes away, as the record keeps it.
type takes struct {
	Untagged bool `json:"untagged"`
	Dangling bool `json:"dangling"`
}

// requeue queues the manifests that an earlier policy kept, if this one may
// not: review takes off the queue what it keeps.
func (c *Collector) requeue(ctx context.Context) error {
	if c.config().Records == nil {
		return nil
	}
	now := takes{c.config().Policy.Untagged, c.config().Policy.Dangling}
	var before takes
	rec, err := c.config().Records.Get(ctx, policyKey)
	if err == nil {
		err = json.Unmarshal(rec.Value, &before)
	}
	if err != nil && !storage.IsNotFound(err) {
		return fmt.Errorf("read the last policy: %w", err)
	}
	if now == before {
		return nil
	}
	if now.Untagged && !before.Untagged || now.Dangling && !before.Dangling {
		next := ""
		for again := true; again; again = next != "" {
			if next, err = c.index.Requeue(ctx, next, batch, c.config().Policy.Rules); err != nil {
				return err
			}
			if err := c.limit.WaitN(ctx, batch); err != nil {
				return err
			}
		}
	}
	value, err := json.Marshal(now)
	if err != nil {
		return err
	}
	_, err = c.config().Records.Put(ctx, policyKey, value, rec.Revision)
	return err
}
