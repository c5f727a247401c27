package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/mintmark-dev/mintmark/internal/audit"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/management"
)

// Management is how a Server lets credentials be managed over REST.
type Management struct {
	// Namespaces in which credentials may be made, rotated and revoked over REST; "*" for
	// all that the server watches. Default: none, and only what reads works.
	Namespaces []string
	// Class of credentials made over REST.
	Class string
	// Store is what is read of the audit log and of usage. Nil: there is none.
	Store management.Store
}

func (m Management) config() management.Config {
	return management.Config{Namespaces: m.Namespaces, Class: m.Class, Store: m.Store}
}

// newManagement makes the management API of a server.
func (s *Server) newManagement() (*management.API, error) {
	watched := s.config.WatchNamespaces
	for _, ns := range s.config.Management.Namespaces {
		if len(watched) > 0 && !slices.Contains(watched, ns) {
			return nil, fmt.Errorf("--management-namespaces: %q is not among --watch-namespaces, so nothing that is made there would be accepted", ns)
		}
	}
	c := s.config.Management.config()
	c.Index, c.Kubernetes, c.Recorder, c.Log = s.index, s.clients.mintmark.rest, s.config.Audit.Recorder, s.config.Log
	if once := s.once(); once != nil {
		c.Once = once.put
	}
	return management.New(c)
}

// managementRoutes are the operations of the management API, each behind the chain like
// every other route. Operations of one path differ in their method.
func (p *public) managementRoutes(api *management.API) []*route {
	var routes []*route
	for _, op := range management.Operations() {
		need := &need{permissions: []string{op.Permission}}
		lacking := newProblem(http.StatusForbidden, outcomeForbidden,
			"The credential is valid and does not hold the permission "+op.Permission+", or its class does not allow it.")
		methods := op.Method
		if methods == http.MethodGet {
			methods += " " + http.MethodHead
		}
		for _, path := range op.Paths {
			routes = append(routes, &route{
				managed: true, name: op.Name, event: op.Event, methods: methods, path: path.Path, access: accessCredential,
				serve: func(x *exchange) *problem { return p.manage(x, need, lacking, api) },
			})
		}
	}
	return append(routes, &route{
		name: "openapi", methods: "GET HEAD", path: management.DocumentPath, access: accessAnyone, serve: func(x *exchange) *problem {
			h := x.w.Header()
			h["Cache-Control"], h["Content-Type"] = publicCache, openAPIContentType
			_, _ = x.w.Write(api.Document())
			return nil
		},
	})
}

var openAPIContentType = []string{"application/openapi+json;version=3.1"}

// manage lets a caller with the permission through to the management API. Who has it not is
// told that it is lacking.
func (p *public) manage(x *exchange, need *need, lacking *problem, api *management.API) *problem {
	x.need = need
	if d := p.authorize(&x.evaluation); !d.allowed {
		if x.code == codePermission {
			return lacking
		}
		return d.told()
	}
	x.report = new(management.Report)
	r := x.r.WithContext(management.WithCaller(x.r.Context(), x.managementCaller()))
	if r.Body != nil {
		r.Body = http.MaxBytesReader(x.w, r.Body, management.MaxBody)
	}
	w := &managed{ResponseWriter: x.w}
	api.ServeHTTP(w, r)
	if w.status != 0 {
		x.status, x.outcome = w.status, outcomeOf(w.status)
	}
	return nil
}

// managementCaller is the caller as the management API sees it. It keeps nothing of the
// exchange.
func (x *exchange) managementCaller() *management.Caller {
	may := x.may()
	c := &management.Caller{
		Principal: x.caller(), Roles: strings.Fields(may.roles), Administrator: may.admin, Client: x.client, RequestID: x.id, UserAgent: x.agent,
		Report: x.report,
	}
	if x.how == presentedJWT && !x.claims.Admin {
		scope := authz.NewSet(slices.Clone(x.claims.Permissions))
		c.Scope = &scope
	}
	return c
}

// managed notes the status that an answer begins with.
type managed struct {
	http.ResponseWriter
	status int
}

func (a *managed) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
	if status == http.StatusNotModified {
		a.Header().Del("Content-Type") // a cache would take it for that of what it has
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *managed) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (a *managed) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func outcomeOf(status int) outcome {
	switch {
	case status < http.StatusBadRequest:
		return outcomeOK
	case status == http.StatusUnauthorized:
		return outcomeUnauthenticated
	case status == http.StatusForbidden:
		return outcomeForbidden
	case status == http.StatusTooManyRequests:
		return outcomeLimited
	case status == http.StatusServiceUnavailable:
		return outcomeUnavailable
	case status >= http.StatusInternalServerError:
		return outcomeFailed
	}
	return outcomeInvalid
}

// reported puts what an operation of the management API says of itself into its event: the
// credential that it was about, and who did it.
func (a *auditor) reported(e *audit.Event, v *visit) {
	// A subject is a name of ours, or has been cleaned: what is as long as a value is
	// masked in neither.
	e.Actor = audit.Text(e.Subject)
	if e.Outcome == audit.Allowed && v.method != http.MethodGet && v.method != http.MethodHead {
		e.Outcome = audit.Done
	}
	detail := map[string]audit.Text{"operation": audit.Text(v.route.name)}
	for name, text := range e.Detail {
		detail[name] = text
	}
	e.Detail = detail
	r := v.report
	if r == nil {
		return
	}
	if r.Reason != "" {
		e.Reason = r.Reason
	}
	for name, text := range r.Detail {
		detail[name] = audit.Clean(text, maxNoteText)
	}
	if r.About == nil {
		return
	}
	e.KeepUse()
	about := r.About
	e.Subject, e.UID, e.Kind, e.Namespace, e.Name, e.Class = about.Subject, about.UID, string(about.Kind), about.Namespace, about.Name, r.Class
}

// mountManagement mounts the management API, where there is one.
func (p *public) mountManagement(mux *http.ServeMux) {
	if p.manager == nil {
		return
	}
	paths := map[string][]*route{}
	for _, r := range p.managementRoutes(p.manager) {
		r.observers = p.metrics.route(r.name)
		paths[r.path] = append(paths[r.path], r)
	}
	for path, routes := range paths {
		pick := byMethod(routes)
		mux.HandleFunc(path, func(w http.ResponseWriter, req *http.Request) { p.dispatch(w, req, pick(req.Method)) })
	}
}

// byMethod picks, of the routes at one path, the one for the request's method. Where there
// is none, the caller is told of all of them, once it is known who that is.
func byMethod(routes []*route) func(method string) *route {
	var all []string
	for _, r := range routes {
		all = append(all, r.methods)
	}
	none := *routes[0]
	none.methods = strings.Join(all, " ")
	return func(method string) *route {
		for _, r := range routes {
			if slices.Contains(strings.Fields(r.methods), method) {
				return r
			}
		}
		return &none
	}
}
