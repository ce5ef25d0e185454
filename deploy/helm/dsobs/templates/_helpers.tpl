{{/* The release's name, with dsobs in it. */}}
{{- define "dsobs.fullname" -}}
{{- if contains "dsobs" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-dsobs" (.Release.Name | trunc 44 | trimSuffix "-") }}
{{- end }}
{{- end }}

{{/* Of the vLLM. */}}
{{- define "dsobs.vllm" -}}
{{- if contains "vllm" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-vllm" (.Release.Name | trunc 44 | trimSuffix "-") }}
{{- end }}
{{- end }}

{{- define "dsobs.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What tells apart; never changed by an upgrade. */}}
{{- define "dsobs.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "dsobs.labels" -}}
{{ include "dsobs.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end }}

{{/* "true" where an object of monitoring.coreos.com/v1 is wanted: `enabled` is true, or auto and the cluster knows it. */}}
{{- define "dsobs.wanted" -}}
{{- if kindIs "bool" .enabled }}{{ if .enabled }}true{{ end }}
{{- else if .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) }}true
{{- end }}
{{- end }}

{{/* dsobs.yaml: the settings, and where the cards are read from. */}}
{{- define "dsobs.settings" -}}
{{- $own := dict -}}
{{- if .Values.nvml.enabled -}}
{{- $_ := set $own "gpu" (dict "source" (printf "http://%s-nvml.%s.svc:9941" (include "dsobs.fullname" .) .Release.Namespace)) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.settings)) -}}
{{- end }}

{{/* sizeLimit of the volume of state: what these settings let dsobs keep is under half of it. */}}
{{- define "dsobs.stateLimit" -}}
{{- $state := .Values.settings.state | default dict -}}
{{- $file := (.Values.settings.logs | default dict).file | default dict -}}
{{- $recorder := ternary $state.recorder_max_bytes 67108864 (hasKey $state "recorder_max_bytes") | int64 -}}
{{- $incidents := ternary $state.incident_max_bytes 67108864 (hasKey $state "incident_max_bytes") | int64 -}}
{{- $logs := ternary $file.max_bytes 268435456 (hasKey $file "max_bytes") | int64 -}}
{{- /* Databases and dead letters: 384 MiB. */ -}}
{{- $bytes := mul 2 (add $recorder $incidents $logs 402653184) -}}
{{- mul 256 (add 1 (div $bytes 268435456)) -}}
{{- end }}
