package audit

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"
)

// OTLPConfig of an OTLP.
type OTLPConfig struct {
	// Endpoint is an http or https URL, as OTEL_EXPORTER_OTLP_ENDPOINT has it where it has
	// no path (/v1/logs is added), and as OTEL_EXPORTER_OTLP_LOGS_ENDPOINT has it otherwise.
	Endpoint string
	// Headers of every request, asked for each time, for a token in a file may have
	// changed; nil: none.
	Headers func() (http.Header, error)
	// Client sends; default: one with a timeout of 10 s that follows no redirect.
	Client *http.Client
	// Instance and Version of this server, for the resource.
	Instance, Version string
	// Queue is how many events wait at most; default 16,384.
	Queue int
	Log   *slog.Logger
	Now   func() time.Time
}

// OTLP is an Exporter that sends events as log records of OpenTelemetry by OTLP/HTTP, in
// protobuf (OTLP 1.x). It never waits for the collector: what finds no room in its queue
// is dropped and counted. A record has the event's id as log.record.uid, so that
// what is sent twice, after an answer that was lost, can be told. It is safe for concurrent use.
type OTLP struct {
	cfg     OTLPConfig
	url     string
	queue   chan []Event
	waiting atomic.Int64 // events

	sent, rejected, dropped atomic.Int64
	trouble                 atomic.Pointer[string]
}

const (
	logsPath         = "/v1/logs"
	defaultOTLPQueue = 1 << 14
	otlpTimeout      = 10 * time.Second
	// otlpLast is how long the end waits for what is left to be sent.
	otlpLast = 5 * time.Second
	// A collector that fails is tried again after these, or after what it asks for.
	otlpRetry, otlpLastRetry = 500 * time.Millisecond, 30 * time.Second
	maxOTLPAnswer            = 64 << 10
)

// NewOTLP makes an OTLP; Run sends what it takes in. It does no I/O. An error says what is
// wrong with the endpoint.
func NewOTLP(c OTLPConfig) (*OTLP, error) {
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, errors.New("not the URL of an OTLP/HTTP receiver: write it like https://collector.example.com:4318")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("the URL of an OTLP/HTTP receiver has neither user, query nor fragment: what authenticates goes into a header")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = logsPath
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: otlpTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	if c.Headers == nil {
		c.Headers = func() (http.Header, error) { return nil, nil }
	}
	if c.Queue <= 0 {
		c.Queue = defaultOTLPQueue
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &OTLP{cfg: c, url: u.String(), queue: make(chan []Event, c.Queue)}, nil
}

// Export implements Exporter. It keeps the events, which nobody changes any more, and does
// not wait.
func (o *OTLP) Export(_ context.Context, events []Event) error {
	if len(events) == 0 {
		return nil
	}
	n := int64(len(events))
	if o.waiting.Add(n) <= int64(o.cfg.Queue) {
		select {
		case o.queue <- events:
			return nil
		default:
		}
	}
	o.waiting.Add(-n)
	o.dropped.Add(n)
	return fmt.Errorf("%d events found no room in the queue of %d for the OTLP receiver", n, o.cfg.Queue)
}

// OTLPHealth tells how the sending goes.
type OTLPHealth struct {
	// Queued waits. Sent, Rejected by the receiver, and Dropped for want of room, count
	// events since the start.
	Queued, Sent, Rejected, Dropped int64
	// Trouble is what went wrong last; empty while the receiver takes what it is given.
	Trouble string
}

// Health tells how the sending goes.
func (o *OTLP) Health() OTLPHealth {
	h := OTLPHealth{Queued: o.waiting.Load(), Sent: o.sent.Load(), Rejected: o.rejected.Load(), Dropped: o.dropped.Load()}
	if t := o.trouble.Load(); t != nil {
		h.Trouble = *t
	}
	return h
}

// Run sends what is taken in until the context ends, and then for a few seconds what is
// left. What cannot be sent by then is dropped and counted.
func (o *OTLP) Run(ctx context.Context) {
	var left []Event
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case events := <-o.queue:
			left = o.deliver(ctx, events)
			o.waiting.Add(int64(len(left) - len(events)))
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), otlpLast)
	defer cancel()
	for {
		o.dropped.Add(int64(len(o.deliver(last, left))))
		o.waiting.Add(-int64(len(left)))
		select {
		case left = <-o.queue:
		default:
			return
		}
	}
}

// deliver sends the events until the receiver has taken them or will not. It gives up only
// where the context ends, and gives those that are left then.
func (o *OTLP) deliver(ctx context.Context, events []Event) (left []Event) {
	if len(events) == 0 {
		return nil
	}
	for wait := otlpRetry; ; wait = min(2*wait, otlpLastRetry) {
		after, err := o.send(ctx, events)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errTooLarge) && len(events) > 1:
			half := len(events) / 2
			if left := o.deliver(ctx, events[:half]); len(left) > 0 {
				return events[half-len(left):]
			}
			return o.deliver(ctx, events[half:])
		case errors.Is(err, errRejected), errors.Is(err, errTooLarge):
			o.rejected.Add(int64(len(events)))
			o.note(err)
			return nil
		case ctx.Err() != nil:
			return events
		}
		o.note(err)
		// Of many servers that failed together not all come back at once.
		pause := time.NewTimer(max(after, wait/2+rand.N(wait/2))) //nolint:gosec // when to try again is no secret
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// What there is no use in trying again.
var (
	errRejected = errors.New("the OTLP receiver rejects events")
	errTooLarge = fmt.Errorf("%w: they are too large for it", errRejected)
)

// send makes one attempt. After an error that is neither errRejected nor errTooLarge it may
// be made again, not before the time given.
func (o *OTLP) send(ctx context.Context, events []Event) (time.Duration, error) {
	resp, err := o.post(ctx, events)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxOTLPAnswer))
	switch status := resp.StatusCode; {
	case status == http.StatusRequestEntityTooLarge:
		return 0, errTooLarge
	case status == http.StatusTooManyRequests || status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout:
		return retryAfter(resp.Header.Get("Retry-After"), o.cfg.Now()), fmt.Errorf("the OTLP receiver answers %d", status)
	case status < 200 || status > 299:
		return 0, fmt.Errorf("%w: it answers %d", errRejected, status)
	case err != nil:
		return 0, fmt.Errorf("reading the answer of the OTLP receiver: %w", err)
	}
	o.taken(answer, int64(len(events)))
	return 0, nil
}

// post sends a request.
func (o *OTLP) post(ctx context.Context, events []Event) (*http.Response, error) {
	body, err := proto.Marshal(o.request(events))
	if err != nil {
		return nil, fmt.Errorf("encoding %d events: %w", len(events), err)
	}
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	_, _ = zip.Write(body) // to memory
	_ = zip.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url, &packed)
	if err != nil {
		return nil, err
	}
	headers, err := o.cfg.Headers()
	if err != nil {
		return nil, err
	}
	for name, values := range headers {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "gzip")
	resp, err := o.cfg.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("sending events to the OTLP receiver: %w", err)
	}
	return resp, nil
}

// taken counts what the receiver took. It may have refused some of it.
func (o *OTLP) taken(answer []byte, events int64) {
	var said collector.ExportLogsServiceResponse
	refused := int64(0)
	if err := proto.Unmarshal(answer, &said); err == nil {
		refused = min(max(said.GetPartialSuccess().GetRejectedLogRecords(), 0), events)
	}
	o.sent.Add(events - refused)
	o.rejected.Add(refused)
	if refused > 0 {
		const maxSaid = 256
		o.note(fmt.Errorf("the OTLP receiver rejects %d events: %s", refused, Clean(said.GetPartialSuccess().GetErrorMessage(), maxSaid)))
		return
	}
	if o.trouble.Swap(nil) != nil {
		o.cfg.Log.Info("the OTLP receiver takes events again")
	}
}

// note keeps what went wrong, and logs where it was not so before.
func (o *OTLP) note(err error) {
	text := err.Error()
	if o.trouble.Swap(&text) == nil {
		o.cfg.Log.Error("events cannot be sent on to the OTLP receiver; requests and the database go on without it", "error", text)
	}
}

// retryAfter is what a receiver asks for (RFC 9110, section 10.2.3), bounded.
func retryAfter(header string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.Atoi(header); err == nil {
		wait = time.Duration(min(max(seconds, 0), int(otlpLastRetry/time.Second))) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), otlpLastRetry)
}

// ParseHeaders reads lines such as "Authorization: Bearer ..."; empty ones and those that
// begin with # do not count. Its error does not repeat a value.
func ParseHeaders(text string) (http.Header, error) {
	headers := http.Header{}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, found := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !found || !isHeaderName(name) || value == "" || !plain(value) {
			return nil, fmt.Errorf("line %d is not a header: write it like Authorization: Bearer TOKEN", number)
		}
		headers.Add(name, value)
	}
	return headers, nil
}

// isHeaderName: a token of RFC 9110, section 5.6.2.
func isHeaderName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}
