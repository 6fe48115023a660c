{{- define "checkpoint-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "checkpoint-operator.fullname" -}}
{{- $name := include "checkpoint-operator.name" . -}}
{{- $default := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $default | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "checkpoint-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "checkpoint-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "checkpoint-operator.labels" -}}
{{ include "checkpoint-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "checkpoint-operator.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "checkpoint-operator.fullname" .) "default") -}}
{{- end }}

{{- define "checkpoint-operator.image" -}}
{{- $tag := printf ":%s" (.Values.image.tag | default .Chart.AppVersion) -}}
{{- .Values.image.repository }}{{ .Values.image.digest | empty | ternary $tag (printf "@%s" .Values.image.digest) -}}
{{- end }}

{{- /* UID of the namespace kube-system, or empty where Helm cannot ask the cluster. */}}
{{- define "checkpoint-operator.clusterId" -}}
{{- .Values.clusterId | default (dig "metadata" "uid" "" (lookup "v1" "Namespace" "" "kube-system")) -}}
{{- end }}

{{- /* "true" when dangerous changes need a right or a confirmation. */}}
{{- define "checkpoint-operator.guards" -}}
{{- $offered := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" -}}
{{- if or (eq .Values.guardrails.mode "On") (and (eq .Values.guardrails.mode "Auto") $offered) -}}true{{- end -}}
{{- end }}

{{- /* "true" when labelled pods are injected. */}}
{{- define "checkpoint-operator.injects" -}}
{{- $offered := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
{{- if or (eq .Values.injection.mode "On") (and (eq .Values.injection.mode "Auto") $offered) -}}true{{- end -}}
{{- end }}
