package server

import (
	"bytes"
	"encoding/json"
	"errors"
)

// Walking over JSON (RFC 8259) without decoding it. Of valid JSON the walk gives the same
// keys and values as a decoder; what is not valid it may pass over, or refuse. So it is
// for what the API server sends, which has been validated, and what is made use of is
// handed to a decoder that does validate.

var errNotJSON = errors.New("not the JSON that was expected")

// eachField calls a function with each key of an object, unquoted, and the text of its
// value. Both are parts of the text. A null has no fields.
func eachField(text []byte, field func(key, value []byte) error) error {
	text = bytes.TrimSpace(text)
	if string(text) == "null" {
		return nil
	}
	return each(text, '{', '}', func(rest []byte) ([]byte, error) {
		end := valueEnd(rest)
		if end < 2 || rest[0] != '"' {
			return nil, errNotJSON
		}
		key := rest[1 : end-1]
		if bytes.IndexByte(key, '\\') >= 0 {
			var unquoted string
			if err := json.Unmarshal(rest[:end], &unquoted); err != nil {
				return nil, err
			}
			key = []byte(unquoted)
		}
		rest = space(rest[end:])
		if len(rest) == 0 || rest[0] != ':' {
			return nil, errNotJSON
		}
		rest = space(rest[1:])
		if end = valueEnd(rest); end <= 0 {
			return nil, errNotJSON
		}
		return rest[end:], field(key, rest[:end])
	})
}

// eachElement calls a function with the text of each element of an array.
func eachElement(text []byte, element func(value []byte) error) error {
	text = bytes.TrimSpace(text)
	if string(text) == "null" {
		return nil
	}
	return each(text, '[', ']', func(rest []byte) ([]byte, error) {
		end := valueEnd(rest)
		if end <= 0 {
			return nil, errNotJSON
		}
		return rest[end:], element(rest[:end])
	})
}

// each walks over what lies between two brackets. item takes one item off the front of
// the text and gives the rest.
func each(text []byte, opening, closing byte, item func([]byte) ([]byte, error)) error {
	if len(text) < 2 || text[0] != opening {
		return errNotJSON
	}
	rest := space(text[1:])
	if len(rest) == 1 && rest[0] == closing {
		return nil
	}
	for {
		var err error
		if rest, err = item(rest); err != nil {
			return err
		}
		rest = space(rest)
		if len(rest) == 1 && rest[0] == closing {
			return nil
		}
		if len(rest) == 0 || rest[0] != ',' {
			return errNotJSON
		}
		rest = space(rest[1:])
	}
}

func space(text []byte) []byte {
	for len(text) > 0 && (text[0] == ' ' || text[0] == '\n' || text[0] == '\r' || text[0] == '\t') {
		text = text[1:]
	}
	return text
}

// valueEnd is the length of the value that the text begins with; not positive where it
// does not end.
func valueEnd(text []byte) int {
	if len(text) == 0 {
		return 0
	}
	switch text[0] {
	case '"':
		return stringEnd(text)
	case '{', '[':
		return nestedEnd(text)
	}
	for i, b := range text {
		switch b {
		case ',', '}', ']', ' ', '\n', '\r', '\t':
			return i
		}
	}
	return len(text)
}

func stringEnd(text []byte) int {
	for at := 1; ; {
		quote := bytes.IndexByte(text[at:], '"')
		if quote < 0 {
			return 0
		}
		at += quote
		// It ends the string unless an odd number of backslashes stands before it.
		first := at
		for first > 1 && text[first-1] == '\\' {
			first--
		}
		at++
		if (at-1-first)%2 == 0 {
			return at
		}
	}
}

func nestedEnd(text []byte) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			end := stringEnd(text[i:])
			if end <= 0 {
				return 0
			}
			i += end - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}
