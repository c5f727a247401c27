package management

import (
	"context"
	"net/http"
	"regexp"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
)

// CICDInput is what a pipeline tells of itself.
type CICDInput struct {
	IdempotencyInput
	Body CICDEvent
}

// CICDEvent is what a pipeline tells of itself.
type CICDEvent struct {
	Event       string            `json:"event" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._:/-]*$" doc:"What happened, such as deploy.started."`
	Pipeline    string            `json:"pipeline,omitempty" maxLength:"256" doc:"Name of the workflow or pipeline."`
	Repository  string            `json:"repository,omitempty" maxLength:"256"`
	Ref         string            `json:"ref,omitempty" maxLength:"256" doc:"Branch or tag."`
	Commit      string            `json:"commit,omitempty" maxLength:"64" pattern:"^[0-9a-fA-F]*$" doc:"Hash of the commit, in hexadecimal digits."`
	Status      string            `json:"status,omitempty" enum:"queued,started,running,success,failure,error,cancelled,skipped" doc:"How it stands."`
	Environment string            `json:"environment,omitempty" maxLength:"128" doc:"Where to, such as production."`
	URL         string            `json:"url,omitempty" maxLength:"512" pattern:"^https?://" doc:"Where people find the run. Its query is not kept."`
	Detail      map[string]string `json:"detail,omitempty" maxProperties:"16" doc:"More of it. Names have up to 48 letters, digits, dots, hyphens and underscores; values up to 512 bytes."`
}

// CICDOutput names the event.
type CICDOutput struct {
	Body struct {
		ID string `json:"id" format:"uuid" doc:"Id of the event in the audit log."`
	}
}

// maxCICDText bounds a value, in bytes.
const maxCICDText = 512

// slots as the audit log names them.
var slots = map[authn.Slot]audit.Slot{authn.SlotCurrent: audit.SlotCurrent, authn.SlotPrevious: audit.SlotPrevious}

var detailName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$`)

// cicdEvent takes in what a pipeline tells of itself, as an event about the credential that
// told it. The same one told again is one event.
func cicdEvent(a *API, o huma.Operation, p Path) {
	handle(a, o, func(ctx context.Context, c *Caller, in *CICDInput) (*CICDOutput, error) {
		e, err := a.cicd(c, in)
		if err != nil {
			return nil, err
		}
		e.Method, e.Endpoint = o.Method, audit.Text(p.Path)
		if err := a.store(ctx, c, e); err != nil {
			return nil, err
		}
		if c.Report != nil {
			c.Report.Continued = true // it is an event itself
		}
		out := new(CICDOutput)
		out.Body.ID = e.ID.String()
		return out, nil
	})
}

// cicd is the event.
func (a *API) cicd(c *Caller, in *CICDInput) (*audit.Event, error) {
	b := &in.Body
	subject := audit.Text(c.Subject)
	if c.Kind == "" { // another issuer's: the name is what that issuer says
		subject = audit.Clean(c.Subject, maxCICDText)
	}
	e := &audit.Event{
		At: a.config.Now(), Type: audit.TypeCICD, Outcome: audit.Done, Reason: string(audit.Clean(b.Event, maxCICDText)), Subject: string(subject),
		UID: c.UID, Kind: string(c.Kind), Namespace: c.Namespace, Name: c.Name, Version: c.Version, Slot: slots[c.Slot], Prefix: c.Prefix,
		Actor: subject, Client: c.Client, UserAgent: audit.Clean(c.UserAgent, maxCICDText), RequestID: audit.Clean(c.RequestID, maxCICDText),
		Detail: map[string]audit.Text{},
	}
	if c.Grant != nil {
		e.Class = c.Class
	}
	if slices.Contains([]string{"failure", "error"}, b.Status) {
		e.Outcome = audit.Failed
	}
	for name, text := range map[string]string{
		"pipeline": b.Pipeline, "repository": b.Repository, "ref": b.Ref, "commit": b.Commit, "status": b.Status, "environment": b.Environment,
		"url": withoutQuery(b.URL),
	} {
		if text != "" {
			e.Detail[name] = audit.Clean(text, maxCICDText)
		}
	}
	// The hash of a commit has the shape of a secret, and the pattern that it has to fit.
	if len(b.Commit) <= longestCommit && b.Commit != "" {
		e.Detail["commit"] = audit.Text(b.Commit)
	}
	for name, text := range b.Detail {
		if !detailName.MatchString(name) {
			return nil, problem(http.StatusUnprocessableEntity, "body.detail: a name has up to 48 letters, digits, dots, hyphens and underscores.")
		}
		if len(text) > maxCICDText {
			return nil, problem(http.StatusUnprocessableEntity, "body.detail: a value is longer than 512 bytes.")
		}
		e.Detail["detail."+name] = audit.Clean(text, maxCICDText)
	}
	once, err := in.once(c, "cicd-event", b)
	if err != nil {
		return nil, a.failed(c, "taking in an event", err)
	}
	if once != nil {
		// With what it says: of two events that were given one key by mistake none is lost.
		e.ID = audit.FixedID("cicd", once.key, once.request)
		return e, nil
	}
	if e.ID, err = audit.NewID(e.At, a.config.Random); err != nil {
		return nil, a.failed(c, "taking in an event", err)
	}
	return e, nil
}

// longestCommit is the length of a SHA-1 in hexadecimal digits, which all hosts use. A
// longer hash cannot be told from the digits of a service token, and is masked.
const longestCommit = 40

func withoutQuery(url string) string {
	for i := range len(url) {
		if url[i] == '?' || url[i] == '#' {
			return url[:i]
		}
	}
	return url
}

// store keeps the event for good, or says that it cannot. Without a database it goes to
// where events go, and what is sent again is written again.
func (a *API) store(ctx context.Context, c *Caller, e *audit.Event) error {
	if a.config.Once == nil {
		if a.config.Recorder == nil {
			return later(errNoLog, retryNoStore)
		}
		if !a.config.Recorder.Record(e) {
			return later(errStoreDown, retryDown)
		}
		return nil
	}
	leave, ok := a.reads.enter(ctx, c.tenant().Setting())
	if !ok {
		return later(errBusy, retryBusy)
	}
	defer leave()
	storing, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	if err := a.config.Once(storing, []audit.Event{*e}); err != nil {
		a.config.Log.Warn("management: storing an event of a pipeline failed", "error", err.Error(), "request_id", c.RequestID, "caller", c.Subject)
		return later(errNotStored, retryDown)
	}
	return nil
}
