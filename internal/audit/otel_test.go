package audit

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logs "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	"google.golang.org/protobuf/proto"
)

// receiver is an OTLP/HTTP receiver that decodes what it is sent.
type receiver struct {
	t *testing.T

	mu       sync.Mutex
	answers  []func(http.ResponseWriter, *collector.ExportLogsServiceRequest) // one after another, the last for ever
	requests []*http.Request
	got      []*collector.ExportLogsServiceRequest
	times    []time.Time
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	unzip, err := gzip.NewReader(req.Body)
	if err != nil {
		r.t.Error(err)
		return
	}
	body, err := io.ReadAll(unzip)
	if err != nil {
		r.t.Error(err)
		return
	}
	export := new(collector.ExportLogsServiceRequest)
	if err := proto.Unmarshal(body, export); err != nil {
		r.t.Error(err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests, r.got, r.times = append(r.requests, req), append(r.got, export), append(r.times, time.Now())
	if len(r.answers) > 0 {
		r.answers[0](w, export)
		if len(r.answers) > 1 {
			r.answers = r.answers[1:]
		}
	}
}

// RoundTrip answers without a network, so that time can be simulated.
func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	return w.Result(), nil
}

func status(code int, headers ...string) func(http.ResponseWriter, *collector.ExportLogsServiceRequest) {
	return func(w http.ResponseWriter, _ *collector.ExportLogsServiceRequest) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

func recordsOf(r *collector.ExportLogsServiceRequest) []*logs.LogRecord {
	var all []*logs.LogRecord
	for _, of := range r.GetResourceLogs() {
		for _, scope := range of.GetScopeLogs() {
			all = append(all, scope.GetLogRecords()...)
		}
	}
	return all
}

func attributesOf(all []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range all {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			out[a.GetKey()] = strconv.FormatInt(v.IntValue, 10)
		}
	}
	return out
}

// sending runs an OTLP until the test ends or stop is called.
func sending(t *testing.T, c OTLPConfig) (o *OTLP, stop func()) {
	t.Helper()
	o, err := NewOTLP(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { o.Run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return o, stop
}

func events(n int) []Event {
	out := make([]Event, n)
	for i := range out {
		out[i] = Event{ID: FixedID(strconv.Itoa(i)), At: noon, Type: TypeAuthentication, Outcome: Allowed}
	}
	return out
}

func TestAnEventIsALogRecordOfOpenTelemetry(t *testing.T) {
	r := &receiver{t: t}
	server := httptest.NewServer(r)
	defer server.Close()
	o, stop := sending(t, OTLPConfig{
		Endpoint: server.URL, Instance: "mintmark-server-0", Version: "1.2.3",
		Headers: func() (http.Header, error) {
			return ParseHeaders("# for the collector\nAuthorization: Bearer secret\n\nX-Scope-OrgID: 7\n")
		},
	})
	e := Event{
		ID: FixedID("x"), At: noon, Type: TypeAuthentication, Outcome: Denied, Reason: "Expired", Subject: "servicetoken:payments:ci", UID: "u-1",
		Kind: "ServiceToken", Namespace: "payments", Name: "ci", Class: "production", Version: 4, Slot: SlotPrevious, Prefix: "sk_81ac", Actor: "somebody",
		Client: netip.MustParseAddr("192.0.2.7"), UserAgent: "curl/8", Method: "other", Endpoint: "/orders/7", RequestID: "r-1", Server: "mintmark-server-0",
		Took: 38 * time.Microsecond, Detail: map[string]Text{"note": "n", "action": "a"},
	}
	if err := o.Export(t.Context(), []Event{e, {ID: FixedID("y"), At: noon, Type: TypeServerStarted, Outcome: Done}, {ID: FixedID("z"), At: noon, Type: TypeEventsLost, Outcome: Failed}}); err != nil {
		t.Fatal(err)
	}
	stop()
	if len(r.got) != 1 || r.requests[0].URL.Path != "/v1/logs" || r.requests[0].Method != http.MethodPost || r.requests[0].Header.Get("Content-Type") != "application/x-protobuf" ||
		r.requests[0].Header.Get("Authorization") != "Bearer secret" || r.requests[0].Header.Get("X-Scope-OrgID") != "7" {
		t.Fatalf("%d requests: %+v", len(r.got), r.requests)
	}
	resource := attributesOf(r.got[0].GetResourceLogs()[0].GetResource().GetAttributes())
	if diff := cmp.Diff(map[string]string{"service.name": "mintmark-server", "service.version": "1.2.3", "service.instance.id": "mintmark-server-0"}, resource); diff != "" {
		t.Error(diff)
	}
	records := recordsOf(r.got[0])
	want := map[string]string{
		"log.record.uid": e.ID.String(), "mintmark.outcome": "denied", "mintmark.reason": "Expired", "error.type": "Expired", "enduser.id": "servicetoken:payments:ci",
		"mintmark.credential.uid": "u-1", "mintmark.credential.kind": "ServiceToken", "mintmark.credential.namespace": "payments", "mintmark.credential.name": "ci",
		"mintmark.credential.class": "production", "mintmark.credential.version": "4", "mintmark.credential.slot": "previous", "mintmark.credential.prefix": "sk_81ac",
		"mintmark.actor": "somebody", "client.address": "192.0.2.7", "user_agent.original": "curl/8", "http.request.method": "_OTHER", "url.path": "/orders/7",
		"mintmark.request_id": "r-1", "mintmark.server": "mintmark-server-0", "mintmark.took_us": "38", "mintmark.detail.note": "n", "mintmark.detail.action": "a",
	}
	if diff := cmp.Diff(want, attributesOf(records[0].GetAttributes())); diff != "" {
		t.Error(diff)
	}
	var got []string
	for _, record := range records {
		if record.GetTimeUnixNano() != uint64(noon.UnixNano()) || record.GetObservedTimeUnixNano() == 0 {
			t.Errorf("the times of %s are %d and %d", record.GetEventName(), record.GetTimeUnixNano(), record.GetObservedTimeUnixNano())
		}
		got = append(got, record.GetEventName()+" "+record.GetSeverityText()+" "+record.GetSeverityNumber().String()+": "+record.GetBody().GetStringValue())
	}
	if diff := cmp.Diff([]string{
		"mintmark.authentication WARN SEVERITY_NUMBER_WARN: authentication denied Expired servicetoken:payments:ci",
		"mintmark.server.started INFO SEVERITY_NUMBER_INFO: server.started done",
		"mintmark.audit.lost ERROR SEVERITY_NUMBER_ERROR: audit.lost failed",
	}, got); diff != "" {
		t.Error(diff)
	}
	if h := o.Health(); h != (OTLPHealth{Sent: 3}) {
		t.Errorf("the health is %+v", h)
	}
}

func TestAReceiverThatFailsIsTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		answers []func(http.ResponseWriter, *collector.ExportLogsServiceRequest)
		least   time.Duration // from the first request to the last
		want    OTLPHealth
		sizes   []int
	}{
		"at once where it answers": {nil, 0, OTLPHealth{Sent: 4}, []int{4}},
		"after a while":            {[]func(http.ResponseWriter, *collector.ExportLogsServiceRequest){status(502), status(503), status(504), status(200)}, 1750 * time.Millisecond, OTLPHealth{Sent: 4}, []int{4, 4, 4, 4}},
		"not before it asks for": {
			[]func(http.ResponseWriter, *collector.ExportLogsServiceRequest){status(429, "Retry-After", "17"), status(200)}, 17 * time.Second, OTLPHealth{Sent: 4}, []int{4, 4},
		},
		"not after a day, whatever it asks for": {
			[]func(http.ResponseWriter, *collector.ExportLogsServiceRequest){status(503, "Retry-After", "99999999999"), status(503, "Retry-After", "Fri, 31 Dec 2100 23:59:59 GMT"), status(200)},
			30 * time.Second, OTLPHealth{Sent: 4}, []int{4, 4, 4},
		},
		"never where it refuses who asks": {
			[]func(http.ResponseWriter, *collector.ExportLogsServiceRequest){status(401)}, 0, OTLPHealth{Rejected: 4, Trouble: "the OTLP receiver rejects events: it answers 401"}, []int{4},
		},
		"nor elsewhere": {
			[]func(http.ResponseWriter, *collector.ExportLogsServiceRequest){status(307, "Location", "http://169.254.169.254/")}, 0,
			OTLPHealth{Rejected: 4, Trouble: "the OTLP receiver rejects events: it answers 307"}, []int{4},
		},
		"in parts where it is too much": {
			[]func(http.ResponseWriter, *collector.ExportLogsServiceRequest){func(w http.ResponseWriter, r *collector.ExportLogsServiceRequest) {
				if len(recordsOf(r)) > 1 {
					w.WriteHeader(http.StatusRequestEntityTooLarge)
				}
			}}, 0, OTLPHealth{Sent: 4}, []int{4, 2, 1, 1, 2, 1, 1},
		},
		"what is too much by itself is rejected": {
			[]func(http.ResponseWriter, *collector.ExportLogsServiceRequest){status(413)}, 0,
			OTLPHealth{Rejected: 4, Trouble: "the OTLP receiver rejects events: they are too large for it"}, []int{4, 2, 1, 1, 2, 1, 1},
		},
		"what it takes in part is counted": {
			[]func(http.ResponseWriter, *collector.ExportLogsServiceRequest){func(w http.ResponseWriter, _ *collector.ExportLogsServiceRequest) {
				answer, _ := proto.Marshal(&collector.ExportLogsServiceResponse{
					PartialSuccess: &collector.ExportLogsPartialSuccess{RejectedLogRecords: 3, ErrorMessage: "too\nold " + serviceToken},
				})
				_, _ = w.Write(answer)
			}}, 0, OTLPHealth{Sent: 1, Rejected: 3, Trouble: `the OTLP receiver rejects 3 events: too\nold sk_live_[masked]`}, []int{4},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &receiver{t: t, answers: c.answers}
				client := &http.Client{Transport: r, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
				o, stop := sending(t, OTLPConfig{Endpoint: "http://collector", Client: client})
				if err := o.Export(t.Context(), events(4)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Minute)
				stop()
				if diff := cmp.Diff(c.want, o.Health()); diff != "" {
					t.Error(diff)
				}
				var sizes []int
				for _, got := range r.got {
					sizes = append(sizes, len(recordsOf(got)))
				}
				if diff := cmp.Diff(c.sizes, sizes); diff != "" {
					t.Error(diff)
				}
				if took := r.times[len(r.times)-1].Sub(r.times[0]); took < c.least || took > 2*c.least+time.Minute {
					t.Errorf("it took %s, want %s", took, c.least)
				}
			})
		})
	}
}

func TestWhatFindsNoRoomForTheReceiverIsDroppedAndCountedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{t: t, answers: []func(http.ResponseWriter, *collector.ExportLogsServiceRequest){status(503)}}
		o, stop := sending(t, OTLPConfig{Endpoint: "http://collector", Client: &http.Client{Transport: r}, Queue: 10})
		began := time.Now()
		failed := 0
		for range 7 {
			if err := o.Export(t.Context(), events(3)); err != nil {
				failed++
			}
		}
		if time.Since(began) != 0 || failed != 4 {
			t.Errorf("it took %s, and %d of 7 found no room", time.Since(began), failed)
		}
		time.Sleep(time.Minute)
		if h := o.Health(); h.Queued != 9 || h.Dropped != 12 || h.Trouble != "the OTLP receiver answers 503" {
			t.Errorf("while it is down: %+v", h)
		}
		r.mu.Lock()
		r.answers = nil
		r.mu.Unlock()
		time.Sleep(time.Minute)
		if h := o.Health(); h != (OTLPHealth{Sent: 9, Dropped: 12}) {
			t.Errorf("once it is back: %+v", h)
		}
		r.mu.Lock()
		r.answers = []func(http.ResponseWriter, *collector.ExportLogsServiceRequest){status(503)}
		r.mu.Unlock()
		_, _ = o.Export(t.Context(), events(3)), o.Export(t.Context(), events(3))
		synctest.Wait()
		began = time.Now()
		stop()
		if took := time.Since(began); took > otlpLast+time.Second {
			t.Errorf("the end took %s", took)
		}
		if h := o.Health(); h.Dropped != 18 || h.Queued != 0 {
			t.Errorf("at the end: %+v", h)
		}
	})
}

// What has been sent in halves, and the rest when the sending ended, is told apart.
func TestOfABatchThatWasHalfSentTheOtherHalfIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{t: t, answers: []func(http.ResponseWriter, *collector.ExportLogsServiceRequest){
			status(http.StatusRequestEntityTooLarge), status(http.StatusRequestEntityTooLarge), status(http.StatusOK), status(http.StatusServiceUnavailable),
		}}
		o, stop := sending(t, OTLPConfig{Endpoint: "http://collector", Client: &http.Client{Transport: r}})
		if err := o.Export(t.Context(), events(4)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		stop()
		if h := o.Health(); h.Sent != 1 || h.Dropped != 3 || h.Rejected != 0 || h.Queued != 0 {
			t.Errorf("of 4, one of which was sent: %+v", h)
		}
	})
}

func TestHeadersForTheReceiverAreReadAnewAndNeverRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{t: t}
		asked := 0
		o, _ := sending(t, OTLPConfig{Endpoint: "http://collector/otlp/v1/logs", Client: &http.Client{Transport: r}, Headers: func() (http.Header, error) {
			if asked++; asked == 1 {
				return nil, errors.New("no such file")
			}
			return http.Header{"X-Asked": {strconv.Itoa(asked)}}, nil
		}})
		_ = o.Export(t.Context(), events(1))
		time.Sleep(time.Minute)
		_ = o.Export(t.Context(), events(1))
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(r.requests) != 2 || r.requests[0].Header.Get("X-Asked") != "2" || r.requests[1].Header.Get("X-Asked") != "3" || r.requests[0].URL.Path != "/otlp/v1/logs" {
			t.Errorf("%d requests: %+v", len(r.requests), r.requests)
		}
	})
	for _, text := range []string{"hunter2", ": hunter2", "a b: hunter2", "X: hunter2\x00", "X: a\rY: hunter2"} {
		if _, err := ParseHeaders("A: b\n" + text); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAnEndpointThatIsNoneIsRefused(t *testing.T) {
	for _, endpoint := range []string{"", "collector:4318", "ftp://collector", "http://", "https://user:hunter2@collector", "https://collector/?key=hunter2", "https://collector/#x", "http://%zz"} {
		if _, err := NewOTLP(OTLPConfig{Endpoint: endpoint}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}
