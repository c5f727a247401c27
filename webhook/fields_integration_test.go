package webhook_test

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// mistake is a spec with something wrong in it, and what its author should read.
type mistake struct {
	// spec in YAML, but for what the test adds to make the rest of it right.
	spec string
	// field is the path the error names, and says what it says of it.
	field, says string
}

// credentialMistakes has an entry for each field of CredentialSpec;
// TestEveryFieldHasAMistake sees to that.
var credentialMistakes = map[string]mistake{
	"a class that does not exist": {`credentialClassName: nowhere`, "spec.credentialClassName", "name one that exists (kubectl get credentialclasses)"},
	"a class name too long":       {`credentialClassName: ` + strings.Repeat("x", 254), "spec.credentialClassName", "may not be more than 253"},
	"a description too long":      {`description: ` + strings.Repeat("x", 1025), "spec.description", "may not be more than 1024"},
	"an owner too long":           {`owner: ` + strings.Repeat("x", 254), "spec.owner", "may not be more than 253"},
	"metadata that is no text":    {`metadata: {a: [b]}`, "spec.metadata.a", "must be of type string"},
	"a metadata key too long":     {`metadata: {` + strings.Repeat("k", 129) + `: v}`, "spec.metadata", "at most 128 characters"},
	"a permission with a space":   {`permissions: ["deploy write"]`, "spec.permissions[0]", "write a name, resource:action, or a wildcard at the end such as deploy:*"},
	"a wildcard in the middle":    {`permissions: ["a:*:b"]`, "spec.permissions[0]", "wildcard at the end"},
	"a permission twice":          {`permissions: [a, a]`, "spec.permissions[1]", "Duplicate value"},
	"too many permissions":        {`permissions: [` + numbered(257) + `]`, "spec.permissions", "must have at most 256 items"},
	"10,000 permissions":          {`permissions: [` + numbered(10000) + `]`, "spec.permissions", "must have at most 256 items"},
	"permissions that are text":   {`permissions: deploy`, "spec.permissions", "must be of type array"},
	"a permission over the ceiling": {`permissions: ["mintmark:tokens"]`, "spec.permissions[0]",
		`does not allow "mintmark:tokens" in this namespace: leave it out, or choose a class that does`},
	"the star, which includes what the ceiling takes out": {`permissions: ["*"]`, "spec.permissions[0]", "choose a class that does"},
	"an empty role":              {`roles: [""]`, "spec.roles[0]", "should be at least 1 chars long"},
	"admin under a common class": {`admin: true`, "spec.admin", "does not allow admin credentials in this namespace"},
	"admin and permissions":      {`{admin: true, permissions: [a]}`, "spec.admin", "leave permissions and roles empty"},
	"admin that is text":         {`admin: "yes"`, "spec.admin", "must be of type boolean"},
	"an attribute key too long":  {`attributes: {` + strings.Repeat("k", 65) + `: v}`, "spec.attributes", "at most 64 characters"},
	"a ttl that is no duration":  {`ttl: soon`, "spec.ttl", "write it like 90d, 12h or 1d12h"},
	"a ttl too short":            {`ttl: 1s`, "spec.ttl", "must be at least 1m0s"},
	"an end that is no time":     {`expiresAt: tomorrow`, "spec.expiresAt", "must be of type date-time"},
	"an end in lower case":       {`expiresAt: "2031-01-01t00:00:00z"`, "spec.expiresAt", "RFC 3339"},

	"an age that is no duration":          {`rotation: {every: often}`, "spec.rotation.every", "write it like 90d"},
	"a threshold below one":               {`rotation: {highUsage: {threshold: 0}}`, "spec.rotation.highUsage.threshold", "greater than or equal to 1"},
	"an age of high usage that never is":  {`rotation: {highUsage: {every: Never}}`, "spec.rotation.highUsage.every", "must end"},
	"a schedule that is no cron":          {`rotation: {schedule: "at noon"}`, "spec.rotation.schedule", "five fields"},
	"a time zone in the schedule":         {`rotation: {schedule: "TZ=UTC 0 3 * * *"}`, "spec.rotation.schedule", "write the time zone into timeZone"},
	"a time zone that does not exist":     {`rotation: {schedule: "0 3 * * *", timeZone: Mars/Olympus}`, "spec.rotation.timeZone", "Europe/Berlin"},
	"a window that is no cron":            {`rotation: {windows: [{schedule: x, duration: 1h}]}`, "spec.rotation.windows[0].schedule", "five fields"},
	"a window without duration":           {`rotation: {windows: [{schedule: "0 2 * * *"}]}`, "spec.rotation.windows[0].duration", "Required value"},
	"a window of no length":               {`rotation: {windows: [{schedule: "0 2 * * *", duration: 0s}]}`, "spec.rotation.windows[0].duration", "at least"},
	"a window in no zone":                 {`rotation: {windows: [{schedule: "0 2 * * *", duration: 1h, timeZone: X}]}`, "spec.rotation.windows[0].timeZone", "Europe/Berlin"},
	"10,000 windows":                      {`rotation: {windows: [` + strings.Repeat(`{schedule: "0 2 * * *", duration: 1h},`, 10000) + `]}`, "spec.rotation.windows", "must have at most 16 items"},
	"an overlap below the class's":        {`rotation: {overlap: 1m}`, "spec.rotation.overlap", "asks for at least 1h: give more, or retire: Immediately"},
	"an overlap that does not end":        {`rotation: {overlap: Never}`, "spec.rotation.overlap", "must end"},
	"a longest overlap below the overlap": {`rotation: {overlap: 2d, maxOverlap: 1d}`, "spec.rotation.maxOverlap", "is shorter than the overlap of 2d"},
	"an unknown way to retire":            {`rotation: {retire: Never}`, "spec.rotation.retire", `supported values: "WhenUnused", "AfterOverlap", "Immediately"`},
	"suspend that is text":                {`rotation: {suspend: "on"}`, "spec.rotation.suspend", "must be of type boolean"},

	"a Secret of another namespace":    {`secret: {name: other/token}`, "spec.secret.name", "a Secret of another namespace cannot be named"},
	"a Secret's namespace":             {`secret: {name: token, namespace: other}`, "spec.secret.namespace", "unknown field"},
	"an unknown policy for conflicts":  {`secret: {conflictPolicy: Overwrite}`, "spec.secret.conflictPolicy", `supported values: "Refuse", "Adopt"`},
	"adoption where it is not allowed": {`secret: {conflictPolicy: Adopt}`, "spec.secret.conflictPolicy", "does not allow Adopt in this namespace: use Refuse"},
	"a Secret's type":                  {`secret: {template: {type: kubernetes.io/service-account-token}}`, "spec.secret.template.type", "unknown field"},
	"a reserved annotation": {`secret: {template: {metadata: {annotations: {kubernetes.io/service-account.name: default}}}}`,
		"spec.secret.template.metadata.annotations[kubernetes.io/service-account.name]", "is reserved: choose a name outside kubernetes.io"},
	"a reserved label": {`secret: {template: {metadata: {labels: {mintmark.dev/managed: "false"}}}}`,
		"spec.secret.template.metadata.labels[mintmark.dev/managed]", "is reserved"},
	"a label that is none":             {`secret: {template: {metadata: {labels: {a: "b c"}}}}`, "spec.secret.template.metadata.labels[a]", "consist of alphanumeric characters"},
	"a Secret key with a slash":        {`secret: {template: {data: {a/b: x}}}`, "spec.secret.template.data", "letters, digits, -, _ and ."},
	"a Secret key that is Mintmark's":  {`secret: {template: {data: {token: x}}}`, "spec.secret.template.data", "Mintmark's own: choose another key"},
	"a template that cannot be parsed": {`secret: {template: {data: {a: "{{ .token"}}}`, "spec.secret.template.data[a]", "not a template"},
	"a template over what is unknown":  {`secret: {template: {data: {a: "{{ .password }}"}}}`, "spec.secret.template.data[a]", "password"},
	"a template that loops":            {`secret: {template: {data: {a: "{{ range .token }}x{{ end }}"}}}`, "spec.secret.template.data[a]", "not available"},

	"nothing to restart":               {`restart: {}`, "spec.restart", "name workloads, give a selector, or say consumers: true"},
	"no consumers to restart either":   {`restart: {consumers: false}`, "spec.restart", "or say consumers: true"},
	"a restart window that never is":   {`restart: {consumers: true, windows: [{schedule: "0 0 30 2 *", duration: 1h}]}`, "spec.restart.windows[0].schedule", "never holds"},
	"a restart window of no length":    {`restart: {consumers: true, windows: [{schedule: "0 0 * * *", duration: 1s}]}`, "spec.restart.windows[0].duration", "at least 1m"},
	"a restart window in no zone":      {`restart: {consumers: true, windows: [{schedule: "0 0 * * *", duration: 1h, timeZone: Mars/Olympus}]}`, "spec.restart.windows[0].timeZone", "Mars/Olympus"},
	"consumers that are no yes or no":  {`restart: {consumers: sometimes}`, "spec.restart.consumers", "must be of type boolean"},
	"a rollout that may take no time":  {`restart: {consumers: true, timeout: 1s}`, "spec.restart.timeout", "at least 1m"},
	"a rollout that may take for ever": {`restart: {consumers: true, timeout: Never}`, "spec.restart.timeout", "must end"},
	"a workload that cannot restart":   {`restart: {workloads: [{kind: Job, name: x}]}`, "spec.restart.workloads[0].kind", `supported values: "Deployment", "StatefulSet", "DaemonSet"`},
	"a workload without a name":        {`restart: {workloads: [{kind: Deployment}]}`, "spec.restart.workloads[0].name", "Required value"},
	"a selector of everything":         {`restart: {selector: {}}`, "spec.restart.selector", "selects everything: name labels"},
	"a selector with no such operator": {`restart: {selector: {matchExpressions: [{key: a, operator: Like}]}}`, "spec.restart.selector", "Like"},
	"an address without its network":   {`allowedCIDRs: [10.0.0.1]`, "spec.allowedCIDRs[0]", "write it like 10.0.0.0/8"},
	"no requests":                      {`rateLimit: {requests: 0}`, "spec.rateLimit.requests", "greater than or equal to 1"},
	"a rate without its requests":      {`rateLimit: {per: 1s}`, "spec.rateLimit.requests", "Required value"},
	"a rate per nothing":               {`rateLimit: {requests: 1, per: Never}`, "spec.rateLimit.per", "give a period such as 1s"},
	"a burst below one":                {`rateLimit: {requests: 1, burst: -1}`, "spec.rateLimit.burst", "greater than or equal to 1"},
	"a token that lives too long":      {`jwt: {ttl: 2h}`, "spec.jwt.ttl", "must be from 1m to 60m"},
	"an empty audience":                {`jwt: {audiences: [""]}`, "spec.jwt.audiences[0]", "should be at least 1 chars long"},

	"a digest in upper case":             {`external: {sha256: [` + strings.Repeat("AB", 32) + `]}`, "spec.external.sha256", "64 lowercase hexadecimal digits"},
	"the plaintext in place of a digest": {`external: {sha256: [sk_secret]}`, "spec.external.sha256", "64 lowercase hexadecimal digits"},
	"one digest twice":                   {`external: {sha256: [` + digestA + `, ` + digestA + `]}`, "spec.external.sha256", "must differ"},
	"external where it is not allowed":   {`external: {sha256: [` + digestA + `]}`, "spec.external", "does not allow credentials declared by their SHA-256"},
	"external and a Secret":              {`{external: {sha256: [` + digestA + `]}, secret: {name: x}}`, "spec.secret", "leave secret out"},
	"a revocation without reason":        {`revoked: {versions: [1]}`, "spec.revoked.reason", "Required value"},
	"a version below one":                {`revoked: {reason: x, versions: [0]}`, "spec.revoked.versions[0]", "greater than or equal to 1"},
	"a moment without its fraction":      {`revoked: {reason: x, requestedAt: "2031-01-01T00:00:00Z"}`, "spec.revoked.requestedAt", "[.][0-9]{6}"},
	"a field that does not exist":        {`permission: [a]`, "spec.permission", "unknown field"},
}

// classMistakes does the same for CredentialClassSpec.
var classMistakes = map[string]mistake{
	"an environment in upper case":   {`environment: Live`, "spec.environment", "use lowercase letters and digits"},
	"a checksum that is text":        {`checksum: "on"`, "spec.checksum", "must be of type boolean"},
	"a ttl that is no duration":      {`defaults: {ttl: long}`, "spec.defaults.ttl", "write it like 90d"},
	"an age that is too low":         {`defaults: {rotation: {every: 1s}}`, "spec.defaults.rotation.every", "must be at least 1m0s"},
	"an overlap below the least":     {`{minOverlap: 2d, defaults: {rotation: {overlap: 1d}}}`, "spec.defaults.rotation.overlap", "is shorter than minOverlap"},
	"an unknown way to retire":       {`defaults: {rotation: {retire: Later}}`, "spec.defaults.rotation.retire", "supported values"},
	"a longest overlap too short":    {`defaults: {rotation: {maxOverlap: 1h}}`, "spec.defaults.rotation.maxOverlap", "is shorter than overlap"},
	"a token that lives too long":    {`defaults: {jwt: {ttl: 2h}}`, "spec.defaults.jwt.ttl", "must be from 1m to 60m"},
	"an empty audience":              {`defaults: {jwt: {audiences: [""]}}`, "spec.defaults.jwt.audiences[0]", "at least 1 chars long"},
	"a least overlap without end":    {`minOverlap: Never`, "spec.minOverlap", "must end"},
	"a selector that cannot be read": {`rules: [{namespaceSelector: {matchLabels: {"a b": c}}}]`, "spec.rules[0].namespaceSelector", "a b"},
	"a permission with a space":      {`rules: [{permissions: ["a b"]}]`, "spec.rules[0].permissions[0]", "wildcard at the end"},
	"an exception with a space":      {`rules: [{except: ["a b"]}]`, "spec.rules[0].except[0]", "wildcard at the end"},
	"admin that is text":             {`rules: [{admin: "yes"}]`, "spec.rules[0].admin", "must be of type boolean"},
	"external that is text":          {`rules: [{external: "yes"}]`, "spec.rules[0].external", "must be of type boolean"},
	"adoption that is text":          {`rules: [{adoption: "yes"}]`, "spec.rules[0].adoption", "must be of type boolean"},
	"an attribute without a key":     {`rules: [{attributes: [{values: [x]}]}]`, "spec.rules[0].attributes[0].key", "Required value"},
	"an attribute twice":             {`rules: [{attributes: [{key: a}, {key: a}]}]`, "spec.rules[0].attributes[1]", "Duplicate value"},
	"a value too long":               {`rules: [{attributes: [{key: a, values: [` + strings.Repeat("x", 1025) + `]}]}]`, "spec.rules[0].attributes[0].values[0]", "1024"},
	"a longest ttl of no length":     {`rules: [{maxTTL: 0s}]`, "spec.rules[0].maxTTL", "must be at least 1m0s"},
	"a pattern that is none":         {`externalFormat: {pattern: "("}`, "spec.externalFormat.pattern", "not a regular expression (RE2 syntax)"},
	"values that may be short":       {`externalFormat: {pattern: ".*", minLength: 8}`, "spec.externalFormat.minLength", "greater than or equal to 20"},
	"an unknown algorithm":           {`jwtAlgorithm: none`, "spec.jwtAlgorithm", `supported values: "ES256"`},
	"too long a history":             {`historyLimit: 100`, "spec.historyLimit", "less than or equal to 20"},
	"an unknown action":              {`expired: {action: Burn}`, "spec.expired.action", `supported values: "Deactivate", "Delete"`},
	"an action that is never taken":  {`expired: {after: Never}`, "spec.expired.after", "must end"},
}

// revocationMistakes does the same for RevocationSpec.
var revocationMistakes = map[string]mistake{
	"no reason":                  {`all: true`, "spec.reason", "Required value"},
	"an empty selection":         {`reason: x`, "spec", "say what to revoke"},
	"all and a part":             {`{reason: x, all: true, kinds: [APIKey]}`, "spec", "or all: true and none of them"},
	"an unknown kind":            {`{reason: x, kinds: [Secret]}`, "spec.kinds[0]", `supported values: "ServiceToken", "APIKey"`},
	"a namespace without a name": {`{reason: x, namespaces: [""]}`, "spec.namespaces[0]", "at least 1 chars long"},
	"a selector of everything":   {`{reason: x, selector: {}}`, "spec.selector", "say all: true if that is meant"},
	"a selector that selects nothing": {`{reason: x, selector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}`, "spec.selector",
		"operator In or NotIn and values"},
	"an unknown way to replace": {`{reason: x, all: true, replace: Soon}`, "spec.replace", `supported values: "Never", "Immediately"`},
	"all that is text":          {`{reason: x, all: "yes"}`, "spec.all", "must be of type boolean"},
}

func TestMistakesAreExplained(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	for kind, mistakes := range map[string]map[string]mistake{
		"ServiceToken": credentialMistakes, "APIKey": credentialMistakes, "CredentialClass": classMistakes, "Revocation": revocationMistakes,
	} {
		for _, sentence := range slices.Sorted(maps.Keys(mistakes)) {
			m := mistakes[sentence]
			t.Run(kind+" with "+sentence, func(t *testing.T) {
				var spec map[string]any
				if err := yaml.Unmarshal([]byte(m.spec), &spec); err != nil {
					t.Fatal(err)
				}
				object := &unstructured.Unstructured{Object: map[string]any{
					"apiVersion": "mintmark.dev/v1alpha1", "kind": kind, "metadata": map[string]any{"name": "mistaken"}, "spec": spec,
				}}
				if strings.Contains("ServiceToken APIKey", kind) {
					object.SetNamespace(namespace)
				}
				err := in.admin.Create(t.Context(), object, client.DryRunAll, client.FieldValidation(metav1.FieldValidationStrict))
				expect(t, err, m.field, m.says)
				if err != nil && strings.Contains(err.Error(), "sk_secret") {
					t.Errorf("the error repeats a plaintext: %v", err)
				}
				if err != nil && testing.Verbose() {
					t.Log(shorten(err.Error()))
				}
			})
		}
	}
}

// What is stored and cannot be read by a Go client keeps every client from
// reading the list it is in, so the schema alone must refuse it: an update that
// only revokes passes no webhook, and there may be none.
func TestTheSchemaRefusesWhatCouldNotBeRead(t *testing.T) {
	in := cluster(t)
	namespace := in.namespace(t, nil)
	credential := token(namespace, "ci", v1alpha1.CredentialSpec{})
	in.create(t, credential)
	for _, spec := range []string{
		`expiresAt: "2031-01-01t00:00:00Z"`, `expiresAt: "2031-01-01T00:00:00z"`, `expiresAt: "2031-02-30T00:00:00Z"`,
		`expiresAt: "2031-01-01T24:00:00Z"`, `expiresAt: "2031-01-01T00:00:00+99:00"`, `expiresAt: "2031-01-01T00:00:00x5Z"`,
		`expiresAt: "12031-01-01T00:00:00Z"`, `expiresAt: "2031-01-01T00:00:60Z"`, `expiresAt: "2031-01-01T00:00:00"`,
		`revoked: {reason: x, requestedAt: "2031-01-01t00:00:00.000000Z"}`, `revoked: {reason: x, requestedAt: "2031-02-30T00:00:00.000000Z"}`,
		`revoked: {reason: x, requestedAt: "2031-01-01T24:00:00.000000Z"}`, `revoked: {reason: x, requestedAt: "2031-01-01T00:00:00.000000+24:00"}`,
		`revoked: {reason: x, requestedAt: "2031-01-01T00:00:00Z"}`, `revoked: {reason: x, requestedAt: "2031-13-01T00:00:00.000000Z"}`,
		`revoked: {reason: x, versions: [1e30]}`, `revoked: {reason: x, versions: [9223372036854775808]}`, `revoked: {reason: x, versions: [1.5]}`,
		`rotation: {highUsage: {threshold: 1e30}}`, `rotation: {highUsage: {threshold: 9223372036854775808}}`, `rateLimit: {requests: 1e30}`,
	} {
		t.Run(spec, func(t *testing.T) {
			patch, err := yaml.YAMLToJSON([]byte("spec: {" + spec + "}"))
			if err != nil {
				t.Fatal(err)
			}
			err = in.admin.Patch(t.Context(), credential.DeepCopy(), client.RawPatch("application/merge-patch+json", patch))
			if err == nil {
				t.Fatalf("stored: %s", patch)
			}
			if strings.Contains(err.Error(), "admission webhook") {
				t.Errorf("refused by the webhook alone: %v", err)
			}
		})
	}
	if err := in.admin.List(t.Context(), &v1alpha1.ServiceTokenList{}, client.InNamespace(namespace)); err != nil {
		t.Errorf("the list cannot be read any more: %v", err)
	}
}

// TestEveryFieldHasAMistake holds the tables against the types.
func TestEveryFieldHasAMistake(t *testing.T) {
	for _, test := range []struct {
		spec     any
		mistakes map[string]mistake
	}{
		{v1alpha1.CredentialSpec{}, credentialMistakes},
		{v1alpha1.CredentialClassSpec{}, classMistakes},
		{v1alpha1.RevocationSpec{}, revocationMistakes},
	} {
		var tried []string
		for _, m := range test.mistakes {
			tried = append(tried, regexp.MustCompile(`\[[^\]]*\]`).ReplaceAllString(m.field, ""))
		}
		for _, leaf := range leaves("spec", reflect.TypeOf(test.spec)) {
			if !slices.ContainsFunc(tried, func(field string) bool { return field == leaf || strings.HasPrefix(field, leaf+".") }) {
				t.Errorf("%T: no mistake is made in %s", test.spec, leaf)
			}
		}
	}
}

// leaves are the paths of the fields of a type that are no structs of ours.
func leaves(path string, typ reflect.Type) []string {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || typ.PkgPath() != reflect.TypeOf(v1alpha1.CredentialSpec{}).PkgPath() {
		return []string{path}
	}
	var all []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		all = append(all, leaves(path+"."+name, typ.Field(i).Type)...)
	}
	return all
}

func numbered(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("p%d", i)
	}
	return strings.Join(names, ", ")
}

func shorten(text string) string {
	if len(text) > 600 {
		return text[:600] + "..."
	}
	return text
}
