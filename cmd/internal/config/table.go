package config

import (
	"fmt"
	"math"
	"strconv"

	"github.com/tidwall/gjson"
)

// A key is all that phx knows about a key of an object: how it is read, and what is
// said about it in messages, in docs/configuration.md, by phx-plan --explain and in
// the JSON Schema. T is what the object is read into.
type key[T any] struct {
	name string
	value[T]
	need    string // why the object must have it; "" when it need not
	without any    // what stands for it where the file does not have it, as JSON; nil for none

	effect string // in Markdown
	takes  string // when a change takes effect; "" in objects of a container, where the key of that says it
	does   string // what phx does with it, of a container's keys: in a line or two for people

	// input says that application scripts read the key: when its value changes,
	// they have to run again. A change of any other key phx applies itself.
	input bool
}

// A value is what a key may have, and how that gets into a T.
type value[T any] struct {
	form
	read func(p *parser, t *T, v gjson.Result)
}

// A form is what a value has to be: in Markdown, and for the JSON Schema, which is
// made only when it is asked for. What that cannot say, such as what two values have
// to do with each other, only phx checks.
type form struct {
	words string
	shape func() shape
}

// A shape is a JSON Schema of a value.
type shape map[string]any

// fixed returns a form of a shape.
func fixed(words string, s shape) form { return form{words, func() shape { return s }} }

// with returns the form with more in its shape.
func (f form) with(more shape) form {
	return form{f.words, func() shape { return f.shape().and(more) }}
}

// as returns the value with other words for what it has to be.
func (v value[T]) as(words string) value[T] {
	v.words = words
	return v
}

// special is a value with a function of its own that reads it.
func special[T any](f form, read func(p *parser, t *T, v gjson.Result)) value[T] {
	return value[T]{f, read}
}

// text is a string of a format.
func text[T any](f format, set func(*T, string)) value[T] {
	return value[T]{f.form, func(p *parser, t *T, v gjson.Result) { set(t, p.formatted(v, f)) }}
}

// whole is a whole number from low to high; the highest of 32 bits is no limit that
// is worth a word.
func whole[T any](low, high int, set func(*T, int)) value[T] {
	return value[T]{wholeForm(low, high), func(p *parser, t *T, v gjson.Result) { set(t, p.integer(v, low, high)) }}
}

func wholeForm(low, high int) form {
	words := fmt.Sprintf("number from %d to %d", low, high)
	if high == math.MaxInt32 {
		words = fmt.Sprintf("number from %d", low)
	}
	return fixed(words, shape{"type": "integer", "minimum": low, "maximum": high})
}

// decimal is a number from low to high.
func decimal[T any](low, high float64, set func(*T, float64)) value[T] {
	words := "number from " + plain(low) + " to " + plain(high)
	return value[T]{fixed(words, shape{"type": "number", "minimum": low, "maximum": high}),
		func(p *parser, t *T, v gjson.Result) { set(t, p.decimal(v, low, high)) }}
}

// plain returns a number without an exponent.
func plain(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// boolean is the form of true and false.
var boolean = fixed("boolean", shape{"type": "boolean"})

// truth is true or false.
func truth[T any](set func(*T, bool)) value[T] {
	return value[T]{boolean, func(p *parser, t *T, v gjson.Result) { set(t, p.boolean(v)) }}
}

// listOf is the form of a list.
func listOf(words string, item form) form {
	return form{words, func() shape { return shape{"type": "array", "items": item.shape()} }}
}

// objectOf is the form of an object with these keys. In a closed one another key is
// a mistake. What else the object has to be is in more.
func objectOf[T any](keys []key[T], closed bool, more shape) form {
	return form{"object", func() shape {
		properties, required := shape{}, []string{}
		for _, k := range keys {
			properties[k.name] = k.described()
			if k.need != "" {
				required = append(required, k.name)
			}
		}
		s := shape{"type": "object", "properties": properties}
		if len(required) > 0 {
			s["required"] = required
		}
		if closed {
			s["additionalProperties"] = false
		}
		return s.and(more)
	}}
}

// has is the shape of an object that has a key.
func has(key string) shape {
	return shape{"type": "object", "required": []string{key}, "properties": shape{key: true}}
}

// either is the form of a value that has one of two forms.
func either(words string, a, b form) form {
	return form{words, func() shape { return shape{"anyOf": []shape{a.shape(), b.shape()}} }}
}

// and returns a shape that has what s and other have.
func (s shape) and(other shape) shape {
	both := shape{}
	for _, of := range []shape{s, other} {
		for keyword, is := range of {
			both[keyword] = is
		}
	}
	return both
}

// described returns the key's shape with what is said about it.
func (k key[T]) described() shape {
	about := k.words
	if k.effect != "" {
		about = k.effect + " (" + k.words + ")"
	}
	if k.takes != "" {
		about += ". A change takes effect: " + k.takes
	}
	s := k.shape().and(shape{"description": plainText(about)})
	if k.without != nil {
		s["default"] = k.without
	}
	return s
}

// readObject reads an object into t by its keys, and calls unknown for the values of
// all others: [parser.ignore] or [parser.refuse]. t gets to the heap, so that a list
// has one for all of its objects.
func readObject[T any](p *parser, v gjson.Result, t *T, keys []key[T], unknown func(*parser, gjson.Result)) {
	var needs [8]need // in an array, these do not get to the heap
	n := 0
	for i := range keys {
		if keys[i].need != "" {
			needs[n] = need{keys[i].name, keys[i].need}
			n++
		}
	}
	p.object(v, needs[:n], func(name string, v gjson.Result) {
		for i := range keys {
			if keys[i].name == name {
				keys[i].read(p, t, v)
				return
			}
		}
		unknown(p, v)
	})
}
