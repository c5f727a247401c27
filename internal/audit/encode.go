package audit

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// appendCBOR appends the event as encoding would write its wire form, without reflection:
// every event of every request is digested. Tests hold the two to the same bytes.
func (e *Event) appendCBOR(b []byte) []byte {
	start := len(b)
	b = append(b, 0) // the head of the map, which has 23 entries at most
	entries := byte(0)
	bytesEntry := func(field byte, value []byte) {
		entries++
		b = append(appendHead(appendField(b, field), cborBytes, uint64(len(value))), value...)
	}
	text := func(field byte, value string, always bool) {
		if value == "" && !always {
			return
		}
		entries++
		b = append(appendHead(appendField(b, field), cborText, uint64(len(value))), value...)
	}
	number := func(field byte, value int64, always bool) {
		if value == 0 && !always {
			return
		}
		entries++
		b = appendInt(appendField(b, field), value)
	}
	bytesEntry(1, e.ID[:])
	number(2, e.At.UnixMicro(), true)
	text(3, string(e.Type), true)
	text(4, string(e.Outcome), true)
	text(5, e.Reason, false)
	text(6, e.Subject, false)
	text(7, e.UID, false)
	text(8, e.Kind, false)
	text(9, e.Namespace, false)
	text(10, e.Name, false)
	text(11, e.Class, false)
	number(12, e.Version, false)
	text(13, string(e.Slot), false)
	text(14, e.Prefix, false)
	text(15, string(e.Actor), false)
	switch {
	case e.Client.Is4():
		address := e.Client.As4()
		bytesEntry(16, address[:])
	case e.Client.IsValid():
		address := e.Client.As16()
		bytesEntry(16, address[:])
	}
	text(17, string(e.UserAgent), false)
	text(18, e.Method, false)
	text(19, string(e.Endpoint), false)
	text(20, string(e.RequestID), false)
	text(21, e.Server, false)
	number(22, e.Took.Microseconds(), false)
	if len(e.Detail) > 0 {
		entries++
		b = appendDetail(appendField(b, 23), e.Detail)
	}
	b[start] = cborMap | entries
	return b
}

// Major types of CBOR (RFC 8949, section 3.1), as the first byte has them.
const (
	cborUnsigned byte = 0 << 5
	cborNegative byte = 1 << 5
	cborBytes    byte = 2 << 5
	cborText     byte = 3 << 5
	cborMap      byte = 5 << 5
)

func appendField(b []byte, field byte) []byte { return append(b, cborUnsigned|field) }

// appendHead appends the first bytes of an item, in the shortest form.
func appendHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func appendInt(b []byte, n int64) []byte {
	if n < 0 {
		return appendHead(b, cborNegative, uint64(-(n + 1)))
	}
	return appendHead(b, cborUnsigned, uint64(n))
}

// appendDetail appends a map in the order of its encoded keys, which is that of their
// lengths first (RFC 8949, section 4.2.1).
func appendDetail(b []byte, detail map[string]Text) []byte {
	keys := make([]string, 0, len(detail))
	for key := range detail {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	b = appendHead(b, cborMap, uint64(len(keys)))
	for _, key := range keys {
		value := detail[key]
		b = append(appendHead(b, cborText, uint64(len(key))), key...)
		b = append(appendHead(b, cborText, uint64(len(value))), value...)
	}
	return b
}
