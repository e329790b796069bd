{{- define "bucketwarden.selector" -}}
app.kubernetes.io/name: bucketwarden
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bucketwarden.labels" -}}
{{ include "bucketwarden.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.Version | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* A certificate that the daemon keeps itself, with the caBundle. */}}
{{- define "bucketwarden.selfManaged" -}}
{{- if and .Values.webhook.enabled (not .Values.webhook.certificate.secretName) }}true{{ end }}
{{- end }}
