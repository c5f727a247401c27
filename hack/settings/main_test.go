package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHelpIsRead(t *testing.T) {
	const help = `Usage of mintmark-server:
      --namespace string                  namespace of the installation ($POD_NAMESPACE) (default "mintmark-system")
      --issuer string                     iss of the JWTs (default: https://mintmark-server.NAMESPACE.svc)
      --database-url string               database ($MINTMARK_DATABASE_URL; default: none)
      --kubeconfig file                   kubeconfig file; default: the pod's service account, else $KUBECONFIG
                                          or ~/.kube/config
      --max-staleness duration            how long to go on (default 10m0s)
      --identity-headers stringToString   names, such as id=X (default: X-User-ID, ...) (default [])
  -v, --migrate                           bring the schema up to date
      --rate int                          requests in a second; 0: any number
`
	want := []flag{
		{Name: "namespace", Kind: "string", Usage: "namespace of the installation ($POD_NAMESPACE)", Default: "mintmark-system"},
		{Name: "issuer", Kind: "string", Usage: "iss of the JWTs", Default: "https://mintmark-server.NAMESPACE.svc", Told: true},
		{Name: "database-url", Kind: "string", Usage: "database ($MINTMARK_DATABASE_URL)", Default: "none", Told: true},
		{Name: "kubeconfig", Kind: "file", Usage: "kubeconfig file", Default: "the pod's service account, else $KUBECONFIG or ~/.kube/config", Told: true},
		{Name: "max-staleness", Kind: "duration", Usage: "how long to go on", Default: "10m"},
		{Name: "identity-headers", Kind: "stringToString", Usage: "names, such as id=X", Default: "X-User-ID, ...", Told: true},
		{Name: "migrate", Usage: "bring the schema up to date", Default: "false"},
		{Name: "rate", Kind: "int", Usage: "requests in a second; 0: any number", Default: "0"},
	}
	if diff := cmp.Diff(want, parseFlags(help)); diff != "" {
		t.Errorf("read otherwise (-want +got):\n%s", diff)
	}
}

func TestAFlagIsSetByTheValuesOfItsLineOrItsCondition(t *testing.T) {
	const source = `{{- $values := .Values.server }}
{{- $database := .Values.database }}
        args:
        - --shutdown-delay={{ $values.shutdownDelay }}
        {{- with $values.trustedProxies }}
        - --trusted-proxies={{ join "," . }}
        {{- end }}
        {{- if not $values.grpc.enabled }}
        - --grpc-bind-address=0
        {{- end }}
        {{- with include "mintmark.watchNamespaces" . }}
        - --watch-namespaces={{ . }}
        {{- end }}
        {{- if $database.existingSecret }}
        - --database-url-file=/etc/{{ $database.key }}
        - --database-max-connections={{ $database.maxConnections }}
        {{- else if $database.sqlite.enabled }}
        - --database-url=sqlite:///file
        {{- end }}
        {{- with .Values.management }}
        {{- if .enabled }}
        - --management-namespaces={{ join "," .namespaces }}
        - --management-class={{ .className }}
        {{- end }}
        {{- end }}
        - --leader-elect
`
	want := map[string][]string{
		"shutdown-delay": {"server.shutdownDelay"}, "trusted-proxies": {"server.trustedProxies"}, "grpc-bind-address": {"server.grpc.enabled"},
		"watch-namespaces": {"watchNamespaces"}, "database-url-file": {"database.existingSecret", "database.key"},
		"database-max-connections": {"database.maxConnections"}, "database-url": {"database.sqlite.enabled"},
		"management-namespaces": {"management.namespaces"}, "management-class": {"management.className"},
	}
	if diff := cmp.Diff(want, valuesOfFlags(source)); diff != "" {
		t.Errorf("found others (-want +got):\n%s", diff)
	}
}

func TestAVariableThatNobodyExplainsIsNoticed(t *testing.T) {
	for name, text := range map[string]string{
		"read at once":  `os.Getenv("MINTMARK_X")`,
		"handed over":   `or(getenv("MINTMARK_X"), "x")`,
		"by its name":   `envX = "MINTMARK_X"`,
		"looked up":     `os.LookupEnv("MINTMARK_X")`,
		"by a shortcut": `env("MINTMARK_X")`,
	} {
		found := false
		for _, pattern := range read {
			found = found || pattern.MatchString(text)
		}
		if !found {
			t.Errorf("a variable that is %s is not noticed", name)
		}
	}
}
