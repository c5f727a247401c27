package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CredentialSpec is what ServiceToken and APIKey have in common: everything.
//
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.credentialClassName) || (has(self.credentialClassName) && self.credentialClassName == oldSelf.credentialClassName)",message="credentialClassName cannot be changed once it is set: make a new credential of the other class and move its users over",fieldPath=".credentialClassName",reason="FieldValueForbidden"
// +kubebuilder:validation:XValidation:rule="has(self.external) == has(oldSelf.external)",message="external cannot be added or taken away: make a new credential and move its users over",fieldPath=".external",reason="FieldValueForbidden"
// +kubebuilder:validation:XValidation:rule="!(has(self.admin) && self.admin && ((has(self.permissions) && size(self.permissions) > 0) || (has(self.roles) && size(self.roles) > 0)))",message="an admin credential holds every permission: leave permissions and roles empty, or admin false",fieldPath=".admin",reason="FieldValueForbidden"
// +kubebuilder:validation:XValidation:rule="!(has(self.external) && has(self.secret))",message="a credential declared by external has no Secret, for its holder keeps the value: leave secret out",fieldPath=".secret",reason="FieldValueForbidden"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.secret) || !has(oldSelf.secret.name) || (has(self.secret) && has(self.secret.name) && self.secret.name == oldSelf.secret.name)",message="the Secret's name cannot be changed or taken away once it is set: make a new credential and move its users over",fieldPath=".secret",reason="FieldValueForbidden"
type CredentialSpec struct {
	// credentialClassName names the CredentialClass the credential is made
	// under. Where it is empty, the default class is written here once, at
	// creation. It cannot be changed afterwards.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	CredentialClassName string `json:"credentialClassName,omitempty"`

	// description says what the credential is for.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Description string `json:"description,omitempty"`

	// owner names the person or team to ask about the credential.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Owner string `json:"owner,omitempty"`

	// metadata is free-form: facts to search the audit log and the lists by.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) <= 128)",message="a key of metadata has at most 128 characters"
	Metadata map[string]MetadataValue `json:"metadata,omitempty"`

	// permissions the credential holds: "resource:action" or plain names, with
	// wildcards at the end ("deploy:*", "*").
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	Permissions []Permission `json:"permissions,omitempty"`

	// roles the credential holds: names of AccessRoles.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.all(r, r.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'))",message="a role is the name of an AccessRole: lowercase letters, digits, - and . only"
	Roles []string `json:"roles,omitempty"`

	// admin makes the credential hold every permission.
	// +optional
	Admin bool `json:"admin,omitempty"`

	// attributes of the subject, for policies.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) <= 64)",message="a key of attributes has at most 64 characters"
	Attributes map[string]MetadataValue `json:"attributes,omitempty"`

	// ttl is how long each version lives, from its making; "Never" where the
	// class allows it. Default: the class's.
	// +optional
	TTL Duration `json:"ttl,omitempty"`

	// expiresAt ends the whole credential, whatever its versions' ttl.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self > timestamp('2000-01-01T00:00:00Z')",message="write a time like 2031-01-31T08:00:00Z (RFC 3339)"
	ExpiresAt *metav1.Time `json:"expiresAt,omitempty"`

	// rotation says when a new version is made and how the old one goes.
	// +optional
	Rotation *Rotation `json:"rotation,omitempty"`

	// secret says how the value is delivered. The Secret's name defaults to the
	// credential's own.
	// +optional
	Secret *SecretTarget `json:"secret,omitempty"`

	// restart names the workloads to restart when a new version is delivered.
	// +optional
	Restart *Restart `json:"restart,omitempty"`

	// allowedCIDRs limits where the credential may be used from.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	AllowedCIDRs []CIDR `json:"allowedCIDRs,omitempty"`

	// rateLimit bounds how often the credential may be used.
	// +optional
	RateLimit *RateLimit `json:"rateLimit,omitempty"`

	// jwt shapes the short-lived tokens issued for the credential.
	// +optional
	JWT *JWT `json:"jwt,omitempty"`

	// external declares a credential whose value its holder keeps.
	// +optional
	External *External `json:"external,omitempty"`

	// revoked ends the whole credential, or the versions named. Taking it away
	// again undoes nothing.
	// +optional
	Revoked *Revoked `json:"revoked,omitempty"`
}

// Permission is "resource:action", a plain name, or a wildcard: "*" for
// everything, "deploy:*" for everything of deploy.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=128
// +kubebuilder:validation:XValidation:rule=`self.matches(r'^([*]|\w[\w./-]*(:\w[\w./-]*)*(:[*])?)$')`,message="not a permission: write a name, resource:action, or a wildcard at the end such as deploy:*, of letters, digits, _ . / -"
type Permission string

// MetadataValue is one value of metadata or attributes.
//
// +kubebuilder:validation:MaxLength=1024
type MetadataValue string

// CIDR is a network such as 10.0.0.0/8 or 2001:db8::/32.
//
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="not a network: write it like 10.0.0.0/8 or 2001:db8::/32"
type CIDR string

// Rotation says when a new version is made and how the old one goes.
//
// +kubebuilder:validation:XValidation:rule="!has(self.schedule) || !self.schedule.contains('TZ=')",message="write the time zone into timeZone, not into schedule",fieldPath=".schedule"
type Rotation struct {
	// every is the age at which the current version is replaced, or "Never".
	// Default: the class's.
	// +optional
	Every Duration `json:"every,omitempty"`

	// highUsage replaces a version that is used much more often than by age.
	// +optional
	HighUsage *HighUsage `json:"highUsage,omitempty"`

	// schedule replaces the version at fixed times, in cron's five fields:
	// "0 3 * * SUN".
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Schedule string `json:"schedule,omitempty"`

	// timeZone of schedule, by its IANA name. Default: UTC.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	TimeZone string `json:"timeZone,omitempty"`

	// windows are the only times at which a rotation that is not forced may
	// start. Without windows any time will do.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Windows []Window `json:"windows,omitempty"`

	// overlap is how long the previous version is accepted at least, once the
	// new one has been delivered. Default: the class's.
	// +optional
	Overlap Duration `json:"overlap,omitempty"`

	// retire says what ends the previous version. Default: the class's.
	// +optional
	Retire RetirePolicy `json:"retire,omitempty"`

	// maxOverlap ends the previous version in any case. Default: the class's.
	// +optional
	MaxOverlap Duration `json:"maxOverlap,omitempty"`

	// suspend stops rotations that nobody asked for. Expiry and its warnings go
	// on.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
}

// RetirePolicy says what ends a previous version.
//
// +kubebuilder:validation:Enum=WhenUnused;AfterOverlap;Immediately
type RetirePolicy string

const (
	// RetireWhenUnused retires a version after the overlap, once the new one is
	// in use and the old one has been quiet.
	RetireWhenUnused RetirePolicy = "WhenUnused"
	// RetireAfterOverlap retires a version when the overlap is over.
	RetireAfterOverlap RetirePolicy = "AfterOverlap"
	// RetireImmediately retires a version as soon as the new one is delivered.
	RetireImmediately RetirePolicy = "Immediately"
)

// HighUsage is the pace of rotation for a version that is used a lot.
type HighUsage struct {
	// threshold is the number of uses of one version from which on it counts
	// as highly used.
	// +optional
	// +kubebuilder:default=1000
	// +kubebuilder:validation:Minimum=1
	Threshold int64 `json:"threshold,omitempty"`

	// every is the age at which such a version is replaced.
	// +optional
	// +kubebuilder:default="30d"
	Every Duration `json:"every,omitempty"`
}

// Window is a recurring time in which rotations may start.
type Window struct {
	// schedule is when the window opens, in cron's five fields.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Schedule string `json:"schedule"`

	// duration is how long it stays open.
	// +required
	Duration Duration `json:"duration"`

	// timeZone of schedule, by its IANA name. Default: UTC.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	TimeZone string `json:"timeZone,omitempty"`
}

// SecretTarget is the Secret that carries the value.
type SecretTarget struct {
	// name of the Secret, in the credential's namespace. Default: the
	// credential's name.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="not a Secret's name: use lowercase letters, digits, - and . only; a Secret of another namespace cannot be named"
	Name string `json:"name,omitempty"`

	// conflictPolicy says what to do with a Secret of that name which is not
	// ours: Refuse leaves it alone; Adopt takes it over, and its value with it
	// where that has the right format, if the class allows adoption. Its other
	// keys are not kept: the template says what else it holds.
	// +optional
	// +kubebuilder:default=Refuse
	ConflictPolicy ConflictPolicy `json:"conflictPolicy,omitempty"`

	// template adds to the Secret.
	// +optional
	Template *SecretTemplate `json:"template,omitempty"`
}

// ConflictPolicy says what to do with a Secret that is not ours.
//
// +kubebuilder:validation:Enum=Refuse;Adopt
type ConflictPolicy string

const (
	// ConflictRefuse leaves a foreign Secret alone.
	ConflictRefuse ConflictPolicy = "Refuse"
	// ConflictAdopt takes a foreign Secret over.
	ConflictAdopt ConflictPolicy = "Adopt"
)

// SecretTemplate adds keys, labels and annotations to the Secret.
type SecretTemplate struct {
	// metadata adds labels and annotations. Those of Kubernetes and of Mintmark
	// itself are refused.
	// +optional
	Metadata *TemplateMetadata `json:"metadata,omitempty"`

	// data adds keys. Values are Go templates over .token (the value),
	// .previous (the previous value while it is accepted, else empty),
	// .version, .previousVersion (0 where there is none), .name and .namespace,
	// with the functions b64enc, urlquery, printf and quote.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(k, k.matches('^[-._a-zA-Z0-9]{1,253}$'))",message="a key of a Secret consists of letters, digits, -, _ and ."
	// +kubebuilder:validation:XValidation:rule="self.all(k, !(k in ['token', 'token.previous', 'api-key', 'api-key.previous', 'version', 'version.previous']))",message="token, api-key, version and their .previous keys are Mintmark's own: choose another key"
	Data map[string]TemplateText `json:"data,omitempty"`
}

// TemplateText is the text of one template.
//
// +kubebuilder:validation:MaxLength=16384
type TemplateText string

// TemplateMetadata is the metadata a template adds to the Secret.
type TemplateMetadata struct {
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	Labels map[string]string `json:"labels,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Restart names the workloads to restart when a new version is delivered.
//
// +kubebuilder:validation:XValidation:rule="has(self.workloads) || has(self.selector) || (has(self.consumers) && self.consumers)",message="name workloads, give a selector, or say consumers: true"
type Restart struct {
	// workloads by kind and name, in the credential's namespace.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Workloads []WorkloadReference `json:"workloads,omitempty"`

	// selector chooses Deployments, StatefulSets and DaemonSets by label.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// consumers chooses those that use the Secret in a way that does not show them
	// a new value by itself: in an environment variable, or mounted by subPath.
	// +optional
	Consumers bool `json:"consumers,omitempty"`

	// windows are the only times at which a restart may begin. Default: any time,
	// for the rotation itself keeps to its own windows.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Windows []Window `json:"windows,omitempty"`

	// timeout is how long a rollout may take before it counts as failed; the
	// workload's own progressDeadlineSeconds counts as well. Default: 10m.
	// +optional
	Timeout Duration `json:"timeout,omitempty"`
}

// WorkloadReference names a workload.
type WorkloadReference struct {
	// +required
	// +kubebuilder:validation:Enum=Deployment;StatefulSet;DaemonSet
	Kind string `json:"kind"`
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// RateLimit bounds how often a credential may be used.
type RateLimit struct {
	// requests allowed in each period.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	Requests int64 `json:"requests"`

	// per is the period. Default: 1s.
	// +optional
	// +kubebuilder:default="1s"
	Per Duration `json:"per,omitempty"`

	// burst is how many requests may come at once. Default: requests.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	Burst int64 `json:"burst,omitempty"`
}

// JWT shapes the short-lived tokens issued for a credential.
type JWT struct {
	// ttl of the tokens, from 1m to 60m. Default: the class's.
	// +optional
	TTL Duration `json:"ttl,omitempty"`

	// audiences the tokens are for. Default: the class's.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Audiences []string `json:"audiences,omitempty"`
}

// External declares a credential by the SHA-256 of a value its holder keeps.
type External struct {
	// sha256 of the value, in lowercase hex: one, or two while the holder
	// changes from one value to the next. The first is the current one.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(d, d.matches('^[0-9a-f]{64}$'))",message="write each SHA-256 as 64 lowercase hexadecimal digits"
	// +kubebuilder:validation:XValidation:rule="size(self) < 2 || self[0] != self[1]",message="the two digests must differ"
	SHA256 []string `json:"sha256"`
}

// Revoked ends a credential or some of its versions.
type Revoked struct {
	// versions to revoke. Empty: the whole credential.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Minimum=1
	Versions []int64 `json:"versions,omitempty"`

	// reason, for the record.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason"`

	// requestedAt tells one revocation from the next where a credential is
	// revived by a rotation and must be revoked again for the same reason. It is
	// written with six digits of fraction: 2026-01-31T08:00:00.000000Z.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`
	RequestedAt *metav1.MicroTime `json:"requestedAt,omitempty"`
}

// ServiceToken is a credential for a machine: sk_ and 64 hexadecimal digits.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=stok,categories=mintmark
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Version",type=integer,JSONPath=`.status.currentVersion`
// +kubebuilder:printcolumn:name="Next Rotation",type=string,JSONPath=`.status.nextRotation`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.status.expires`
// +kubebuilder:printcolumn:name="Last Used",type=string,JSONPath=`.status.lastUsed`
// +kubebuilder:printcolumn:name="Class",type=string,priority=1,JSONPath=`.spec.credentialClassName`
// +kubebuilder:printcolumn:name="Secret",type=string,priority=1,JSONPath=`.status.secretName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ServiceToken struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what is wanted.
	// +optional
	// +kubebuilder:default={}
	Spec CredentialSpec `json:"spec,omitempty"`
	// status is what is.
	// +optional
	Status CredentialStatus `json:"status,omitempty"`
}

// ServiceTokenList is a list of ServiceTokens.
//
// +kubebuilder:object:root=true
type ServiceTokenList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ServiceToken `json:"items"`
}

// APIKey is a credential for a program of a person or a partner: an 8-character
// public prefix, a dot, and a random part with a checksum.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=apikeys,shortName=akey,categories=mintmark
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Version",type=integer,JSONPath=`.status.currentVersion`
// +kubebuilder:printcolumn:name="Next Rotation",type=string,JSONPath=`.status.nextRotation`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.status.expires`
// +kubebuilder:printcolumn:name="Last Used",type=string,JSONPath=`.status.lastUsed`
// +kubebuilder:printcolumn:name="Class",type=string,priority=1,JSONPath=`.spec.credentialClassName`
// +kubebuilder:printcolumn:name="Secret",type=string,priority=1,JSONPath=`.status.secretName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type APIKey struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what is wanted.
	// +optional
	// +kubebuilder:default={}
	Spec CredentialSpec `json:"spec,omitempty"`
	// status is what is.
	// +optional
	Status CredentialStatus `json:"status,omitempty"`
}

// APIKeyList is a list of APIKeys.
//
// +kubebuilder:object:root=true
type APIKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []APIKey `json:"items"`
}
