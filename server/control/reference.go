package control

import (
	"bufio"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"berth.internal/internal/control"
)

// Reference writes what the table says, for people: each operation with its
// request and its answer, and then the types that those are made of.
func Reference(to io.Writer) error {
	w := bufio.NewWriter(to)
	fmt.Fprintf(w, "The control API, below %s. Bodies are JSON; an error is {\"error\": {\"code\", \"message\", \"field\", \"request_id\"}}.\n", control.Base)
	var types []reflect.Type
	for _, op := range Table() {
		fmt.Fprintf(w, "\n%s %s%s\n", op.Method, control.Base, op.Path)
		fmt.Fprintf(w, "    %s\n", op.Says)
		fmt.Fprintf(w, "    right    %s\n", op.right())
		if words := op.options(&types); len(words) > 0 {
			where := "query"
			if op.hasBody() {
				where = "body"
			}
			fmt.Fprintf(w, "    %-8s %s\n", where, strings.Join(words, ", "))
		}
		fmt.Fprintf(w, "    answer   %d, %s\n", op.Status, word(op.answer, &types))
		if op.result != nil {
			fmt.Fprintf(w, "    result   %s\n", word(op.result, &types))
		}
	}
	for i := 0; i < len(types); i++ { // describing one may find another
		fmt.Fprintf(w, "\n%s\n", types[i].Name())
		of := fieldsOf(types[i])
		for _, name := range of.names {
			fmt.Fprintf(w, "    %-20s %s\n", name, word(of.byName[name].Type, &types))
		}
	}
	return w.Flush()
}

// right is what the operation needs, in words.
func (o Operation) right() string {
	switch o.Needs {
	case Everyone, Admin:
		return string(o.Needs)
	case Self:
		return "to be that user, or admin"
	}
	return fmt.Sprintf("%s on the repository %s", o.Needs, fieldRepo)
}

// options are the fields of the request that are not in the path, with their
// types.
func (o Operation) options(types *[]reflect.Type) []string {
	var words []string
	for _, name := range o.request.names {
		if !strings.Contains(o.Path, "{"+name+"}") {
			words = append(words, name+" "+word(o.request.byName[name].Type, types))
		}
	}
	return words
}

// word is what a type is called in the reference. A wire type is added to types.
func word(t reflect.Type, types *[]reflect.Type) string {
	switch {
	case t.Kind() == reflect.Pointer:
		return word(t.Elem(), types)
	case ownReader(t) || t.Name() != "" && t.Kind() != reflect.Struct:
		return strings.TrimPrefix(noun(t), "a ")
	case t.Kind() == reflect.Slice:
		return "list of " + word(t.Elem(), types)
	case t.Kind() == reflect.Map:
		return "object of " + word(t.Elem(), types)
	}
	if !slices.Contains(*types, t) {
		*types = append(*types, t)
	}
	return t.Name()
}
