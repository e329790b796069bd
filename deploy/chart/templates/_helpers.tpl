{{- /* Of all objects with a namespace. */}}
{{- define "bucketwarden.name" -}}
{{ .Values.fullnameOverride | default .Release.Name }}
{{- end }}

{{- /* Of objects without a namespace. A name has no dot unless it is that of its namespace too, and a namespace never has
       one, so that two releases in a cluster never share it. */}}
{{- define "bucketwarden.clusterName" -}}
{{- $name := include "bucketwarden.name" . -}}
{{ $name }}{{ if ne $name .Release.Namespace }}.{{ .Release.Namespace }}{{ end }}
{{- end }}

{{- define "bucketwarden.selector" -}}
app.kubernetes.io/name: bucketwarden
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bucketwarden.labels" -}}
{{ include "bucketwarden.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default (printf "v%s" .Chart.Version) | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* There is a webhook. Who only observes decides nothing. */}}
{{- define "bucketwarden.webhook" -}}
{{- if and .Values.webhook.enabled (not .Values.observe) }}true{{ end }}
{{- end }}

{{- /* JSON. Helm would merge a default of the value with what is set, so it has none. */}}
{{- define "bucketwarden.types" -}}
{{ .Values.types | default (dict "aws" "s3" "s3" "s3" "S3" "s3" "azure" "azure") | toJson }}
{{- end }}

{{- /* JSON. An object without a class is of class shoot. */}}
{{- define "bucketwarden.classes" -}}
{{- $classes := splitList "," .Values.class }}
{{- if has "shoot" $classes }}{{ $classes = append $classes "" }}{{ end }}
{{- toJson $classes }}
{{- end }}

{{- /* Several replicas may run: all but one wait for the lease, or there is nothing to wait for. */}}
{{- define "bucketwarden.replicable" -}}
{{- if or .Values.leaderElection.enabled (not .Values.controllers) }}true{{ end }}
{{- end }}

{{- /* all, daemon or webhookConfiguration: gardener-operator renders the admission of an Extension once for the runtime
       cluster and once for the virtual garden, where it names a ServiceAccount
       (gardener/gardener pkg/operator/controller/extension/extension/admission/admission.go). */}}
{{- define "bucketwarden.install" -}}
{{- $virtual := (.Values.gardener).virtualCluster }}
{{- if .Values.install }}{{ .Values.install }}
{{- else if not (and $virtual (eq .Values.webhook.cluster "garden")) }}all
{{- else if ($virtual).serviceAccount }}webhookConfiguration
{{- else }}daemon
{{- end }}
{{- end }}

{{- define "bucketwarden.installsDaemon" -}}
{{- if ne (include "bucketwarden.install" .) "webhookConfiguration" }}true{{ end }}
{{- end }}

{{- define "bucketwarden.installsWebhooks" -}}
{{- if and (include "bucketwarden.webhook" .) (ne (include "bucketwarden.install" .) "daemon") }}true{{ end }}
{{- end }}

{{- /* A certificate that the daemon keeps itself, with the caBundles. */}}
{{- define "bucketwarden.selfManaged" -}}
{{- if and (include "bucketwarden.webhook" .) (not .Values.webhook.certificate.secretName) }}true{{ end }}
{{- end }}

{{- /* The caBundles come from the daemon, or from somebody else such as cert-manager, and not from here. */}}
{{- define "bucketwarden.caInjected" -}}
{{- if or (include "bucketwarden.selfManaged" .) (not .Values.webhook.certificate.caBundle) }}true{{ end }}
{{- end }}

{{- /* The ValidatingAdmissionPolicy is installed, and ahead of it the MutatingWebhookConfiguration. */}}
{{- define "bucketwarden.policy" -}}
{{- if and .Values.admissionPolicy.enabled (not .Values.observe) (eq .Values.webhook.cluster "seed") (include "bucketwarden.installsDaemon" .) }}true{{ end }}
{{- end }}
{{- define "bucketwarden.mutating" -}}
{{- if and (include "bucketwarden.policy" .) (include "bucketwarden.installsWebhooks" .) }}true{{ end }}
{{- end }}

{{- /* Binds the Role of the release. */}}
{{- define "bucketwarden.roleBinding" }}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "bucketwarden.name" . }}
  namespace: {{ .Release.Namespace }}
  labels: {{- include "bucketwarden.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "bucketwarden.name" . }}
subjects:
- kind: ServiceAccount
  name: {{ include "bucketwarden.name" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
