package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// walk visits the keys of a configuration struct in order, those of structs in it
// as outer.inner.
func walk(v reflect.Value, prefix string, visit func(key string, v reflect.Value)) {
	for i := range v.NumField() {
		key, option, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		field := v.Field(i)
		switch {
		case option == "inline":
			walk(field, prefix, visit)
		case key == "" || key == "-":
		case field.Kind() == reflect.Struct:
			walk(field, prefix+key+".", visit)
		default:
			visit(prefix+key, field)
		}
	}
}

// Keys returns the keys of a configuration struct, such as collect.rate, in order.
func Keys(cfg any) []string {
	var keys []string
	walk(reflect.ValueOf(cfg), "", func(key string, _ reflect.Value) { keys = append(keys, key) })
	return keys
}

// Changed returns the keys whose values differ in two structs of one type.
func Changed(before, after any) []string {
	values := map[string]any{}
	walk(reflect.ValueOf(before), "", func(key string, v reflect.Value) { values[key] = v.Interface() })
	var keys []string
	walk(reflect.ValueOf(after), "", func(key string, v reflect.Value) {
		if !reflect.DeepEqual(values[key], v.Interface()) {
			keys = append(keys, key)
		}
	})
	return keys
}

// Copy gives the keys of the struct that into points to the values that they have in
// from, which is of the same type.
func Copy(into, from any, keys []string) {
	values := map[string]reflect.Value{}
	walk(reflect.ValueOf(from), "", func(key string, v reflect.Value) { values[key] = v })
	walk(reflect.ValueOf(into).Elem(), "", func(key string, v reflect.Value) {
		if slices.Contains(keys, key) {
			v.Set(values[key])
		}
	})
}

// hidden stands in the place of what is secret.
const hidden = "(hidden)"

// YAML writes a configuration struct as a file that holds all its keys, but for
// passwords: what a key named password, secret or token holds, and those in URLs.
func YAML(cfg any) ([]byte, error) {
	var n yaml.Node
	if err := n.Encode(cfg); err != nil {
		return nil, err
	}
	hide(&n, "")
	return encode(&n)
}

// FromJSON writes what YAML wrote, and was JSON meanwhile, as YAML again, in the order
// of the JSON.
func FromJSON(object []byte) ([]byte, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(object, &n); err != nil { // JSON is YAML
		return nil, err
	}
	plain(&n)
	return encode(&n)
}

// plain writes n as people do: a line for each key, and no quotes without need.
func plain(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	for _, inner := range n.Content {
		plain(inner)
	}
}

func encode(n *yaml.Node) ([]byte, error) {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	err := enc.Encode(n)
	return out.Bytes(), errors.Join(err, enc.Close())
}

func hide(n *yaml.Node, key string) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			hide(n.Content[i+1], n.Content[i].Value)
		}
	case yaml.ScalarNode:
		if _, err := time.ParseDuration(n.Value); err == nil { // as people write it: 24h0m0s is 24h
			if whole, ok := strings.CutSuffix(n.Value, "m0s"); ok {
				n.Value = whole + "m"
			}
			if whole, ok := strings.CutSuffix(n.Value, "h0m"); ok {
				n.Value = whole + "h"
			}
		}
		word := key[strings.LastIndexByte(key, '_')+1:]
		if slices.Contains([]string{"password", "secret", "token"}, word) && n.Value != "" {
			n.SetString(hidden)
		} else if u, err := url.Parse(n.Value); err == nil && u.User != nil {
			if _, given := u.User.Password(); given {
				u.User = url.UserPassword(u.User.Username(), "hidden")
				n.SetString(u.String())
			}
		}
	default:
		for _, inner := range n.Content {
			hide(inner, key)
		}
	}
}

// Locate puts before each line of err, which begins with a key, where that was
// given: the line of the file, called name, that holds text. In the place of a key
// that a variable has given, or a flag, as flags has them, comes that. What was not
// given is a default, and has no place.
func Locate(err error, name string, text []byte, lookup func(string) (string, bool), cfg any, flags map[string]string) error {
	if err == nil {
		return nil
	}
	places, others := map[string]string{}, map[string]string{}
	var root yaml.Node
	if yaml.Unmarshal(text, &root) == nil && len(root.Content) == 1 {
		locate(root.Content[0], "", func(key string, line int) { places[key] = fmt.Sprintf("%s: line %d", name, line) })
	}
	for _, key := range Keys(cfg) {
		variable := prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
		if _, given := lookup(variable); given {
			others[key] = variable
		}
		if flag := flags[key]; flag != "" {
			others[key] = flag
		}
	}
	var errs []error
	for line := range strings.SplitSeq(err.Error(), "\n") {
		key, says, _ := strings.Cut(line, ":")
		if other := others[key]; other != "" {
			errs = append(errs, errors.New(other+":"+says))
			continue
		}
		for key != "" && places[key] == "" {
			key = key[:max(strings.LastIndexAny(key, ".["), 0)]
		}
		if place := places[key]; place != "" {
			line = place + ": " + line
		}
		errs = append(errs, errors.New(line))
	}
	return errors.Join(errs...)
}

// locate tells of each key below n, with those of lists as key[0], and its line.
func locate(n *yaml.Node, at string, tell func(key string, line int)) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := strings.TrimPrefix(at+"."+n.Content[i].Value, ".")
			tell(key, n.Content[i].Line)
			locate(n.Content[i+1], key, tell)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			key := fmt.Sprintf("%s[%d]", at, i)
			tell(key, item.Line)
			locate(item, key, tell)
		}
	}
}

// Top returns the keys at the top of the YAML file that holds text, those that are
// no texts left out.
func Top(text []byte) []string {
	var top map[string]any
	if yaml.Unmarshal(text, &top) != nil {
		return nil
	}
	var keys []string
	for key := range top {
		keys = append(keys, key)
	}
	return keys
}
