package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// Names as Mintmark is installed.
const (
	webhookConfiguration = "mintmark-webhook"
	controllerName       = "mintmark-controller"
	serverName           = "mintmark-server"
	heartbeatLease       = "mintmark-heartbeat"
	statusPolicy         = "mintmark-status"
	leasesPolicy         = "mintmark-leases"
	managementPolicy     = "mintmark-management"
)

const (
	// oldestKubernetes has ValidatingAdmissionPolicy in v1.
	oldestKubernetes = "1.30.0"
	// maxSkew is how far this machine's clock may be off before it is told.
	maxSkew = 5 * time.Second
	// maxHeartbeatAge is the age of a heartbeat, renewed every 2 s, from which on
	// servers count themselves stale.
	maxHeartbeatAge = 5 * time.Second
)

const reinstall = "apply the installation's manifests, or the chart, again"

func (e *examination) apiServer(ctx context.Context) bool {
	d, err := e.discovery()
	if err != nil {
		e.fail(err.Error(), "check the kubeconfig")
		return false
	}
	info, err := d.ServerVersionWithContext(ctx)
	if err != nil {
		e.fail(explain(err, "reaching", e.config.Host).Error(), "check the kubeconfig, and that the cluster is up: kubectl cluster-info")
		return false
	}
	e.now, _ = e.clock.now()
	if v, err := version.ParseGeneric(info.GitVersion); err == nil && v.LessThan(version.MustParseGeneric(oldestKubernetes)) {
		e.fail(fmt.Sprintf("%s is %s: too old", e.config.Host, info.GitVersion), "Mintmark needs Kubernetes "+oldestKubernetes+" or later")
		return true
	}
	e.ok("%s, Kubernetes %s; this command is %s", e.config.Host, info.GitVersion, e.options.buildVersion())
	return true
}

func (e *examination) clocks(context.Context) bool {
	switch ahead := e.clock.ahead(); {
	case ahead > maxSkew:
		e.warn(fmt.Sprintf("this machine's clock is %s behind the API server's", ahead.Round(time.Second)), "set it by NTP: certificates and JWTs are checked by it")
	case ahead < -maxSkew:
		e.warn(fmt.Sprintf("this machine's clock is %s ahead of the API server's", -ahead.Round(time.Second)), "set it by NTP: certificates and JWTs are checked by it")
	default:
		e.ok("this machine and the API server agree")
	}
	return true
}

// resources looks at the CRDs: there, established, and those this command knows.
func (e *examination) resources(ctx context.Context) bool {
	all := true
	var names []string
	for _, r := range crdTypes {
		names = append(names, r.plural)
		name := r.plural + "." + v1alpha1.GroupVersion.Group
		crd := new(apiextensionsv1.CustomResourceDefinition)
		err := e.Get(ctx, client.ObjectKey{Name: name}, crd)
		switch {
		case isRBAC(err) && e.served(ctx, r.plural):
			continue // served is what counts; the rest is told by whoever may read it
		case err != nil:
			e.unread(err, "CustomResourceDefinition "+name, reinstall)
			all = false
			continue
		}
		all = e.judgeCRD(crd, r) && all
	}
	if all {
		e.ok("%s are served, and match this command", strings.Join(names, ", "))
	}
	return all || e.served(ctx, "servicetokens") && e.served(ctx, "apikeys")
}

// served asks for the resource itself.
func (e *examination) served(ctx context.Context, plural string) bool {
	raw, err := e.raw()
	if err != nil {
		return false
	}
	err = raw.Get().Resource(plural).VersionedParams(&metav1.ListOptions{Limit: 1}, metav1.ParameterCodec).Do(ctx).Error()
	return err == nil || isRBAC(err)
}

func (e *examination) judgeCRD(crd *apiextensionsv1.CustomResourceDefinition, r crdType) bool {
	for _, kind := range []apiextensionsv1.CustomResourceDefinitionConditionType{apiextensionsv1.NamesAccepted, apiextensionsv1.Established} {
		i := slices.IndexFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool { return c.Type == kind })
		if i < 0 || crd.Status.Conditions[i].Status != apiextensionsv1.ConditionTrue {
			message := "no such condition yet"
			if i >= 0 {
				message = crd.Status.Conditions[i].Message
			}
			e.fail(fmt.Sprintf("CustomResourceDefinition %s is not %s: %s", crd.Name, kind, message),
				"kubectl describe crd "+crd.Name+" says what is in the way")
			return false
		}
	}
	i := slices.IndexFunc(crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool {
		return v.Name == v1alpha1.GroupVersion.Version && v.Served
	})
	if i < 0 {
		e.fail(fmt.Sprintf("CustomResourceDefinition %s does not serve %s", crd.Name, v1alpha1.GroupVersion.Version), "use the command of the version that is installed")
		return false
	}
	missing, unknown := compareSchema(r.object, crd.Spec.Versions[i].Schema)
	switch {
	case len(missing) > 0:
		e.fail(fmt.Sprintf("CustomResourceDefinition %s is older than this command: it has no %s", crd.Name, strings.Join(missing, ", ")),
			"upgrade the CRDs (Helm does not do so by itself), or use the command of the version that is installed")
	case len(unknown) > 0:
		e.warn(fmt.Sprintf("CustomResourceDefinition %s is newer than this command: it has %s besides", crd.Name, strings.Join(unknown, ", ")), "upgrade the command")
	}
	return len(missing)+len(unknown) == 0
}

func (e *examination) installed(ctx context.Context) bool {
	ns := new(corev1.Namespace)
	if err := e.Get(ctx, client.ObjectKey{Name: e.system}, ns); err != nil {
		e.unread(err, "namespace "+e.system, "install Mintmark, or say where it is with --system-namespace")
		return isRBAC(err)
	}
	if ns.Status.Phase == corev1.NamespaceTerminating {
		e.fail("namespace "+e.system+" is being deleted", "wait until it is gone, and install Mintmark again")
		return true
	}
	e.ok("%s", e.system)
	return true
}

// controller: a Deployment with replicas, and one of them leading. Without a
// Deployment, as where it is run by hand, the leader's Lease tells.
func (e *examination) controller(ctx context.Context) bool {
	e.deployment(ctx, controllerName)
	lease := new(coordinationv1.Lease)
	if err := e.Get(ctx, client.ObjectKey{Namespace: e.system, Name: controllerName}, lease); err != nil {
		e.unread(err, "Lease "+e.system+"/"+controllerName+" of the leading controller",
			"no controller has ever led: see its pods, kubectl get pods -n "+e.system+" -l app.kubernetes.io/component=controller")
		return true
	}
	holder := ""
	if lease.Spec.HolderIdentity != nil {
		holder = *lease.Spec.HolderIdentity
	}
	if age, fresh := e.leaseAge(lease); !fresh {
		e.fail(fmt.Sprintf("no controller leads: the Lease was last renewed %s ago", duration.HumanDuration(age)),
			"nothing is minted or rotated, while servers go on verifying: kubectl logs -n "+e.system+" deployment/"+controllerName)
		return true
	}
	e.ok("%s leads", holder)
	return true
}

// deployment says what is wrong with one; nothing where there is none.
func (e *examination) deployment(ctx context.Context, name string) {
	d := new(appsv1.Deployment)
	err := e.Get(ctx, client.ObjectKey{Namespace: e.system, Name: name}, d)
	if err != nil {
		return // run in another way, or not to be read: what it writes tells more
	}
	wanted := int32(1)
	if d.Spec.Replicas != nil {
		wanted = *d.Spec.Replicas
	}
	image := ""
	if len(d.Spec.Template.Spec.Containers) > 0 {
		image = d.Spec.Template.Spec.Containers[0].Image
	}
	switch {
	case wanted == 0:
		e.fail("Deployment "+name+" is scaled to nothing", "kubectl scale -n "+e.system+" deployment/"+name+" --replicas=2")
	case d.Status.AvailableReplicas == 0:
		e.fail("Deployment "+name+" has no replica available", "kubectl describe pods -n "+e.system+" says why")
	case d.Status.AvailableReplicas < wanted:
		e.warn(fmt.Sprintf("Deployment %s has %d of %d replicas available", name, d.Status.AvailableReplicas, wanted), "kubectl describe pods -n "+e.system+" says why")
	default:
		e.ok("Deployment %s has %d replicas of %s", name, d.Status.AvailableReplicas, image)
	}
}

// leaseAge is how long ago a Lease was renewed, and whether it is still held.
func (e *examination) leaseAge(lease *coordinationv1.Lease) (age time.Duration, fresh bool) {
	if lease.Spec.RenewTime == nil {
		return e.now.Sub(lease.CreationTimestamp.Time), false
	}
	valid := 15 * time.Second
	if lease.Spec.LeaseDurationSeconds != nil {
		valid = time.Duration(*lease.Spec.LeaseDurationSeconds) * time.Second
	}
	now, _ := e.clock.now()
	age = max(0, now.Sub(lease.Spec.RenewTime.Time))
	return age, age <= valid+time.Second // the API server's time is known to the second
}

func (e *examination) heartbeat(ctx context.Context) bool {
	lease := new(coordinationv1.Lease)
	if err := e.Get(ctx, client.ObjectKey{Namespace: e.system, Name: heartbeatLease}, lease); err != nil {
		e.unread(err, "Lease "+e.system+"/"+heartbeatLease, "the controller writes it: see the finding on the controller")
		return true
	}
	age, _ := e.leaseAge(lease)
	if age > maxHeartbeatAge {
		e.fail(fmt.Sprintf("the controller's heartbeat is %s old, not 2 s: servers count themselves stale", duration.HumanDuration(age)),
			"start the controller: after --max-staleness (10m) servers deny everything")
		return true
	}
	e.ok("no older than %s", max(age, 2*time.Second).Round(time.Second))
	return true
}

func (e *examination) webhooks(ctx context.Context) bool {
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	if err := e.Get(ctx, client.ObjectKey{Name: webhookConfiguration}, &validating); err != nil {
		e.unread(err, "ValidatingWebhookConfiguration "+webhookConfiguration, "without it nobody checks who may grant what: "+reinstall)
		return true
	}
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	if err := e.Get(ctx, client.ObjectKey{Name: webhookConfiguration}, &mutating); err != nil {
		e.unread(err, "MutatingWebhookConfiguration "+webhookConfiguration, "without it no default class is set and no actor recorded: "+reinstall)
		return true
	}
	var without []string
	for _, w := range validating.Webhooks {
		if len(w.ClientConfig.CABundle) == 0 {
			without = append(without, w.Name)
		}
	}
	for _, w := range mutating.Webhooks {
		if len(w.ClientConfig.CABundle) == 0 {
			without = append(without, w.Name+" (mutating)")
		}
	}
	if len(without) > 0 {
		e.fail("no CA certificate in "+strings.Join(without, ", "), "the controller writes it when it starts: see the finding on the controller, and its log")
		return true
	}
	e.ok("%d validating and %d mutating, each with a CA certificate", len(validating.Webhooks), len(mutating.Webhooks))
	return true
}

// admission creates a ServiceToken in a dry run: that asks the webhooks as a
// real one would, and stores nothing.
func (e *examination) admission(ctx context.Context) bool {
	token := &v1alpha1.ServiceToken{ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, GenerateName: "mintmark-doctor-"}}
	err := e.Create(ctx, token, client.DryRunAll, fieldOwner)
	switch {
	case err == nil && token.Spec.CredentialClassName == "":
		e.fail("a ServiceToken without a class would be taken as it is: the mutating webhook was not asked", reinstall)
	case err == nil:
		e.ok("a ServiceToken could be made in namespace %s, under class %s", e.namespace, token.Spec.CredentialClassName)
	case isRBAC(err):
		e.warn("cannot tell: your account may not create ServiceTokens in namespace "+e.namespace, "try another namespace with -n")
	case strings.Contains(err.Error(), "denied the request"):
		e.ok("the webhook answers (it would refuse you a ServiceToken in namespace %s: %v)", e.namespace, err)
	case isWebhookDown(err):
		e.fail("the webhook cannot be reached: "+err.Error(),
			"no credential can be created or changed (revoking works): see the controller's pods, Service mintmark-webhook and network policies")
	case apierrors.IsNotFound(err):
		e.warn("cannot tell: namespace "+e.namespace+" does not exist", "try another namespace with -n")
	default:
		e.fail("a ServiceToken would be refused: "+err.Error(), "see what the message says")
	}
	return true
}

// policies guard status and Leases where RBAC cannot.
func (e *examination) policies(ctx context.Context) bool {
	all := true
	for _, p := range []struct{ name, without string }{
		{statusPolicy, "whoever may write status can mislead its readers"},
		{leasesPolicy, "a server taken over could pose as the controller"},
		{managementPolicy, "a server taken over could change what management over REST does not"},
	} {
		policy := new(admissionregistrationv1.ValidatingAdmissionPolicy)
		if err := e.Get(ctx, client.ObjectKey{Name: p.name}, policy); err != nil {
			e.unread(err, "ValidatingAdmissionPolicy "+p.name, p.without+": "+reinstall)
			all = false
			continue
		}
		if policy.Spec.FailurePolicy != nil && *policy.Spec.FailurePolicy != admissionregistrationv1.Fail {
			e.fail("ValidatingAdmissionPolicy "+p.name+" does not fail closed", reinstall)
			all = false
		}
		if warnings := typeWarnings(policy); warnings != "" {
			e.warn("ValidatingAdmissionPolicy "+p.name+": "+warnings, reinstall)
			all = false
		}
		all = e.bound(ctx, p.name, p.without) && all
	}
	if all {
		e.ok("%s, %s and %s are in force", statusPolicy, leasesPolicy, managementPolicy)
	}
	return true
}

func typeWarnings(policy *admissionregistrationv1.ValidatingAdmissionPolicy) string {
	if policy.Status.TypeChecking == nil {
		return ""
	}
	var out []string
	for _, w := range policy.Status.TypeChecking.ExpressionWarnings {
		out = append(out, w.FieldRef+": "+w.Warning)
	}
	return strings.Join(out, "; ")
}

func (e *examination) bound(ctx context.Context, name, without string) bool {
	binding := new(admissionregistrationv1.ValidatingAdmissionPolicyBinding)
	if err := e.Get(ctx, client.ObjectKey{Name: name}, binding); err != nil {
		e.unread(err, "ValidatingAdmissionPolicyBinding "+name, without+": "+reinstall)
		return false
	}
	if binding.Spec.PolicyName != name || !slices.Contains(binding.Spec.ValidationActions, admissionregistrationv1.Deny) || binding.Spec.MatchResources != nil {
		e.fail("ValidatingAdmissionPolicyBinding "+name+" does not deny everywhere", without+": "+reinstall)
		return false
	}
	return true
}

func (e *examination) classes(ctx context.Context) bool {
	var list v1alpha1.CredentialClassList
	if err := e.List(ctx, &list); err != nil {
		e.unread(err, "the CredentialClasses", reinstall)
		return true
	}
	var defaults []string
	admin := false
	for _, class := range list.Items {
		if class.Annotations[v1alpha1.AnnotationDefaultClass] == "true" {
			defaults = append(defaults, class.Name)
		}
		admin = admin || slices.ContainsFunc(class.Spec.Rules, func(r v1alpha1.ClassRule) bool { return r.Admin })
	}
	switch len(defaults) {
	case 1:
		e.ok("%d, the default is %s", len(list.Items), defaults[0])
	case 0:
		e.fail("no CredentialClass is the default: a credential that names no class is refused",
			"kubectl annotate credentialclass default "+v1alpha1.AnnotationDefaultClass+"=true")
	default:
		e.fail(fmt.Sprintf("%d CredentialClasses are the default: %s", len(defaults), strings.Join(defaults, ", ")),
			"kubectl annotate credentialclass NAME "+v1alpha1.AnnotationDefaultClass+"- of all but one")
	}
	if !admin {
		e.warn("no CredentialClass allows admin credentials", "'mintmark bootstrap' needs one: "+reinstall)
	}
	return true
}

// keys looks for the Secrets by their metadata: doctor never reads what is in
// them.
func (e *examination) keys(ctx context.Context) bool {
	var there []string
	for _, s := range []struct{ name, without string }{
		{"mintmark-pepper", "nothing can be minted or verified"},
		{"mintmark-signing-keys", "no JWT can be issued"},
		{"mintmark-server-tls", "servers have no certificate"},
		{"mintmark-webhook-tls", "webhooks have no certificate"},
	} {
		meta := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}}
		if err := e.Get(ctx, client.ObjectKey{Namespace: e.system, Name: s.name}, meta); err != nil {
			e.unread(err, "Secret "+e.system+"/"+s.name, s.without+": the controller makes it when it starts, see the finding on the controller")
			continue
		}
		there = append(there, s.name)
	}
	if len(there) > 0 {
		e.ok("%s: there (not looked into)", strings.Join(there, ", "))
	}
	return true
}

func (e *examination) servers(ctx context.Context) bool {
	e.deployment(ctx, serverName)
	var leases coordinationv1.LeaseList
	if err := e.List(ctx, &leases, client.InNamespace(e.system), client.MatchingLabels{v1alpha1.LabelServer: "true"}); err != nil {
		e.unread(err, "the Leases of servers in namespace "+e.system, reinstall)
		return true
	}
	live := 0
	for _, lease := range leases.Items {
		age, fresh := e.leaseAge(&lease)
		if fresh {
			live++
			continue
		}
		e.warn(fmt.Sprintf("Lease %s of a server was last renewed %s ago", lease.Name, duration.HumanDuration(age)),
			"a server that ended without giving it back; nobody waits for it: kubectl delete lease -n "+e.system+" "+lease.Name)
	}
	if live == 0 {
		e.fail("no server holds a Lease: nothing is verified", "kubectl get pods -n "+e.system+" -l app.kubernetes.io/component=server")
		return true
	}
	if live == 1 {
		e.ok("1 server holds a Lease")
		return true
	}
	e.ok("%d servers hold a Lease", live)
	return true
}

func countKeys(status int, body []byte) (int, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return 0, fmt.Errorf("no key set came back (HTTP %d)", status)
	}
	if len(set.Keys) == 0 {
		return 0, errNoKeys
	}
	return len(set.Keys), nil
}

// maxTold is how many credentials that are not Ready are told one by one.
const maxTold = 10

func (e *examination) credentials(ctx context.Context) bool {
	found, err := e.cluster.credentials(ctx, query{kinds: kinds})
	if err != nil {
		if isRBAC(err) {
			e.warn("cannot tell: your account may not list credentials in every namespace", "'mintmark list -n NAMESPACE' shows those of one")
		} else {
			e.fail(err.Error(), "see what the message says")
		}
		return true
	}
	var unwell []v1alpha1.Credential
	for _, o := range found {
		// What was ended on purpose is not unwell.
		if cond := readyCondition(o); !isReady(o) && (cond == nil || cond.Reason != v1alpha1.ReasonRevoked && cond.Reason != v1alpha1.ReasonExpired) {
			unwell = append(unwell, o)
		}
	}
	for i, o := range unwell {
		if i == maxTold {
			e.warn(fmt.Sprintf("%d more are not Ready", len(unwell)-maxTold), "mintmark list -A")
			break
		}
		why := "the controller has not looked at it"
		if cond := readyCondition(o); cond != nil {
			why = cond.Reason + ": " + cond.Message
		}
		e.warn(fmt.Sprintf("%s is not Ready: %s", refOf(o), why), "mintmark get "+refOf(o).slashed()+" -n "+o.GetNamespace())
	}
	if len(unwell) == 0 {
		e.ok("%d, none of them in trouble", len(found))
	}
	return true
}
