package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/authn"
	"github.com/mintmark-dev/mintmark/internal/authz"
	"github.com/mintmark-dev/mintmark/internal/authz/policy"
	"github.com/mintmark-dev/mintmark/internal/credential"
)

type explainOptions struct {
	*app
	permissions, audiences, resource, headers []string
	request                                   policy.Request
	ip, at, device                            string
	version                                   int64
	output                                    string
}

func (a *app) explainCommand() *cobra.Command {
	o := &explainOptions{app: a}
	c := &cobra.Command{
		Use:   "explain (KIND NAME | KIND/NAME) [flags]",
		Short: "Tell step by step why a credential would be allowed something, or not",
		Long: "Tell step by step why a credential would be allowed something, or not: its state and end, networks, class, where its\n" +
			"permissions come from, and how each AccessPolicy stands to the request that the flags describe.\n\n" +
			"It decides as the server does, from what you may read: spec and status, the class, the roles, the policies. The sealed\n" +
			"record, which the servers go by, cannot be opened here; 'mintmark verify' asks a server. Rate limits are left aside.\n\n" +
			"Exit code: 0 where it would be allowed, 1 otherwise.",
		Example: `
			mintmark explain servicetoken ci-deploy -n payments --permission deploy:write
			mintmark explain apikey/partner --permission invoice:read --method GET --path /invoices/42 --ip 10.1.2.3
			mintmark explain stok ci-deploy --time 2026-11-22T03:00:00+01:00 --resource type=invoice --resource owner=jane`,
		ValidArgsFunction: a.completeRefs,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args) },
	}
	f := c.Flags()
	f.StringSliceVar(&o.permissions, "permission", nil, "Permission that the request needs; can be repeated.")
	f.StringSliceVar(&o.audiences, "audience", nil, "Audience that the route is for, as policies see it; can be repeated.")
	f.StringVar(&o.request.Method, "method", "GET", "Method of the request.")
	f.StringVar(&o.request.Scheme, "scheme", "https", "Scheme of the request.")
	f.StringVar(&o.request.Host, "host", "", "Host of the request.")
	f.StringVar(&o.request.Path, "path", "/", "Path of the request, without the query.")
	f.StringVar(&o.request.Action, "action", "", "Action that a service says is to be done.")
	f.StringVar(&o.request.UserAgent, "user-agent", "", "User agent of the request.")
	f.StringArrayVar(&o.headers, "header", nil, "Header that policies may look at, as name=value; can be repeated.")
	f.StringArrayVar(&o.resource, "resource", nil,
		"What is asked for, as field=value with type, id, owner, ownerDepartment, classification, created or attributes.NAME; can be repeated.")
	f.StringVar(&o.ip, "ip", "", "Address of the client.")
	f.StringVar(&o.device, "device", "", "Device of the client.")
	f.StringVar(&o.at, "time", "", "Time of the request, such as 2026-11-22T09:00:00+01:00 (RFC 3339). Default: now.")
	f.Int64Var(&o.version, "version", 0, "Version of the value presented. Default: the current one.")
	f.StringVarP(&o.output, "output", "o", "", "Output format: json or yaml.")
	return c
}

// account is what there is to tell.
type account struct {
	Allowed bool `json:"allowed"`
	// Code is that of the step that refuses.
	Code     string        `json:"code"`
	Subject  string        `json:"subject"`
	Version  int64         `json:"version"`
	Time     time.Time     `json:"time"`
	Steps    []accountStep `json:"steps"`
	Policies []string      `json:"policies,omitempty"`
}

// accountStep is one thing that is looked at.
type accountStep struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

func (a *account) step(ok bool, code, name, format string, args ...any) {
	a.Steps = append(a.Steps, accountStep{name, ok, fmt.Sprintf(format, args...)})
	if !ok && a.Allowed {
		a.Allowed, a.Code = false, code
	}
}

func (o *explainOptions) run(ctx context.Context, args []string) error {
	if err := plainFormat(o.output); err != nil {
		return err
	}
	in, err := o.input()
	if err != nil {
		return err
	}
	c, err := o.cluster()
	if err != nil {
		return err
	}
	r, err := oneRef(args, c.namespace)
	if err != nil {
		return err
	}
	known, err := c.surroundings(ctx, r)
	if err != nil {
		return err
	}
	if in.Environment.Now.IsZero() {
		in.Environment.Now, _ = c.clock.now()
	}
	told, err := known.account(in, o.version)
	if err != nil {
		return err
	}
	if o.output != "" {
		err = o.printPlain(told, o.output)
	} else {
		err = o.print(told)
	}
	if err == nil && !told.Allowed {
		err = &exitError{code: 1}
	}
	return err
}

// input reads the flags.
func (o *explainOptions) input() (*policy.Input, error) {
	in := &policy.Input{Request: o.request, Environment: policy.Environment{Device: o.device}}
	in.Request.Permissions, in.Request.Audiences = o.permissions, o.audiences
	var err error
	if o.ip != "" {
		if in.Environment.IP, err = netip.ParseAddr(o.ip); err != nil {
			return nil, usageError("--ip: %q is not an address such as 10.1.2.3", o.ip)
		}
	}
	if o.at != "" {
		if in.Environment.Now, err = time.Parse(time.RFC3339, o.at); err != nil {
			return nil, usageError("--time: %q is not a time such as 2026-11-22T09:00:00+01:00", o.at)
		}
	}
	for _, header := range o.headers {
		name, value, ok := strings.Cut(header, "=")
		if !ok || name == "" {
			return nil, usageError("--header: write it as name=value")
		}
		if in.Request.Headers == nil {
			in.Request.Headers = map[string]string{}
		}
		in.Request.Headers[strings.ToLower(name)] = value
	}
	for _, field := range o.resource {
		if err := setResource(&in.Resource, field); err != nil {
			return nil, err
		}
	}
	return in, nil
}

func setResource(r *policy.Resource, field string) error {
	name, value, ok := strings.Cut(field, "=")
	attribute, isAttribute := strings.CutPrefix(name, "attributes.")
	text := map[string]*string{
		"type": &r.Type, "id": &r.ID, "owner": &r.Owner, "ownerDepartment": &r.OwnerDepartment, "classification": &r.Classification,
	}[name]
	switch {
	case ok && text != nil:
		*text = value
	case ok && name == "created":
		created, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return usageError("--resource: created=%s is not a time such as 2026-11-22T09:00:00Z", value)
		}
		r.Created = created
	case ok && isAttribute && attribute != "":
		if r.Attributes == nil {
			r.Attributes = map[string]string{}
		}
		r.Attributes[attribute] = value
	default:
		return usageError("--resource: %q: write type=, id=, owner=, ownerDepartment=, classification=, created= or attributes.NAME=", field)
	}
	return nil
}

// surroundings are a credential and what decides about it.
type surroundings struct {
	credential  v1alpha1.Credential
	namespace   *corev1.Namespace
	class       *v1alpha1.CredentialClass // nil where there is none
	roles       map[string]*v1alpha1.AccessRole
	revocations v1alpha1.RevocationList
	policies    v1alpha1.AccessPolicyList
}

func (c *cluster) surroundings(ctx context.Context, r ref) (*surroundings, error) {
	o, err := c.get(ctx, r)
	if err != nil {
		return nil, err
	}
	s := &surroundings{credential: o, namespace: new(corev1.Namespace), roles: map[string]*v1alpha1.AccessRole{}}
	if err := c.Get(ctx, client.ObjectKey{Name: r.namespace}, s.namespace); err != nil {
		return nil, explain(err, "reading", "Namespace "+r.namespace+", by whose labels the class chooses its rule,")
	}
	class, name := new(v1alpha1.CredentialClass), o.CredentialSpec().CredentialClassName
	if err := c.Get(ctx, client.ObjectKey{Name: name}, class); err == nil {
		s.class = class
	} else if !apierrors.IsNotFound(err) {
		return nil, explain(err, "reading", "CredentialClass "+name)
	}
	for _, name := range o.CredentialSpec().Roles {
		role := new(v1alpha1.AccessRole)
		if err := c.Get(ctx, client.ObjectKey{Name: name}, role); err == nil {
			s.roles[name] = role
		} else if !apierrors.IsNotFound(err) {
			return nil, explain(err, "reading", "AccessRole "+name)
		}
	}
	if err := c.List(ctx, &s.revocations); err != nil {
		return nil, explain(err, "listing", "Revocations")
	}
	if err := c.List(ctx, &s.policies); err != nil {
		return nil, explain(err, "listing", "AccessPolicies")
	}
	return s, nil
}

// account decides as the server does, with the same index and the same policies.
func (s *surroundings) account(in *policy.Input, version int64) (*account, error) {
	status := s.credential.CredentialStatus()
	if version == 0 {
		version = status.CurrentVersion
	}
	if version == 0 { // all have ended: why, the last one tells
		for _, v := range status.Versions {
			version = max(version, v.Version)
		}
	}
	told := &account{Allowed: true, Code: policy.CodeAllowed, Version: version, Time: in.Environment.Now.UTC()}
	told.Subject = strings.ToLower(string(s.credential.CredentialKind())) + ":" + s.credential.GetNamespace() + ":" + s.credential.GetName()
	number := slices.IndexFunc(status.Versions, func(v v1alpha1.CredentialVersion) bool { return v.Version == version })
	if number < 0 {
		told.step(false, authn.ReasonUnknown.Code(), "version", "status knows no version %d: it has not been minted yet, or ended long ago", version)
		return told, nil
	}
	index := s.index()
	verdict := index.VerifyUse(string(s.credential.GetUID()), version, authn.Request{IP: in.Environment.IP}, in.Environment.Now)
	whose := verdict.Principal
	if whose == nil {
		whose = verdict.Refused
	}
	if whose == nil {
		return nil, fmt.Errorf("%s cannot be explained from its spec and status (%s)", refOf(s.credential), verdict.Reason)
	}
	s.tellStanding(told, verdict.Reason, &status.Versions[number], in)
	for _, permission := range in.Request.Permissions {
		detail := s.source(permission)
		told.step(whose.Allows(permission), "Permission", "permission", "%s: %s", permission, detail)
	}
	in.Subject = subjectOf(whose)
	s.tellPolicies(told, in)
	return told, nil
}

// subjectOf is what policies see of the holder of a key.
func subjectOf(p *authn.Principal) policy.Subject {
	return policy.Subject{
		ID: p.Subject, Kind: string(p.Kind), Namespace: p.Namespace, Name: p.Name, Class: p.Class, Version: p.Version, Method: "key",
		Roles: p.Roles, Permissions: p.Permissions, Admin: p.Admin, Attributes: p.Attributes,
	}
}

// index is the server's, with this credential alone in it. What the controller
// would have sealed is taken from spec and status.
func (s *surroundings) index() *authn.Index {
	x := authn.New(authn.Config{})
	if s.class != nil {
		_ = x.SetClass(s.class.Name, &s.class.Spec) // what cannot be read allows nothing
	}
	x.SetNamespace(s.namespace.Name, s.namespace.Labels)
	for name, role := range s.roles {
		x.SetRole(name, authz.Strings(role.Spec.Permissions))
	}
	record := s.record()
	for i := range s.revocations.Items {
		r := &s.revocations.Items[i]
		if meta.IsStatusConditionTrue(r.Status.Conditions, v1alpha1.ConditionSettled) {
			record.Settled = append(record.Settled, string(r.UID)) // and is in status
		}
		_ = x.SetRevocation(r)
	}
	x.Apply(authn.LiveOf(s.credential), record)
	return x
}

func (s *surroundings) record() *credential.Record {
	o := s.credential
	live, status := authn.LiveOf(o), o.CredentialStatus()
	r := &credential.Record{
		UID: live.UID, Kind: live.Kind, Namespace: live.Namespace, Name: live.Name, Epoch: 1, Class: live.ClassName, Labels: live.Labels,
		Permissions: live.Permissions, Roles: live.Roles, Admin: live.Admin, Attributes: live.Attributes, CIDRs: live.CIDRs,
		External: live.External != nil,
	}
	if revocation := status.Revocation; revocation != nil {
		r.RevokedThrough = revocation.ThroughVersion
		if status.ObservedGeneration == o.GetGeneration() {
			r.RevokedSpec = credential.RevokedDigest(live.Revoked)
		}
	}
	for i, v := range status.Versions {
		sealed := credential.SealedVersion{Number: v.Version, Digest: make([]byte, len(credential.Digest{})), Prefix: v.Prefix, State: v.State}
		sealed.Digest[0] = byte(i + 1) // nothing is looked up by it
		if v.Expires != nil {
			sealed.Expires = v.Expires.Unix()
		}
		r.Versions = append(r.Versions, sealed)
	}
	return r
}

// tellStanding tells of the credential itself, in the order the server looks.
func (s *surroundings) tellStanding(told *account, reason authn.Reason, version *v1alpha1.CredentialVersion, in *policy.Input) {
	spec := s.credential.CredentialSpec()
	told.step(reason != authn.ReasonDeleted, reason.Code(), "deletion", "%s", choose(reason == authn.ReasonDeleted, "is being deleted", "is not being deleted"))
	revoked := reason == authn.ReasonRevoked || version.State == v1alpha1.VersionRevoked
	told.step(!revoked, authn.ReasonRevoked.Code(), "revocation", "%s", choose(revoked, s.revokedBy(version), "is not revoked"))
	told.step(reason != authn.ReasonClass, reason.Code(), "class", "%s", s.classDetail())
	live := version.State.Live() || version.State == v1alpha1.VersionRevoked
	told.step(live, authn.ReasonRetired.Code(), "state", "version %d is %s", version.Version, version.State)
	ends, expired := endOf(version, spec.ExpiresAt, in.Environment.Now)
	told.step(!expired, authn.ReasonExpired.Code(), "expiry", "%s", ends)
	from, inside := fromWhere(spec.AllowedCIDRs, in.Environment.IP)
	told.step(inside, authn.ReasonNetwork.Code(), "network", "%s", from)
}

func choose(which bool, yes, no string) string {
	if which {
		return yes
	}
	return no
}

func (s *surroundings) revokedBy(version *v1alpha1.CredentialVersion) string {
	if r := s.credential.CredentialSpec().Revoked; r != nil {
		return "spec.revoked: " + oneLine(r.Reason)
	}
	if r := s.credential.CredentialStatus().Revocation; r != nil && version.Version <= r.ThroughVersion {
		return fmt.Sprintf("versions up to %d were revoked: %s", r.ThroughVersion, oneLine(r.Reason))
	}
	for i := range s.revocations.Items {
		r := &s.revocations.Items[i]
		if !meta.IsStatusConditionTrue(r.Status.Conditions, v1alpha1.ConditionSettled) {
			return fmt.Sprintf("a Revocation takes it (such as %s: %s)", r.Name, oneLine(r.Spec.Reason))
		}
	}
	return "the version was revoked: " + oneLine(version.Reason)
}

func (s *surroundings) classDetail() string {
	name := s.credential.CredentialSpec().CredentialClassName
	if s.class == nil {
		return fmt.Sprintf("there is no CredentialClass %q", name)
	}
	rule, err := authz.SelectRule(&s.class.Spec, s.namespace.Labels)
	if err != nil {
		return err.Error()
	}
	for i := range s.class.Spec.Rules {
		if rule == &s.class.Spec.Rules[i] {
			return fmt.Sprintf("%s, by its rules[%d]", name, i)
		}
	}
	return fmt.Sprintf("CredentialClass %s has no rule for namespace %s", name, s.namespace.Name)
}

// endOf is when a version ends: by its own ttl, or with the whole credential.
func endOf(version *v1alpha1.CredentialVersion, whole *metav1.Time, now time.Time) (detail string, expired bool) {
	end, what := version.Expires, fmt.Sprintf("version %d", version.Version)
	if whole != nil && (end == nil || whole.Before(end)) {
		end, what = whole, "the credential (spec.expiresAt)"
	}
	if end == nil {
		return "it never ends", false
	}
	expired = !now.Before(end.Time)
	return fmt.Sprintf("%s %s %s", what, choose(expired, "ended", "ends"), future(end.UTC().Format(time.RFC3339), now)), expired
}

func fromWhere(networks []v1alpha1.CIDR, ip netip.Addr) (detail string, inside bool) {
	if len(networks) == 0 {
		return "from anywhere", true
	}
	if !ip.IsValid() {
		return "only from " + joined(networks) + ": give --ip", false
	}
	for _, network := range networks {
		if prefix, err := netip.ParsePrefix(string(network)); err == nil && prefix.Contains(ip.Unmap()) {
			return fmt.Sprintf("%s is in %s", ip, network), true
		}
	}
	return fmt.Sprintf("%s is not in %s", ip, joined(networks)), false
}

// source says where a permission comes from, and what the ceiling has to say.
func (s *surroundings) source(permission string) string {
	spec := s.credential.CredentialSpec()
	var rule *v1alpha1.ClassRule
	if s.class != nil {
		rule, _ = authz.SelectRule(&s.class.Spec, s.namespace.Labels)
	}
	ceiling := authz.NewCeiling(rule)
	if spec.Admin {
		return choose(ceiling.Admin(), "admin credentials hold every permission", "admin, which the class does not allow")
	}
	var holds []string
	for _, p := range spec.Permissions {
		if authz.Covers(string(p), permission) {
			holds = append(holds, fmt.Sprintf("spec.permissions %s", p))
		}
	}
	for _, name := range spec.Roles {
		role := s.roles[name]
		if role == nil {
			holds = append(holds, fmt.Sprintf("AccessRole %s does not exist", name))
			continue
		}
		for _, p := range role.Spec.Permissions {
			if authz.Covers(string(p), permission) {
				holds = append(holds, fmt.Sprintf("role %s (%s)", name, p))
			}
		}
	}
	if len(holds) == 0 {
		return "neither spec.permissions nor a role has it"
	}
	return strings.Join(holds, "; ") + choose(ceiling.AllowsUse(permission), "", "; over the ceiling of class "+spec.CredentialClassName)
}

func (s *surroundings) tellPolicies(told *account, in *policy.Input) {
	var compiled []*policy.Compiled
	for i := range s.policies.Items {
		p := &s.policies.Items[i]
		c, err := policy.Compile(p.Name, &p.Spec)
		if err != nil {
			c = policy.Refuse(p.Name, &p.Spec)
		}
		compiled = append(compiled, c)
	}
	set := policy.NewSet(compiled)
	d := set.Decide(in)
	told.Policies = why(set.Explain(in))
	switch {
	case set.Empty():
		told.step(true, "", "policies", "there is no AccessPolicy")
	case d.Allowed && d.Policy == "":
		told.step(true, "", "policies", "none refuses")
	default:
		verb := choose(d.Allowed, "AccessPolicy %s allows it%s", "AccessPolicy %s refuses it%s")
		told.step(d.Allowed, d.Code, "policies", verb, d.Policy, choose(d.Rule != "", " by rule "+d.Rule, ""))
	}
}

func (o *explainOptions) print(told *account) error {
	out := terminal{o.Out}
	fmt.Fprintf(out, "%s, version %d, at %s\n", told.Subject, told.Version, told.Time.Format(time.RFC3339))
	w := printers.GetNewTabWriter(out)
	for _, s := range told.Steps {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", choose(s.OK, "ok", "NO"), s.Name, oneLine(s.Detail))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprint(out, indented(told.Policies, "        "))
	_, err := fmt.Fprintln(out, choose(told.Allowed, "Allowed", "Refused: "+told.Code))
	return err
}
