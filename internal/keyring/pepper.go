package keyring

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

// PepperSecret is the name of the Secret with the peppers.
//
// Its entry "current" holds the id of the pepper that new digests are made with;
// every other entry is a pepper under its id.
const PepperSecret = "mintmark-pepper"

// CurrentPepperKey is the entry of the Secret that names the current pepper.
const CurrentPepperKey = "current"

// NewPepper draws a pepper's key of credential.PepperLen bytes from a
// cryptographically secure source. The id is derived from the key, so that no id
// ever stands for two keys; it gives nothing of the key away.
func NewPepper(random io.Reader) (id string, key []byte, err error) {
	key = make([]byte, credential.PepperLen)
	if _, err := io.ReadFull(random, key); err != nil {
		return "", nil, fmt.Errorf("reading randomness for a pepper: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("mintmark pepper id v1"))
	return "p" + hex.EncodeToString(mac.Sum(nil)[:8]), key, nil
}

// EncodePeppers gives the Secret's data for peppers by id, of which current is
// the one to make new digests with.
func EncodePeppers(current string, keys map[string][]byte) map[string][]byte {
	data := make(map[string][]byte, len(keys)+1)
	for id, key := range keys {
		data[id] = []byte(base64.StdEncoding.EncodeToString(key))
	}
	data[CurrentPepperKey] = []byte(current)
	return data
}

// DecodePeppers reads the Secret's data: the current pepper first, the others
// in the order of their ids. A pepper is 32 raw bytes, or their standard base64
// text, with or without padding and a line's end.
func DecodePeppers(data map[string][]byte) (credential.Peppers, error) {
	current := string(trimLineEnd(data[CurrentPepperKey]))
	if current == "" {
		return nil, fmt.Errorf("the entry %q is missing or empty: it holds the id of the pepper in use, which is the name of another entry", CurrentPepperKey)
	}
	if _, ok := data[current]; !ok || current == CurrentPepperKey {
		return nil, fmt.Errorf("the entry %q names the pepper %q, and there is no such entry: "+
			"add it, or name one that is there", CurrentPepperKey, current)
	}
	peppers := make(credential.Peppers, 0, len(data)-1)
	for _, id := range slices.Sorted(maps.Keys(data)) {
		if id == CurrentPepperKey {
			continue
		}
		key, err := decodePepper(data[id])
		if err != nil {
			return nil, fmt.Errorf("the pepper in the entry %q %w", id, err)
		}
		pepper, err := credential.NewPepper(id, key)
		if err != nil {
			return nil, err
		}
		if id == current {
			peppers = slices.Insert(peppers, 0, pepper)
		} else {
			peppers = append(peppers, pepper)
		}
	}
	return peppers, nil
}

// decodePepper tells raw bytes from text by the length alone: base64 text of 32
// bytes has 43 or 44 characters, so the two cannot be taken for each other.
func decodePepper(entry []byte) ([]byte, error) {
	key := entry
	if len(entry) != credential.PepperLen {
		text := bytes.TrimRight(trimLineEnd(entry), "=")
		if len(text) == hex.EncodedLen(credential.PepperLen) {
			return nil, errors.New("has 64 characters: hexadecimal text is not understood, write 32 raw bytes or their standard base64 text")
		}
		decoded, err := base64.RawStdEncoding.Strict().DecodeString(string(text))
		if err != nil || len(decoded) != credential.PepperLen || bytes.ContainsAny(text, "\r\n") {
			return nil, fmt.Errorf("has %d bytes, and is neither 32 raw bytes nor their standard base64 text (44 characters): "+
				"write what `openssl rand -base64 32` prints", len(entry))
		}
		key = decoded
	}
	if bytes.Count(key, key[:1]) == len(key) {
		return nil, errors.New("is one byte over and over, no key: write what `openssl rand -base64 32` prints")
	}
	return key, nil
}

// trimLineEnd takes away what editors and templates leave behind a text.
func trimLineEnd(text []byte) []byte { return bytes.TrimRight(text, "\r\n") }

// RotatePeppers adds a new pepper to the Secret's data and makes it current.
// The others stay, as they were written, for the digests made with them. The
// data handed in is not changed.
func RotatePeppers(data map[string][]byte, random io.Reader) (rotated map[string][]byte, id string, err error) {
	id, key, err := NewPepper(random)
	if err != nil {
		return nil, "", err
	}
	rotated = make(map[string][]byte, len(data)+1)
	maps.Copy(rotated, data)
	maps.Copy(rotated, EncodePeppers(id, map[string][]byte{id: key}))
	return rotated, id, nil
}

// DropPeppers gives the Secret's data without the peppers that inUse denies, and
// their ids. The current pepper always stays. The data handed in is not changed.
func DropPeppers(data map[string][]byte, inUse func(id string) bool) (kept map[string][]byte, dropped []string) {
	kept = maps.Clone(data)
	current := string(trimLineEnd(data[CurrentPepperKey]))
	for _, id := range slices.Sorted(maps.Keys(data)) {
		if id != CurrentPepperKey && id != current && !inUse(id) {
			delete(kept, id)
			dropped = append(dropped, id)
		}
	}
	return kept, dropped
}
