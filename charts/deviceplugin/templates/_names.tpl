{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- define "deviceplugin.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "deviceplugin.fullname" -}}
{{- $name := include "deviceplugin.name" . -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $both | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "deviceplugin.account" -}}
{{- .Values.serviceAccount.name | default (include "deviceplugin.fullname" .) -}}
{{- end -}}

{{- /* What never changes of a release: a DaemonSet's selector cannot be edited. */ -}}
{{- define "deviceplugin.selector" -}}
app.kubernetes.io/name: {{ include "deviceplugin.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "deviceplugin.labels" -}}
{{ include "deviceplugin.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}
