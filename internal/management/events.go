package management

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/store"
)

// Event is an event of the audit log, as package audit writes it.
type Event struct{ audit.Event }

// Schema implements huma.SchemaProvider.
func (Event) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[eventDocument](), true, "Event")
}

// eventDocument describes the JSON of an event. Tests hold it to what is written.
type eventDocument struct {
	ID         string              `json:"id" format:"uuid"`
	Time       time.Time           `json:"time"`
	Type       string              `json:"type" doc:"What it is about, such as authentication or credential."`
	Outcome    string              `json:"outcome" enum:"allowed,denied,failed,done"`
	Reason     string              `json:"reason,omitempty" doc:"A code such as Expired, or the change."`
	Subject    string              `json:"subject,omitempty" doc:"Such as servicetoken:payments:ci-deploy."`
	Credential *credentialDocument `json:"credential,omitempty"`
	Actor      string              `json:"actor,omitempty" doc:"Who did it, where that is not the credential itself."`
	Client     string              `json:"client,omitempty" doc:"Address it came from."`
	UserAgent  string              `json:"user_agent,omitempty"`
	Method     string              `json:"method,omitempty"`
	Endpoint   string              `json:"endpoint,omitempty" doc:"Path that a gateway asked about, without its query, or the route here."`
	RequestID  string              `json:"request_id,omitempty"`
	Server     string              `json:"server,omitempty"`
	TookMicros int64               `json:"took_us,omitempty" doc:"How long it took, in microseconds."`
	Detail     map[string]string   `json:"detail,omitempty"`
}

// credentialDocument describes the credential of an event.
type credentialDocument struct {
	ID        string `json:"id,omitempty" doc:"UID of its object."`
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Class     string `json:"class,omitempty"`
	Version   int64  `json:"version,omitempty"`
	Slot      string `json:"slot,omitempty" enum:"current,previous"`
	Prefix    string `json:"prefix,omitempty" doc:"Public part of the value."`
}

// Batch is a link of a chain of the audit log.
type Batch struct{ *audit.Batch }

// Schema implements huma.SchemaProvider.
func (Batch) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[batchDocument](), true, "Batch")
}

// batchDocument describes the JSON of a batch.
type batchDocument struct {
	Chain    string  `json:"chain"`
	Sequence uint64  `json:"sequence" doc:"Place in the chain, from 1."`
	Previous string  `json:"previous" pattern:"^[0-9a-f]{64}$" doc:"Digest of the batch before; zeros in the first."`
	Digest   string  `json:"digest" pattern:"^[0-9a-f]{64}$"`
	Events   []Event `json:"events" nullable:"false"`
	Cleared  bool    `json:"cleared,omitempty" doc:"Retention has dropped events of it."`
}

// EventsInput narrows and pages the audit log.
type EventsInput struct {
	Type      []string  `query:"type,explode" maxItems:"32" doc:"Types, such as authentication. Several: repeated, or separated by commas."`
	Outcome   []string  `query:"outcome,explode" maxItems:"8" doc:"Outcomes: allowed, denied, failed, done. Several likewise."`
	Reason    string    `query:"reason" maxLength:"128" doc:"Reason, exactly."`
	Namespace string    `query:"namespace" maxLength:"63" doc:"Namespace of the credential."`
	UID       string    `query:"uid" maxLength:"64" doc:"UID of the credential's object."`
	Subject   string    `query:"subject" maxLength:"512" doc:"Subject, exactly, such as servicetoken:payments:ci-deploy."`
	RequestID string    `query:"request_id" maxLength:"128" doc:"Id of the request."`
	Client    string    `query:"client" maxLength:"64" doc:"Network or address that it came from, such as 203.0.113.0/24."`
	Since     time.Time `query:"since" doc:"Events of this time and later (RFC 3339)."`
	Until     time.Time `query:"until" doc:"Events before this time (RFC 3339)."`
	Order     string    `query:"order" enum:"asc,desc" default:"desc" doc:"desc: the latest first."`
	PageInput
}

// EventsOutput is a page of events.
type EventsOutput struct {
	Link string `header:"Link" doc:"The next page, as rel=\"next\"; absent on the last."`
	Body EventList
}

// EventList is a page of events.
type EventList struct {
	Items []Event `json:"items" nullable:"false"`
	Next  string  `json:"next,omitempty" doc:"Cursor of the next page; absent on the last."`
}

// listEvents searches the audit log.
func listEvents(a *API, o huma.Operation, p Path) {
	handle(a, o, func(ctx context.Context, c *Caller, in *EventsInput) (*EventsOutput, error) {
		filter, err := in.filter()
		if err != nil {
			return nil, err
		}
		page := store.Page{Limit: in.Limit, Cursor: in.Cursor, OldestFirst: in.Order == "asc"}
		found, err := read(ctx, a, c, "searching the audit log", func(ctx context.Context, s Store, t store.Tenant) (store.Events, error) {
			return s.Events(ctx, t, filter, page)
		})
		if err != nil {
			return nil, err
		}
		out := &EventsOutput{Body: EventList{Items: make([]Event, len(found.Items)), Next: found.Next}}
		for i := range found.Items {
			out.Body.Items[i] = Event{found.Items[i]}
		}
		a.searched(c, "events", in.narrowing().Encode())
		out.Link = nextLink(p.Path, in.query(), found.Next)
		return out, nil
	})
}

// filter is what the store is asked for.
func (in *EventsInput) filter() (store.EventFilter, error) {
	f := store.EventFilter{
		Reason: in.Reason, Namespace: in.Namespace, UID: in.UID, Subject: in.Subject, RequestID: in.RequestID, Since: in.Since, Until: in.Until,
	}
	for _, t := range listed(in.Type) {
		if !isType(t) {
			return f, problem(http.StatusUnprocessableEntity, "query.type: a type is of lowercase letters, dots and hyphens, such as token.issued.")
		}
		f.Types = append(f.Types, audit.Type(t))
	}
	for _, o := range listed(in.Outcome) {
		if !slices.Contains([]audit.Outcome{audit.Allowed, audit.Denied, audit.Failed, audit.Done}, audit.Outcome(o)) {
			return f, problem(http.StatusUnprocessableEntity, "query.outcome: use allowed, denied, failed or done.")
		}
		f.Outcomes = append(f.Outcomes, audit.Outcome(o))
	}
	if in.Client == "" {
		return f, nil
	}
	network, err := netip.ParsePrefix(in.Client)
	if address, notAddress := netip.ParseAddr(in.Client); notAddress == nil && address.Zone() == "" {
		address = address.Unmap()
		network, err = address.Prefix(address.BitLen())
	}
	if err != nil {
		return f, problem(http.StatusUnprocessableEntity, "query.client: write an address or a network such as 203.0.113.0/24.")
	}
	f.Client = network.Masked()
	return f, nil
}

// listed are the values of a parameter, repeated or separated by commas.
func listed(given []string) []string {
	var all []string
	for _, text := range given {
		for one := range strings.SplitSeq(text, ",") {
			if one = strings.TrimSpace(one); one != "" && !slices.Contains(all, one) {
				all = append(all, one)
			}
		}
	}
	return all
}

func isType(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && c != '.' && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// narrowing is what was looked for, apart from when.
func (in *EventsInput) narrowing() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{
		"type": strings.Join(listed(in.Type), ","), "outcome": strings.Join(listed(in.Outcome), ","), "reason": in.Reason, "namespace": in.Namespace,
		"uid": in.UID, "subject": in.Subject, "request_id": in.RequestID, "client": in.Client,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

// query is all of it, for the link to the next page.
func (in *EventsInput) query() url.Values {
	q := in.narrowing()
	for name, at := range map[string]time.Time{"since": in.Since, "until": in.Until} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	q.Set("order", in.Order)
	q.Set("limit", strconv.Itoa(in.Limit))
	return q
}

// Chain is one run of one server, as far as it is stored.
type Chain struct {
	Name        string    `json:"name"`
	First       time.Time `json:"first" doc:"Time of the earliest event of its first batch."`
	Last        time.Time `json:"last" doc:"Time of the latest event of its last batch."`
	Head        string    `json:"head" doc:"Digest of its last batch: written down elsewhere, it shows whether batches were cut off later."`
	FirstNumber uint64    `json:"first_number" doc:"Number of the first batch that is kept: 1, unless retention has dropped those before."`
	LastNumber  uint64    `json:"last_number" doc:"Number of its last batch."`
}

// ChainsInput pages the chains.
type ChainsInput struct{ PageInput }

// ChainsOutput is a page of chains.
type ChainsOutput struct {
	Link string `header:"Link" doc:"The next page, as rel=\"next\"; absent on the last."`
	Body struct {
		Items []Chain `json:"items" nullable:"false" doc:"In the order of their names."`
		Next  string  `json:"next,omitempty" doc:"Cursor of the next page; absent on the last."`
	}
}

// listChains lists the chains of the audit log.
func listChains(a *API, o huma.Operation, p Path) {
	handle(a, o, forAdministrators(func(ctx context.Context, c *Caller, in *ChainsInput) (*ChainsOutput, error) {
		after, err := readCursor(in.Cursor)
		if err != nil {
			return nil, err
		}
		// One more than is asked for tells whether there is another page.
		chains, err := read(ctx, a, c, "listing the chains of the audit log", func(ctx context.Context, s Store, _ store.Tenant) ([]store.Chain, error) {
			return s.Chains(ctx, after, in.Limit+1)
		})
		if err != nil {
			return nil, err
		}
		out := new(ChainsOutput)
		if len(chains) > in.Limit {
			chains = chains[:in.Limit]
			out.Body.Next = base64.RawURLEncoding.EncodeToString([]byte(chains[in.Limit-1].Name))
			out.Link = nextLink(p.Path, url.Values{"limit": {strconv.Itoa(in.Limit)}}, out.Body.Next)
		}
		out.Body.Items = make([]Chain, len(chains))
		for i := range chains {
			h := &chains[i]
			out.Body.Items[i] = Chain{
				Name: h.Name, First: h.First.UTC(), Last: h.Last.UTC(), Head: h.Head.String(), FirstNumber: h.FirstNumber, LastNumber: h.LastNumber,
			}
		}
		a.searched(c, "chains", "")
		return out, nil
	}))
}

// BatchesInput asks for a part of a chain.
type BatchesInput struct {
	Chain string `query:"chain" required:"true" minLength:"1" maxLength:"512" doc:"Name of the chain."`
	After uint64 `query:"after" default:"0" doc:"Batches after this one; 0 is from the first."`
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"10" doc:"How many at most. A batch has up to 10,000 events."`
}

// BatchesOutput is a part of a chain.
type BatchesOutput struct {
	Link string `header:"Link" doc:"The next part, as rel=\"next\"; absent on the last."`
	Body struct {
		Items []Batch `json:"items" nullable:"false"`
		Next  uint64  `json:"next,omitempty" doc:"What to give as after for the next part; absent on the last. A part may have fewer batches than were asked for, and not be the last."`
	}
}

// batchStep is how many batches are checked at once.
const batchStep = 100

// listBatches gives batches as they are stored, so that whoever has them can check them.
func listBatches(a *API, o huma.Operation, p Path) {
	handle(a, o, forAdministrators(func(ctx context.Context, c *Caller, in *BatchesInput) (*BatchesOutput, error) {
		out := new(BatchesOutput)
		out.Body.Items = []Batch{}
		more, err := read(ctx, a, c, "reading a chain of the audit log", func(ctx context.Context, s Store, _ store.Tenant) (bool, error) {
			return in.read(ctx, s, &out.Body.Items)
		})
		if err != nil {
			return nil, err
		}
		if more {
			out.Body.Next = out.Body.Items[len(out.Body.Items)-1].Sequence
			q := url.Values{"chain": {in.Chain}, "limit": {strconv.Itoa(in.Limit)}, "after": {strconv.FormatUint(out.Body.Next, 10)}}
			out.Link = "<" + p.Path + "?" + q.Encode() + `>; rel="next"`
		}
		a.searched(c, "batches", url.Values{"chain": {in.Chain}}.Encode())
		return out, nil
	}))
}

// read adds batches, and tells whether there may be more.
func (in *BatchesInput) read(ctx context.Context, s Store, items *[]Batch) (more bool, err error) {
	after, events := in.After, 0
	for len(*items) < in.Limit && events < store.MaxBatchEvents {
		batches, err := s.Batches(ctx, in.Chain, after, in.Limit-len(*items))
		if err != nil || len(batches) == 0 {
			return false, err
		}
		for _, b := range batches {
			*items = append(*items, Batch{b})
			after, events = b.Sequence, events+len(b.Events)
		}
	}
	return true, nil
}

// VerifyInput says what to check.
type VerifyInput struct {
	Body struct {
		Chain  string `json:"chain,omitempty" maxLength:"512" doc:"Name of a chain. Default: all of them, one after another."`
		Cursor string `json:"cursor,omitempty" maxLength:"4096" doc:"The field next of the answer before."`
	}
}

// VerifyOutput is what came of it.
type VerifyOutput struct {
	Body struct {
		Chains []VerifiedChain `json:"chains" nullable:"false"`
		Next   string          `json:"next,omitempty" doc:"There is more to check than fits one answer: ask again with it as cursor. Absent: all is checked."`
	}
}

// VerifiedChain is what came of checking a chain.
type VerifiedChain struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Batches int64  `json:"batches" doc:"Batches that were found in order."`
	Events  int64  `json:"events" doc:"Events in them."`
	Cleared int64  `json:"cleared,omitempty" doc:"Batches whose events retention has dropped: their place could be checked, and what they held could not."`
	Problem string `json:"problem,omitempty" doc:"What does not fit, and where."`
}

// verifyTime is how long one call goes on beginning to read more.
const verifyTime = 5 * time.Second

// verification is how far the check of the chains is: it goes on from here in the next
// call. Whoever changes the cursor misleads itself alone.
type verification struct {
	Chain    string       `json:"c"`           // empty: with the first one
	Only     bool         `json:"o,omitempty"` // this chain, and none after it
	Done     bool         `json:"d,omitempty"` // with this chain
	Sequence uint64       `json:"s,omitempty"`
	Digest   audit.Digest `json:"h,omitzero"`
	Batches  int64        `json:"b,omitempty"`
	Events   int64        `json:"e,omitempty"`
	Cleared  int64        `json:"l,omitempty"`
}

// verifyChains works every digest out anew.
func verifyChains(a *API, o huma.Operation, _ Path) {
	handle(a, o, forAdministrators(func(ctx context.Context, c *Caller, in *VerifyInput) (*VerifyOutput, error) {
		var at verification
		if text, err := base64.RawURLEncoding.DecodeString(in.Body.Cursor); err != nil || len(text) > 0 && json.Unmarshal(text, &at) != nil {
			return nil, problem(http.StatusBadRequest, "body.cursor: not one that an answer before this has given.")
		}
		out := new(VerifyOutput)
		out.Body.Chains = []VerifiedChain{}
		if at.Chain == "" {
			at.Chain, at.Only = in.Body.Chain, in.Body.Chain != ""
		}
		more, err := read(ctx, a, c, "checking the audit log", func(ctx context.Context, s Store, _ store.Tenant) (bool, error) {
			return at.run(ctx, s, a.config.Now, &out.Body.Chains)
		})
		if err != nil {
			return nil, err
		}
		if more {
			text, err := json.Marshal(at)
			if err != nil {
				return nil, a.failed(c, "making a cursor", err)
			}
			out.Body.Next = base64.RawURLEncoding.EncodeToString(text)
		}
		a.searched(c, "verify", url.Values{"chain": {in.Body.Chain}}.Encode())
		return out, nil
	}))
}

// run checks chains from where the check is, adds those that are done, and tells whether
// there may be more. It goes on for a while, and gets on in any case.
func (v *verification) run(ctx context.Context, s Store, now func() time.Time, done *[]VerifiedChain) (more bool, err error) {
	for began := now(); len(*done) < maxVerified; {
		if v.Chain == "" || v.Done {
			if more, err := v.next(ctx, s); !more || err != nil {
				return false, err
			}
		}
		if err := v.step(ctx, s, done); err != nil {
			return false, err
		}
		if now().Sub(began) > verifyTime {
			return true, nil
		}
	}
	return true, nil
}

// next goes on to the chain after this one; false where there is none.
func (v *verification) next(ctx context.Context, s Store) (bool, error) {
	if v.Only {
		return false, nil
	}
	chains, err := s.Chains(ctx, v.Chain, 1)
	if err != nil || len(chains) == 0 {
		return false, err
	}
	*v = verification{Chain: chains[0].Name}
	return true, nil
}

// maxVerified is how many chains one answer tells of.
const maxVerified = 1000

// step checks a few batches more. A chain that does not fit is done with.
func (v *verification) step(ctx context.Context, s Store, done *[]VerifiedChain) error {
	batches, err := s.Batches(ctx, v.Chain, v.Sequence, batchStep)
	if err != nil {
		return err
	}
	if v.Only && v.Batches == 0 && len(batches) == 0 {
		return problem(http.StatusNotFound, "There is no chain of this name: see GET /api/v1/audit/chains.")
	}
	result := VerifiedChain{Name: v.Chain}
	for _, b := range batches {
		var before *audit.Batch
		if v.Batches > 0 {
			before = &audit.Batch{Chain: v.Chain, Sequence: v.Sequence, Digest: v.Digest}
		}
		if err := b.Verify(before); err != nil {
			result.Problem, v.Done = err.Error(), true
			break
		}
		v.Sequence, v.Digest, v.Batches, v.Events = b.Sequence, b.Digest, v.Batches+1, v.Events+int64(len(b.Events))
		if b.Cleared {
			v.Cleared++
		}
	}
	v.Done = v.Done || len(batches) == 0
	if v.Done {
		result.OK, result.Batches, result.Events, result.Cleared = result.Problem == "", v.Batches, v.Events, v.Cleared
		*done = append(*done, result)
	}
	return nil
}
