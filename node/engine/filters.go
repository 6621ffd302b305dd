package engine

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

// filters are the conditions of a list request: for each name the values of
// which one must fit, or all for labels.
type filters map[string][]string

// readFilters reads the query parameter "filters", in the present form
// {"name":{"value":true}} or the one before API 1.22, {"name":["value"]}. A
// name that is not allowed is refused, since a client that asks for less must
// not get all.
func readFilters(r *http.Request, allowed ...string) (filters, error) {
	text := r.FormValue("filters")
	if text == "" {
		return nil, nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return nil, invalid("invalid filters: %v", err)
	}
	f := filters{}
	for name, v := range raw {
		if !slices.Contains(allowed, name) {
			return nil, invalid("invalid filter '%s': it is not supported here; there are %s", name, strings.Join(allowed, ", "))
		}
		var set map[string]bool
		if err := json.Unmarshal(v, &set); err == nil {
			for value := range set {
				f[name] = append(f[name], value)
			}
			slices.Sort(f[name])
			continue
		}
		var list []string
		if err := json.Unmarshal(v, &list); err != nil {
			return nil, invalid("invalid filters: %s: %v", name, err)
		}
		f[name] = list
	}
	return f, nil
}

// match reports whether one of the filter's values fits. A filter that is not
// there fits everything.
func (f filters) match(name string, fits func(value string) bool) bool {
	return len(f[name]) == 0 || slices.ContainsFunc(f[name], fits)
}

// labels reports whether the labels have all that the filter asks for: "key" or
// "key=value".
func (f filters) labels(have map[string]string) bool {
	for _, want := range f["label"] {
		key, value, exact := strings.Cut(want, "=")
		got, ok := have[key]
		if !ok || exact && got != value {
			return false
		}
	}
	return true
}

// boolean reads a query parameter as Docker does: anything but nothing, 0, no,
// false and none means yes.
func boolean(r *http.Request, name string) bool {
	switch strings.ToLower(strings.TrimSpace(r.FormValue(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}
