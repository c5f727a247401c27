package management

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	strictjson "sigs.k8s.io/json"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authn"
)

// MaxBody is how large a request may be, in bytes.
const MaxBody = 1 << 20

// DocumentPath is where the OpenAPI document is.
const DocumentPath = "/openapi.json"

// Config of an API.
type Config struct {
	// Namespaces in which credentials may be made, rotated and revoked over REST, and
	// "*" for all of them. None: what changes something is refused, and what reads works.
	Namespaces []string
	// Class that credentials made over REST are of. It must allow those declared by their
	// SHA-256, and must not be one for administrators. Needed where Namespaces are given.
	Class string

	// Index is what this server knows.
	Index *authn.Index
	// Kubernetes reaches the resources of the group mintmark.dev.
	Kubernetes rest.Interface
	// Store is what is read of the audit log and of usage. Nil: there is none.
	Store Store
	// Recorder takes events in that are handed over. Nil: nothing is recorded.
	Recorder *audit.Recorder
	// Once stores events that are there once for good, by their IDs: when it returns nil
	// all are. Nil: there is no database.
	Once func(context.Context, []audit.Event) error

	// Log gets lines that never hold a credential. Default: none.
	Log *slog.Logger
	// Now and Random; default: the clock, and crypto/rand.
	Now    func() time.Time
	Random io.Reader
}

// Check tells what is wrong with the configuration, by the names of the server's flags.
func (c *Config) Check() error {
	var errs []error
	for _, ns := range c.Namespaces {
		if problems := validation.IsDNS1123Label(ns); ns != anyNamespace && len(problems) > 0 {
			errs = append(errs, fmt.Errorf("--management-namespaces: %q is not the name of a namespace: %s", ns, problems[0]))
		}
	}
	if problems := validation.IsDNS1123Subdomain(c.Class); len(c.Namespaces) > 0 && len(problems) > 0 {
		errs = append(errs, fmt.Errorf("--management-class: %q is not the name of a CredentialClass: name the one that credentials made over REST are of", c.Class))
	}
	return errors.Join(errs...)
}

const anyNamespace = "*"

// API is the management API. It is safe for concurrent use.
type API struct {
	config   Config
	cluster  *cluster
	mux      *http.ServeMux
	huma     huma.API
	reads    *reads
	document []byte
}

// New makes the API. It does no I/O.
func New(c Config) (*API, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	setUp()
	a := &API{config: c, cluster: newCluster(c.Kubernetes), mux: http.NewServeMux(), reads: newReads(c.Now)}
	a.huma = humago.New(a.mux, description())
	a.register()
	var err error
	if a.document, err = json.MarshalIndent(a.huma.OpenAPI(), "", "  "); err != nil {
		return nil, fmt.Errorf("making the OpenAPI document: %w", err)
	}
	a.document = append(a.document, '\n')
	return a, nil
}

// ServeHTTP answers a request that has a [Caller] in its context, who holds the permission
// of the operation.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	a.mux.ServeHTTP(w, r.WithContext(ctx))
}

// requestTime is how long an operation may take, an API server that does not answer
// included. It is less than the listener gives an answer.
const requestTime = 20 * time.Second

// Document is the OpenAPI document (version 3.1), as JSON. It must not be changed.
func (a *API) Document() []byte { return a.document }

// enabled tells whether credentials in the namespace may be changed over REST.
func (a *API) enabled(namespace string) bool {
	return slices.Contains(a.config.Namespaces, namespace) || slices.Contains(a.config.Namespaces, anyNamespace)
}

// failed is the answer where something of ours failed. What that was is for the log alone.
func (a *API) failed(c *Caller, doing string, err error) *Problem {
	a.config.Log.Error("management: "+doing+" failed", "error", err.Error(), "request_id", c.RequestID, "caller", c.Subject)
	return errInternal
}

// description is what the document says of the API as a whole.
func description() huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Mintmark", Version: "v1alpha1", License: &huma.License{Name: "Apache 2.0", Identifier: "Apache-2.0"},
				Description: "The management API of Mintmark: credentials, the emergency brake, the audit log and usage. " +
					"The operations under /api/auth/keys and those under /api/v1/auth/tokens are the same; " +
					"they differ in the kind of credential that they are about where a request does not say.",
			},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", Description: "A service token, an API key, or a JWT of this server's."},
					"apiKey": {Type: "apiKey", In: "header", Name: "X-API-Key", Description: "A service token or an API key."},
				},
			},
		},
		Formats: map[string]huma.Format{"application/json": jsonFormat, "json": jsonFormat}, DefaultFormat: "application/json",
	}
}

// jsonFormat reads strictly: a field that is there twice, or is not known, or is known in
// other letters, is an error, so that no two readers of a body find different things in it.
var jsonFormat = huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshal}

var errNotJSON = errors.New("not JSON of the types that this operation takes, in UTF-8 and without content coding")

// unmarshal gives errors that repeat no value.
func unmarshal(data []byte, v any) error {
	strict, err := strictjson.UnmarshalStrict(data, v)
	if err != nil {
		return errNotJSON
	}
	return errors.Join(strict...)
}
