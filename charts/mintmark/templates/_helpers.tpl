{{/* Labels of every object. Call with (list . component); component may be empty. */}}
{{- define "mintmark.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: mintmark
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels that select the pods of a component. They are fixed: there is one installation per cluster. */}}
{{- define "mintmark.selectorLabels" -}}
app.kubernetes.io/name: mintmark
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "mintmark.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The namespaces watched, separated by commas; empty for all. The release's own is one of them, for the
administrators' credentials are made there. */}}
{{- define "mintmark.watchNamespaces" -}}
{{- with .Values.watchNamespaces -}}
{{ append . $.Release.Namespace | uniq | sortAlpha | join "," }}
{{- end }}
{{- end }}

{{/* Binds the ClusterRole of a name to an account: in the whole cluster, or in each namespace watched.
Call with (list . role account). */}}
{{- define "mintmark.bindCredentials" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $account := index . 2 -}}
{{- $watched := include "mintmark.watchNamespaces" $root -}}
{{- if $watched }}
{{- range splitList "," $watched }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $role }}
  namespace: {{ . }}
  labels:
    {{- include "mintmark.labels" (list $root "") | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $role }}
subjects:
- kind: ServiceAccount
  name: {{ $account }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- else }}
---
{{ include "mintmark.bindCluster" (list $root $role $account) }}
{{- end }}
{{- end }}

{{- define "mintmark.bindCluster" -}}
{{- $root := index . 0 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ index . 1 }}
  labels:
    {{- include "mintmark.labels" (list $root "") | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ index . 1 }}
subjects:
- kind: ServiceAccount
  name: {{ index . 2 }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}

{{/* Binds the Role of an account, which has its name, in the release's namespace. Call with (list . account). */}}
{{- define "mintmark.bindOwn" -}}
{{- $root := index . 0 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "mintmark.labels" (list $root "") | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ index . 1 }}
subjects:
- kind: ServiceAccount
  name: {{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}

{{/* What the pods of both Deployments have in common: where they run. Call with (list . component values). */}}
{{- define "mintmark.scheduling" -}}
{{- $component := index . 1 -}}
{{- with index . 2 -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- with .topologySpreadConstraints }}
{{ toYaml . }}
{{- else }}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "mintmark.selectorLabels" $component | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fails where another Mintmark is installed: names are fixed, and two controllers would fight over every credential. */}}
{{- define "mintmark.refuseSecondInstallation" -}}
{{- with lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "mintmark-controller" -}}
{{- $annotations := .metadata.annotations | default dict -}}
{{- $name := index $annotations "meta.helm.sh/release-name" | default "" -}}
{{- $namespace := index $annotations "meta.helm.sh/release-namespace" | default "" -}}
{{- if not $name -}}
{{- fail "Mintmark is installed in this cluster already, not by Helm (ClusterRole mintmark-controller exists). There is one installation per cluster: uninstall that one first." -}}
{{- else if or (ne $name $.Release.Name) (ne $namespace $.Release.Namespace) -}}
{{- fail (printf "Mintmark is installed in this cluster already, by release %s in namespace %s. There is one installation per cluster: upgrade that release (helm upgrade %s --namespace %s), or uninstall it first." $name $namespace $name $namespace) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Bytes of a size such as 2Gi, which the schema has checked. */}}
{{- define "mintmark.bytes" -}}
{{- $powers := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mul (regexFind "^[0-9]+" .) (index $powers (regexFind "[A-Za-z]*$" .)) -}}
{{- end }}

{{/* Fails where the public Service would have one port twice. */}}
{{- define "mintmark.checkPorts" -}}
{{- with .Values.server -}}
{{- if and .grpc.enabled (eq (int .service.port) (int .service.grpcPort)) -}}
{{- fail (printf "server.service.port and server.service.grpcPort are both %d: choose another for one of them, or set server.grpc.enabled=false." (int .service.port)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Fails where what is said of the database and the audit log cannot work together. */}}
{{- define "mintmark.checkDatabase" -}}
{{- $spool := .Values.audit.spool -}}
{{- if and .Values.database.sqlite.enabled .Values.database.existingSecret -}}
{{- fail "database.existingSecret and database.sqlite.enabled: choose one." -}}
{{- end -}}
{{- if and .Values.database.sqlite.enabled (gt (int .Values.server.replicas) 1) -}}
{{- fail (printf "database.sqlite.enabled is for one server, and server.replicas is %d: set server.replicas=1, or use PostgreSQL (database.existingSecret)." (int .Values.server.replicas)) -}}
{{- end -}}
{{- if and (ne .Values.audit.overflow "continue") (not (or .Values.database.existingSecret .Values.database.sqlite.enabled)) -}}
{{- fail "audit.overflow: deny is for a database: set database.existingSecret or database.sqlite.enabled." -}}
{{- end -}}
{{- with .Values.audit.log -}}
{{- if and (ne . "stdout") (not (and (or $.Values.database.existingSecret $.Values.database.sqlite.enabled) (hasPrefix "/var/lib/mintmark/" .))) -}}
{{- fail (printf "audit.log: %s is on no volume of the server, whose root is read-only: set stdout, or, where there is a database, a file in /var/lib/mintmark." .) -}}
{{- end -}}
{{- end -}}
{{- with .Values.audit.otlp -}}
{{- if and (not .endpoint) (or .existingSecret .caKey) -}}
{{- fail "audit.otlp: there is no receiver: set audit.otlp.endpoint." -}}
{{- end -}}
{{- if and .caKey (not .existingSecret) -}}
{{- fail "audit.otlp.caKey is a key of audit.otlp.existingSecret: set that too." -}}
{{- end -}}
{{- end -}}
{{- if $spool.persistence.enabled -}}
{{- if .Values.database.sqlite.enabled -}}
{{- fail "audit.spool.persistence.enabled is for PostgreSQL: with database.sqlite.enabled the spool is on the volume of the database already." -}}
{{- end -}}
{{- if not .Values.database.existingSecret -}}
{{- fail "audit.spool.persistence.enabled: there is nothing to keep without a database: set database.existingSecret." -}}
{{- end -}}
{{- if le (include "mintmark.bytes" $spool.persistence.size | int64) (int64 $spool.maxBytes) -}}
{{- fail (printf "audit.spool.persistence.size %s has no room for audit.spool.maxBytes %d: make the volume larger, or the spool smaller." $spool.persistence.size (int64 $spool.maxBytes)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Annotations of a class: call with (list . served). Kept, for credentials outlive the release and live under it. */}}
{{- define "mintmark.classAnnotations" -}}
helm.sh/resource-policy: keep
{{- if not (index . 1) }}
helm.sh/hook: post-install,post-upgrade
helm.sh/hook-delete-policy: hook-failed
meta.helm.sh/release-name: {{ (index . 0).Release.Name }}
meta.helm.sh/release-namespace: {{ (index . 0).Release.Namespace }}
{{- end }}
{{- end }}

{{/* The objects beside a Deployment: the Service of its metrics and its PodDisruptionBudget. Call with
(list . component values). */}}
{{- define "mintmark.companions" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $budget := (index . 2).podDisruptionBudget }}
---
apiVersion: v1
kind: Service
metadata:
  name: mintmark-{{ $component }}-metrics
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "mintmark.labels" (list $root $component) | nindent 4 }}
    mintmark.dev/metrics: "true"
spec:
  clusterIP: None
  selector:
    {{- include "mintmark.selectorLabels" $component | nindent 4 }}
  ports:
  - name: metrics
    port: 8080
    targetPort: metrics
{{- if $budget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: mintmark-{{ $component }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "mintmark.labels" (list $root $component) | nindent 4 }}
spec:
  maxUnavailable: {{ $budget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "mintmark.selectorLabels" $component | nindent 6 }}
{{- end }}
{{- end }}
