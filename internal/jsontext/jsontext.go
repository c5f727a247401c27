// Package jsontext appends JSON to a buffer, where encoding/json would cost a noticeable
// part of a request. It is pure.
package jsontext

import "encoding/json"

// AppendString appends what json.Marshal makes of a string.
func AppendString(b []byte, s string) []byte {
	for i := range len(s) {
		// Nearly all strings here are ASCII with nothing to escape.
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic(err) // a string
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// AppendStrings appends an array of strings.
func AppendStrings(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendString(b, s)
	}
	return append(b, ']')
}
