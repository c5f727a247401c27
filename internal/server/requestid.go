package server

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"sync/atomic"
)

// requestIDs are unique to the process and the request. They tell nothing and need no
// secrecy.
type requestIDs struct {
	process string
	count   atomic.Uint64
}

func newRequestIDs() requestIDs {
	var process [8]byte
	_, _ = rand.Read(process[:]) // never fails (crypto/rand)
	return requestIDs{process: hex.EncodeToString(process[:]) + "-"}
}

func (ids *requestIDs) next() string {
	var text [16]byte
	return ids.process + string(strconv.AppendUint(text[:0], ids.count.Add(1), 36))
}

// maxRequestID leaves room for a UUID, and none for a credential: those are longer or have
// a dot, and a log must not get one by this way.
const maxRequestID = 48

// acceptedID is the id a trusted proxy gave; empty where it gave none that is fit to be
// logged.
func acceptedID(lines []string) string {
	if len(lines) != 1 || lines[0] == "" || len(lines[0]) > maxRequestID {
		return ""
	}
	for i := range len(lines[0]) {
		switch c := lines[0][i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return ""
		}
	}
	return lines[0]
}
