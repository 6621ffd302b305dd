// Package config fills a configuration struct from a YAML file and from the
// environment. Flags come after both and are the caller's.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"berth.internal/internal/lazyregexp"
)

// prefix begins the name of every environment variable that sets a key: the
// key max_manifest is BERTH_MAX_MANIFEST, and log.level is BERTH_LOG_LEVEL.
const prefix = "BERTH_"

// File reads the YAML file at path into the struct that into points to. What
// the file does not name stays as it is. A key that the struct does not have
// is an error. The error joins all that is wrong with the file, each with its
// line there.
func File(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return Text(path, text, into)
}

// Text is File for text that was read already. name is what errors call it.
func Text(name string, text []byte, into any) error {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil && !errors.Is(err, io.EOF) { // EOF: nothing in it
		return explain(name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: holds more than one document", name)
	}
	return nil
}

// Environment sets the keys of the struct that into points to from the
// variables that are named after them. lookup is os.LookupEnv, or a stand-in.
// The error joins all that is wrong, each with its variable.
func Environment(lookup func(string) (string, bool), into any) error {
	return environment(lookup, prefix, reflect.ValueOf(into).Elem())
}

func environment(lookup func(string) (string, bool), prefix string, v reflect.Value) error {
	var errs []error
	for i := range v.NumField() {
		key, option, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		name, field := prefix+strings.ToUpper(key), v.Field(i)
		switch {
		case option == "inline":
			errs = append(errs, environment(lookup, prefix, field))
		case key == "" || key == "-":
		case field.Kind() == reflect.Struct:
			errs = append(errs, environment(lookup, name+"_", field))
		default:
			if value, ok := lookup(name); ok {
				scalar := yaml.Node{Kind: yaml.ScalarNode, Value: value}
				errs = append(errs, explain(name, scalar.Decode(field.Addr().Interface())))
			}
		}
	}
	return errors.Join(errs...)
}

// The parts of yaml's messages that speak of Go.
var (
	unknownKey = lazyregexp.New(`field (\S+) not found in type \S+`)
	duplicate  = lazyregexp.New(`mapping key (\S+) already defined at`)
	wrongType  = lazyregexp.New("cannot unmarshal !!(\\w+) (?:(`.*`) )?into (\\S+)")
)

// explain says where err is and what it means to who wrote the file.
func explain(where string, err error) error {
	if err == nil {
		return nil
	}
	lines := []string{strings.TrimPrefix(err.Error(), "yaml: ")}
	if wrong, ok := errors.AsType[*yaml.TypeError](err); ok {
		lines = wrong.Errors
	}
	var errs []error
	for _, line := range lines {
		line = unknownKey().ReplaceAllString(line, "there is no key $1")
		line = duplicate().ReplaceAllString(line, "key $1 is already given at")
		if m := wrongType().FindStringSubmatch(line); m != nil {
			line = strings.Replace(line, m[0], cmp.Or(m[2], "a "+m[1])+" is not "+noun(m[3]), 1)
		}
		errs = append(errs, fmt.Errorf("%s: %s", where, strings.TrimPrefix(line, "line 0: ")))
	}
	return errors.Join(errs...)
}

// noun says what a value of the Go type is called in the file.
func noun(goType string) string {
	switch goType {
	case "int", "int64", "uint", "uint64":
		return "a whole number"
	case "bool":
		return "true or false"
	case "string":
		return "a text"
	case "time.Duration":
		return "a duration such as 90s or 1h30m"
	}
	return "what belongs here"
}
