package control

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"berth.internal/internal/control"
)

// fields are those of a wire type, which embeds none, by their names in JSON.
type fields struct {
	of     reflect.Type
	byName map[string]reflect.StructField
	names  []string // in order
}

func fieldsOf(t reflect.Type) fields {
	f := fields{of: t, byName: map[string]reflect.StructField{}}
	for field := range t.Fields() {
		if name, ok := wireName(field); ok {
			f.byName[name] = field
			f.names = append(f.names, name)
		}
	}
	return f
}

// wireName is the name of a field in JSON, if it is there at all.
func wireName(f reflect.StructField) (string, bool) {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, name != "" && name != "-"
}

// read makes the request of an operation from path, query and body.
//
// Errors: unsupported if the request has what the operation does not know: an
// option must not be accepted and dropped; invalid for what cannot be read.
func (o Operation) read(w http.ResponseWriter, r *http.Request, values map[string]string) (reflect.Value, error) {
	request := reflect.New(o.request.of).Elem()
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return request, control.Invalid.With("the query of the path cannot be read").Because(err)
	}
	if o.hasBody() {
		for name := range query {
			return request, control.Unsupported.With("the options of this operation are in its body").In(clip(name))
		}
		if err := readBody(w, r, request, values); err != nil {
			return request, err
		}
	} else {
		if r.ContentLength != 0 {
			return request, control.Unsupported.With(fmt.Sprintf("%s %s takes no body", o.Method, o.Path))
		}
		for name, given := range query {
			if _, fromPath := values[name]; fromPath || o.request.byName[name].Name == "" {
				return request, control.Unsupported.With("this operation knows no such option").In(clip(name))
			}
			if len(given) != 1 {
				return request, control.Invalid.With("it is given more than once").In(name)
			}
			if err := o.request.set(request, name, given[0]); err != nil {
				return request, err
			}
		}
	}
	for name, value := range values {
		if err := o.request.set(request, name, value); err != nil {
			return request, err
		}
	}
	return request, nil
}

// hasBody says where the options of an operation are.
func (o Operation) hasBody() bool {
	return o.Method != http.MethodGet && o.Method != http.MethodDelete
}

// set reads a field from path or query.
func (f fields) set(request reflect.Value, name, text string) error {
	field := request.FieldByIndex(f.byName[name].Index)
	wants := ""
	switch v := field.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		if v.UnmarshalText([]byte(text)) != nil {
			wants = noun(field.Type())
		}
		return misread(name, wants)
	}
	switch field.Kind() {
	case reflect.String:
		field.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if text == "" { // ?dry_run
			b, err = true, nil
		}
		if err != nil {
			wants = noun(field.Type())
		}
		field.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			wants = noun(field.Type())
		}
		field.SetInt(n)
	case reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			wants = noun(field.Type())
		}
		field.SetUint(n)
	default:
		panic("control: path and query cannot hold " + name + ", a " + field.Type().String())
	}
	return misread(name, wants)
}

func misread(name, wants string) error {
	if wants == "" {
		return nil
	}
	return control.Invalid.With("it must be " + wants).In(name)
}

// readBody reads a body that is a JSON object, or nothing.
func readBody(w http.ResponseWriter, r *http.Request, request reflect.Value, values map[string]string) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, control.MaxBody))
	if err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			return control.Invalid.With(fmt.Sprintf("a body has at most %d bytes", control.MaxBody)).At(http.StatusRequestEntityTooLarge)
		}
		return control.Invalid.With("the body ended before its time").Because(err)
	}
	if len(body) == 0 {
		return nil
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return control.Invalid.With("the body must be JSON, with Content-Type: application/json").At(http.StatusUnsupportedMediaType)
	}
	return decode(body, request, values)
}

// decode reads a JSON object into request. It takes each member under exactly
// its name, once, and none of those that are in values.
func decode(body []byte, request reflect.Value, values map[string]string) error {
	if b := bytes.TrimLeft(body, " \t\r\n"); len(b) == 0 || b[0] != '{' {
		return control.Invalid.With("the body must be a JSON object")
	}
	if err := json.Unmarshal(body, request.Addr().Interface()); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return control.Invalid.With(fmt.Sprintf("it must be %s, not a JSON %s", noun(wrong.Type), wrong.Value)).In(clip(wrong.Field)).Because(err)
		}
		return control.Invalid.With("the body is no JSON that this operation can read: " + err.Error())
	}
	return strict(json.NewDecoder(bytes.NewReader(body)), request.Type(), "", values)
}

// strict goes through a JSON value that was decoded into a t, and finds the
// first member that t has no field for or that is there twice. at is the value's
// place.
func strict(d *json.Decoder, t reflect.Type, at string, taken map[string]string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if kind := t.Kind(); ownReader(t) || kind != reflect.Struct && kind != reflect.Map && kind != reflect.Slice && kind != reflect.Array {
		var skipped json.RawMessage
		return d.Decode(&skipped)
	}
	begin, err := d.Token()
	if err != nil {
		return err
	}
	switch begin {
	case json.Delim('['):
		for i := 0; d.More(); i++ {
			if err := strict(d, t.Elem(), fmt.Sprintf("%s[%d]", at, i), nil); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		if err := strictObject(d, t, at, taken); err != nil {
			return err
		}
	default: // null, or bytes in base64
		return nil
	}
	_, err = d.Token() // its end
	return err
}

func strictObject(d *json.Decoder, t reflect.Type, at string, taken map[string]string) error {
	known := fields{}
	if t.Kind() == reflect.Struct {
		known = fieldsOf(t)
	}
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		name := key.(string)
		place := clip(strings.TrimPrefix(at+"."+name, "."))
		if seen[name] {
			return control.Invalid.With("it is given more than once").In(place)
		}
		seen[name] = true
		var inner reflect.Type
		if t.Kind() == reflect.Map {
			inner = t.Elem()
		} else {
			field, ok := known.byName[name]
			if _, fromPath := taken[name]; fromPath || !ok {
				return control.Unsupported.With("this operation knows no such option").In(place)
			}
			inner = field.Type
		}
		if err := strict(d, inner, place, nil); err != nil {
			return err
		}
	}
	return nil
}

// ownReader says that a type reads its JSON itself.
func ownReader(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// noun is what a Go type is called in JSON.
func noun(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Time]():
		return "a time as in RFC 3339"
	case reflect.TypeFor[json.RawMessage]():
		return "any value"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Pointer:
		return noun(t.Elem())
	}
	return "something else"
}

// pageSize reads how many entries a client wants on a page.
func pageSize(asked, usual, most int) (int, error) {
	if asked < 0 || asked > most {
		return 0, control.Invalid.With(fmt.Sprintf("a page has 1 to %d entries", most)).In("limit")
	}
	return cmp.Or(asked, usual), nil
}

// clip makes a client's word short enough to be sent back.
func clip(s string) string {
	if r := []rune(strings.ToValidUTF8(s, "")); len(r) > 100 {
		return string(r[:100]) + "…"
	}
	return s
}
