{{- define "bucketwarden.selector" -}}
app.kubernetes.io/name: bucketwarden
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bucketwarden.labels" -}}
{{ include "bucketwarden.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default (printf "v%s" .Chart.Version) | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* Of objects without a namespace: where a seed is the garden's runtime cluster too, Gardener
       renders the chart there twice. */}}
{{- define "bucketwarden.clusterName" -}}
{{ .Release.Name }}{{ if eq (toString ((.Values.gardener).runtimeCluster).enabled) "true" }}-garden{{ end }}
{{- end }}

{{- /* JSON. Helm would merge a default of the value with what is set, so it has none. */}}
{{- define "bucketwarden.types" -}}
{{ .Values.types | default (dict "aws" "s3" "s3" "s3" "S3" "s3" "azure" "azure") | toJson }}
{{- end }}

{{- /* Several replicas may run: all but one wait for the lease, or there is nothing to wait for. */}}
{{- define "bucketwarden.replicable" -}}
{{- if or .Values.leaderElection.enabled (not .Values.controllers) }}true{{ end }}
{{- end }}

{{- /* A certificate that the daemon keeps itself, with the caBundle. */}}
{{- define "bucketwarden.selfManaged" -}}
{{- if and .Values.webhook.enabled (not .Values.webhook.certificate.secretName) }}true{{ end }}
{{- end }}
