package server

import (
	"maps"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mintmark-dev/mintmark/internal/authn"
)

// generated is what the generated code makes of the same message.
func generated(ask *authv3.CheckRequest) *envoyCheck {
	attributes := ask.GetAttributes()
	request := attributes.GetRequest().GetHttp()
	c := &envoyCheck{
		source: attributes.GetSource().GetAddress().GetSocketAddress().GetAddress(),
		id:     request.GetId(), method: request.GetMethod(), path: request.GetPath(), host: request.GetHost(), scheme: request.GetScheme(),
	}
	for name, value := range request.GetHeaders() {
		c.headers = append(c.headers, pair{name, value})
	}
	for _, h := range request.GetHeaderMap().GetHeaders() {
		c.headers = append(c.headers, pair{h.GetKey(), h.GetValue() + string(h.GetRawValue())})
	}
	for name, value := range attributes.GetContextExtensions() {
		c.extensions = append(c.extensions, pair{name, value})
	}
	return c
}

// sorted puts what has no order into one.
func sorted(c *envoyCheck) *envoyCheck {
	for _, list := range [][]pair{c.headers, c.extensions} {
		slices.SortFunc(list, func(a, b pair) int { return strings.Compare(a.name+"\x00"+a.value, b.name+"\x00"+b.value) })
	}
	return c
}

var pairs = cmp.AllowUnexported(envoyCheck{}, pair{})

func TestACheckRequestIsReadAsTheGeneratedCodeReadsIt(t *testing.T) {
	full := envoy{headers: map[string]string{"authorization": "Bearer x", "a": ""}, extensions: map[string]string{"mintmark.permissions": "a:b", "": ""}}.request()
	full.Attributes.Request.Http.Body = strings.Repeat("x", 5000)
	full.Attributes.MetadataContext = &corev3.Metadata{}
	full.Attributes.TlsSession = &authv3.AttributeContext_TLSSession{Sni: "x"}
	raw := envoy{raw: [][2]string{{"authorization", "Bearer x"}, {"authorization", "Bearer y"}}}.request()
	raw.Attributes.Request.Http.HeaderMap.Headers = append(raw.Attributes.Request.Http.HeaderMap.Headers, &corev3.HeaderValue{Key: "k", Value: "v"})
	for name, ask := range map[string]*authv3.CheckRequest{"everything": full, "raw headers": raw, "nothing": {}, "empty": {Attributes: &authv3.AttributeContext{}}} {
		text, err := proto.Marshal(ask)
		if err != nil {
			t.Fatal(err)
		}
		read := new(envoyCheck)
		if err := read.decode(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(sorted(generated(ask)), sorted(read), pairs); diff != "" {
			t.Errorf("%s (-generated +read):\n%s", name, diff)
		}
		for cut := range text {
			_ = new(envoyCheck).decode(text[:cut]) // it ends, whatever it says
		}
	}
}

// The numbers of the fields are those of Envoy's own description.
func TestTheFieldsHaveEnvoysNumbers(t *testing.T) {
	number := func(m proto.Message, field protoreflect.Name) int {
		return int(m.ProtoReflect().Descriptor().Fields().ByName(field).Number())
	}
	for name, c := range map[string][2]int{
		"attributes": {checkAttributes, number(&authv3.CheckRequest{}, "attributes")}, "source": {attributesSource, number(&authv3.AttributeContext{}, "source")},
		"request": {attributesRequest, number(&authv3.AttributeContext{}, "request")}, "context_extensions": {attributesExtensions, number(&authv3.AttributeContext{}, "context_extensions")},
		"peer address": {peerAddress, number(&authv3.AttributeContext_Peer{}, "address")}, "socket_address": {addressSocket, number(&corev3.Address{}, "socket_address")},
		"address": {socketAddressAddress, number(&corev3.SocketAddress{}, "address")}, "http": {requestHTTP, number(&authv3.AttributeContext_Request{}, "http")},
		"header_map": {httpHeaderMap, number(&authv3.AttributeContext_HttpRequest{}, "header_map")}, "raw_value": {headerRawValue, number(&corev3.HeaderValue{}, "raw_value")},
		"denied": {responseDenied, number(&authv3.CheckResponse{}, "denied_response")}, "ok": {responseOK, number(&authv3.CheckResponse{}, "ok_response")},
		"status": {responseStatus, number(&authv3.CheckResponse{}, "status")}, "dynamic_metadata": {responseMetadata, number(&authv3.CheckResponse{}, "dynamic_metadata")},
		"remove": {okRemove, number(&authv3.OkHttpResponse{}, "headers_to_remove")}, "append_action": {optionAction, number(&corev3.HeaderValueOption{}, "append_action")},
		"overwrite": {overwrite, int(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)},
	} {
		if c[0] != c[1] {
			t.Errorf("%s is %d, want %d", name, c[0], c[1])
		}
	}
}

func TestAnAnswerIsWhatTheGeneratedCodeWouldWrite(t *testing.T) {
	long := strings.Repeat("x", 300_000)
	who := &evaluation{verdict: authn.Verdict{OK: true, Principal: &authn.Principal{Identity: &authn.Identity{Subject: "servicetoken:a:b", UID: "u"}, Version: 1 << 40}}}
	for name, answer := range map[string]*envoyAnswer{
		"allowed": {code: codes.OK, set: []pair{{"x-user-id", "servicetoken:a:b"}, {"long", long}}, remove: []string{"authorization", "x"}, metadata: who, id: "r"},
		"denied":  {code: codes.PermissionDenied, status: 403, set: []pair{{"content-type", "y"}}, body: []byte(long)},
	} {
		read := new(authv3.CheckResponse)
		if err := proto.Unmarshal(answer.encode(), read); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		headers := map[string]string{}
		for _, h := range append(read.GetOkResponse().GetHeaders(), read.GetDeniedResponse().GetHeaders()...) {
			headers[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
			if h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
				t.Errorf("%s: %s does not overwrite", name, h.GetHeader().GetKey())
			}
		}
		want := map[string]string{}
		for _, p := range answer.set {
			want[p.name] = p.value
		}
		if !maps.Equal(headers, want) || codes.Code(read.GetStatus().GetCode()) != answer.code {
			t.Errorf("%s: status %d, headers %d", name, read.GetStatus().GetCode(), len(headers))
		}
		if answer.code == codes.OK {
			meta := read.GetDynamicMetadata().AsMap()
			if !slices.Equal(read.GetOkResponse().GetHeadersToRemove(), answer.remove) || meta["version"] != float64(1<<40) || meta["subject"] != "servicetoken:a:b" {
				t.Errorf("%s: %v %v", name, read.GetOkResponse().GetHeadersToRemove(), meta)
			}
			continue
		}
		if read.GetDeniedResponse().GetStatus().GetCode() != typev3.StatusCode_Forbidden || read.GetDeniedResponse().GetBody() != long {
			t.Errorf("%s: %v", name, read.GetDeniedResponse().GetStatus())
		}
	}
}

// Whatever comes is read to its end or refused. What the generated code takes is read
// alike, where no field is there twice.
func FuzzCheckRequest(f *testing.F) {
	for _, q := range []envoy{{}, {headers: map[string]string{"authorization": "Bearer x"}, extensions: map[string]string{"a": "b"}}, {raw: [][2]string{{"a", "b"}}}} {
		text, err := proto.Marshal(q.request())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		read := new(envoyCheck)
		if err := read.decode(data); err != nil {
			return
		}
		ask := new(authv3.CheckRequest)
		if proto.Unmarshal(data, ask) != nil {
			return
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(ask)
		if err != nil {
			t.Fatal(err)
		}
		fresh := new(envoyCheck)
		if err := fresh.decode(again); err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(ask.GetAttributes().GetRequest().GetHttp().GetHeaderMap().GetHeaders(), func(h *corev3.HeaderValue) bool {
			return h.GetValue() != "" && len(h.GetRawValue()) > 0
		}) {
			return // no Envoy sends both; the raw one counts here
		}
		want := sorted(generated(ask))
		if diff := cmp.Diff(want, sorted(fresh), pairs, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-generated +read)\n%s", diff)
		}
		// Of what is there twice the last counts, as in the generated code; of headers and
		// extensions, which maps would hide, every one is there to be seen.
		for _, p := range want.headers {
			if !slices.Contains(read.headers, p) {
				t.Errorf("the header %q is not read", p)
			}
		}
		for _, p := range want.extensions {
			if !slices.Contains(read.extensions, p) {
				t.Errorf("the extension %q is not read", p)
			}
		}
		read.headers, read.extensions, want.headers, want.extensions = nil, nil, nil, nil
		if diff := cmp.Diff(want, read, pairs); diff != "" {
			t.Errorf("with repeated fields (-generated +read)\n%s", diff)
		}
	})
}
