package audit

import (
	"slices"
	"strings"
	"time"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logs "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"
)

// Names of attributes are those of OpenTelemetry's semantic conventions where these have
// one for it, and begin with mintmark. otherwise.
const (
	semconvSchema = "https://opentelemetry.io/schemas/1.37.0"
	scopeName     = "github.com/mintmark-dev/mintmark/internal/audit"
	eventPrefix   = "mintmark."
)

// request is what is sent of these events.
func (o *OTLP) request(events []Event) *collector.ExportLogsServiceRequest {
	var about attributes
	about.text("service.name", "mintmark-server")
	about.text("service.version", o.cfg.Version)
	about.text("service.instance.id", o.cfg.Instance)
	records := make([]*logs.LogRecord, len(events))
	observed := unixNano(o.cfg.Now())
	for i := range events {
		records[i] = recordOf(&events[i], observed)
	}
	return &collector.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource: &resource.Resource{Attributes: about}, SchemaUrl: semconvSchema,
		ScopeLogs: []*logs.ScopeLogs{{Scope: &common.InstrumentationScope{Name: scopeName, Version: o.cfg.Version}, LogRecords: records}},
	}}}
}

// recordOf is an event as a log record.
func recordOf(e *Event, observed uint64) *logs.LogRecord {
	severity, text := severityOf(e.Outcome)
	var a attributes
	a.text("log.record.uid", e.ID.String())
	a.text("mintmark.outcome", string(e.Outcome))
	a.text("mintmark.reason", e.Reason)
	if e.Outcome == Denied || e.Outcome == Failed {
		a.text("error.type", e.Reason)
	}
	a.text("enduser.id", e.Subject)
	a.text("mintmark.credential.uid", e.UID)
	a.text("mintmark.credential.kind", e.Kind)
	a.text("mintmark.credential.namespace", e.Namespace)
	a.text("mintmark.credential.name", e.Name)
	a.text("mintmark.credential.class", e.Class)
	a.number("mintmark.credential.version", e.Version)
	a.text("mintmark.credential.slot", string(e.Slot))
	a.text("mintmark.credential.prefix", e.Prefix)
	a.text("mintmark.actor", string(e.Actor))
	if e.Client.IsValid() {
		a.text("client.address", e.Client.String())
	}
	a.text("user_agent.original", string(e.UserAgent))
	a.text("http.request.method", methodOf(e.Method))
	a.text("url.path", string(e.Endpoint))
	a.text("mintmark.request_id", string(e.RequestID))
	a.text("mintmark.server", e.Server)
	a.number("mintmark.took_us", int64(e.Took/time.Microsecond))
	names := make([]string, 0, len(e.Detail))
	for name := range e.Detail {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		a.text("mintmark.detail."+name, string(e.Detail[name]))
	}
	return &logs.LogRecord{
		TimeUnixNano: unixNano(e.At), ObservedTimeUnixNano: observed, SeverityNumber: severity, SeverityText: text,
		Body: textOf(line(e)), Attributes: a, EventName: eventPrefix + string(e.Type),
	}
}

func severityOf(o Outcome) (logs.SeverityNumber, string) {
	switch o {
	case Denied:
		return logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	case Failed:
		return logs.SeverityNumber_SEVERITY_NUMBER_ERROR, "ERROR"
	}
	return logs.SeverityNumber_SEVERITY_NUMBER_INFO, "INFO"
}

// methodOf: the conventions have a name of their own for a method that is none.
func methodOf(m string) string {
	if m == "other" {
		return "_OTHER"
	}
	return m
}

// line is what a person reads first.
func line(e *Event) string {
	parts := []string{string(e.Type), string(e.Outcome)}
	for _, part := range []string{e.Reason, e.Subject} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if e.Subject == "" && e.Name != "" {
		parts = append(parts, e.Name)
	}
	return strings.Join(parts, " ")
}

func unixNano(at time.Time) uint64 { return uint64(max(at.UnixNano(), 0)) }

// attributes leave out what does not apply.
type attributes []*common.KeyValue

func (a *attributes) text(name, value string) {
	if value != "" {
		*a = append(*a, &common.KeyValue{Key: name, Value: textOf(value)})
	}
}

func (a *attributes) number(name string, value int64) {
	if value != 0 {
		*a = append(*a, &common.KeyValue{Key: name, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: value}}})
	}
}

func textOf(s string) *common.AnyValue {
	return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: s}}
}
