package server

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// envoyCheck is what is read of a CheckRequest. Fields nobody here looks at, bodies and
// metadata among them, are passed over.
type envoyCheck struct {
	source                         string // address of the client, as Envoy knows it
	id, method, path, host, scheme string
	headers                        []pair // of headers and of header_map, in no order
	extensions                     []pair
}

// pair is a header or an entry of a map. Names can repeat.
type pair struct{ name, value string }

// Field numbers of envoy.service.auth.v3 and of what it is made of. They do not change.
const (
	checkAttributes = 1 // CheckRequest

	attributesSource     = 1 // AttributeContext
	attributesRequest    = 4
	attributesExtensions = 10

	peerAddress          = 1 // AttributeContext.Peer
	addressSocket        = 1 // envoy.config.core.v3.Address
	socketAddressAddress = 2 // envoy.config.core.v3.SocketAddress

	requestHTTP   = 2 // AttributeContext.Request
	httpID        = 1 // AttributeContext.HttpRequest
	httpMethod    = 2
	httpHeaders   = 3
	httpPath      = 4
	httpHost      = 5
	httpScheme    = 6
	httpHeaderMap = 13

	headerMapHeaders = 1 // envoy.config.core.v3.HeaderMap
	headerKey        = 1 // envoy.config.core.v3.HeaderValue, and entries of maps
	headerValue      = 2
	headerRawValue   = 3
)

var errWire = errors.New("not a CheckRequest")

// message is a message, or a part of one, as bytes and as the same text: what is kept are
// parts of one string, and nothing is copied for each of them.
type message struct {
	data []byte
	text string
}

// fields calls visit for each field that has a length, which all have that matter here.
func (m message) fields(visit func(number protowire.Number, value message) error) error {
	for at := 0; at < len(m.data); {
		number, kind, n := protowire.ConsumeTag(m.data[at:])
		if n < 0 {
			return errWire
		}
		at += n
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, m.data[at:]); n < 0 {
				return errWire
			}
			at += n
			continue
		}
		value, n := protowire.ConsumeBytes(m.data[at:])
		if n < 0 {
			return errWire
		}
		at += n
		if err := visit(number, message{value, m.text[at-len(value) : at]}); err != nil {
			return err
		}
	}
	return nil
}

// decode reads a CheckRequest, and keeps none of the data.
func (c *envoyCheck) decode(data []byte) error {
	return message{data, string(data)}.fields(func(number protowire.Number, attributes message) error {
		if number != checkAttributes {
			return nil
		}
		return attributes.fields(func(number protowire.Number, value message) error {
			switch number {
			case attributesSource:
				return c.decodeSource(value)
			case attributesRequest:
				return value.fields(func(number protowire.Number, value message) error {
					if number != requestHTTP {
						return nil
					}
					return c.decodeHTTP(value)
				})
			case attributesExtensions:
				extension, err := decodePair(value)
				c.extensions = append(c.extensions, extension)
				return err
			}
			return nil
		})
	})
}

func (c *envoyCheck) decodeSource(peer message) error {
	return peer.fields(func(number protowire.Number, address message) error {
		if number != peerAddress {
			return nil
		}
		return address.fields(func(number protowire.Number, socket message) error {
			if number != addressSocket {
				return nil
			}
			return socket.fields(func(number protowire.Number, value message) error {
				if number == socketAddressAddress {
					c.source = value.text
				}
				return nil
			})
		})
	})
}

func (c *envoyCheck) decodeHTTP(request message) error {
	return request.fields(func(number protowire.Number, value message) error {
		switch number {
		case httpID:
			c.id = value.text
		case httpMethod:
			c.method = value.text
		case httpPath:
			c.path = value.text
		case httpHost:
			c.host = value.text
		case httpScheme:
			c.scheme = value.text
		case httpHeaders:
			return c.addHeader(value)
		case httpHeaderMap:
			return value.fields(func(number protowire.Number, value message) error {
				if number != headerMapHeaders {
					return nil
				}
				return c.addHeader(value)
			})
		}
		return nil
	})
}

func (c *envoyCheck) addHeader(value message) error {
	if c.headers == nil {
		c.headers = make([]pair, 0, 24)
	}
	header, err := decodePair(value)
	c.headers = append(c.headers, header)
	return err
}

// decodePair reads a HeaderValue or an entry of a map of strings.
func decodePair(entry message) (p pair, err error) {
	err = entry.fields(func(number protowire.Number, value message) error {
		switch number {
		case headerKey:
			p.name = value.text
		case headerValue:
			p.value = value.text
		case headerRawValue:
			if value.text != "" {
				p.value = value.text
			}
		}
		return nil
	})
	return p, err
}

// envoyAnswer becomes a CheckResponse.
type envoyAnswer struct {
	code   codes.Code
	set    []pair   // headers, overwriting
	remove []string // names of headers; where the code is OK
	// respond are headers for the answer to the client; where the code is OK.
	respond []pair

	status int // HTTP status of a refusal
	body   []byte

	metadata *evaluation // whose request it is; where the code is OK
	id       string      // of the request
}

// Field numbers of the answer.
const (
	responseStatus   = 1 // CheckResponse
	responseDenied   = 2
	responseOK       = 3
	responseMetadata = 4

	statusCodeField = 1 // google.rpc.Status

	deniedStatus  = 1 // DeniedHttpResponse
	deniedHeaders = 2
	deniedBody    = 3

	httpStatusCode = 1 // envoy.type.v3.HttpStatus

	okHeaders = 2 // OkHttpResponse
	okRemove  = 5
	okRespond = 6

	optionHeader = 1 // HeaderValueOption
	optionAction = 3
	// overwrite is OVERWRITE_IF_EXISTS_OR_ADD.
	overwrite = 2

	structFields = 1 // google.protobuf.Struct, whose entries are as in headerKey and headerValue
	valueNumber  = 2 // google.protobuf.Value
	valueString  = 3
)

// encode writes a CheckResponse.
func (a *envoyAnswer) encode() []byte {
	out := make([]byte, 0, 768)
	out = nested(out, responseStatus, func(b []byte) []byte {
		if a.code == codes.OK {
			return b
		}
		return protowire.AppendVarint(protowire.AppendTag(b, statusCodeField, protowire.VarintType), uint64(a.code))
	})
	if a.code != codes.OK {
		return nested(out, responseDenied, a.appendDenied)
	}
	out = nested(out, responseOK, func(b []byte) []byte {
		b = appendHeaders(b, okHeaders, a.set)
		for _, name := range a.remove {
			b = appendText(b, okRemove, name)
		}
		return appendHeaders(b, okRespond, a.respond)
	})
	return nested(out, responseMetadata, a.appendMetadata)
}

func (a *envoyAnswer) appendDenied(b []byte) []byte {
	b = nested(b, deniedStatus, func(b []byte) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, httpStatusCode, protowire.VarintType), uint64(a.status))
	})
	b = appendHeaders(b, deniedHeaders, a.set)
	return protowire.AppendBytes(protowire.AppendTag(b, deniedBody, protowire.BytesType), a.body)
}

func appendHeaders(b []byte, number protowire.Number, headers []pair) []byte {
	for _, h := range headers {
		b = nested(b, number, func(b []byte) []byte {
			b = nested(b, optionHeader, func(b []byte) []byte {
				return appendText(appendText(b, headerKey, h.name), headerValue, h.value)
			})
			return protowire.AppendVarint(protowire.AppendTag(b, optionAction, protowire.VarintType), overwrite)
		})
	}
	return b
}

// appendMetadata says whose request it is, for access logs.
func (a *envoyAnswer) appendMetadata(b []byte) []byte {
	who := a.metadata.caller()
	for _, f := range [...]pair{{"subject", who.Subject}, {"uid", who.UID}, {"request_id", a.id}} {
		b = nested(b, structFields, func(b []byte) []byte {
			return nested(appendText(b, headerKey, f.name), headerValue, func(b []byte) []byte { return appendText(b, valueString, f.value) })
		})
	}
	return nested(b, structFields, func(b []byte) []byte {
		return nested(appendText(b, headerKey, "version"), headerValue, func(b []byte) []byte {
			return protowire.AppendFixed64(protowire.AppendTag(b, valueNumber, protowire.Fixed64Type), math.Float64bits(float64(who.Version)))
		})
	})
}

func appendText(b []byte, number protowire.Number, text string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), text)
}

// nested appends a message of its own as a field. Its length is written with four bytes,
// whatever it is: readers take a number that is padded.
func nested(b []byte, number protowire.Number, content func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	at := len(b)
	b = content(append(b, 0, 0, 0, 0))
	length := len(b) - at - 4
	for i := range 3 {
		b[at+i] = byte(length>>(7*i)) | 0x80
	}
	b[at+3] = byte(length >> 21) // under 256 MiB: an answer holds one credential's permissions
	return b
}

// checkCodec is the codec of the gRPC listener: our own messages by hand, all others as ever.
type checkCodec struct{ encoding.CodecV2 }

func newCheckCodec() checkCodec { return checkCodec{encoding.GetCodecV2(protocodec.Name)} }

// Marshal implements encoding.CodecV2.
func (w checkCodec) Marshal(v any) (mem.BufferSlice, error) {
	if answer, ok := v.(*envoyAnswer); ok {
		return mem.BufferSlice{mem.SliceBuffer(answer.encode())}, nil
	}
	return w.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (w checkCodec) Unmarshal(data mem.BufferSlice, v any) error {
	ask, ok := v.(*envoyCheck)
	if !ok {
		return w.CodecV2.Unmarshal(data, v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	if err := ask.decode(buffer.ReadOnlyData()); err != nil {
		return fmt.Errorf("reading a CheckRequest: %w", err)
	}
	return nil
}
