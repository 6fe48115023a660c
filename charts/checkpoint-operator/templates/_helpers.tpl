{{- /* A text as the value of a label: at most 63 characters, no build metadata's "+", a letter or digit at the end. */}}
{{- define "checkpoint-operator.labelValue" -}}
{{- regexReplaceAll "[^A-Za-z0-9._-]" . "_" | trunc 63 | regexFind "^.*[A-Za-z0-9]" -}}
{{- end }}

{{- /* A name that leaves room for an ending. What is cut off counts all the same, so that no two become one. */}}
{{- define "checkpoint-operator.shortened" -}}
{{- if gt (len .) 50 -}}
{{- printf "%s-%s" (trunc 43 . | trimSuffix "-") (sha256sum . | trunc 6) -}}
{{- else -}}
{{- . | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "checkpoint-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 58 | trimSuffix "-" -}}
{{- end }}

{{- define "checkpoint-operator.fullname" -}}
{{- $name := include "checkpoint-operator.name" . -}}
{{- $default := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $default | include "checkpoint-operator.shortened" -}}
{{- end }}

{{- /* Of what belongs to no namespace. One release serves the whole cluster; of those that serve parts there may be many. */}}
{{- define "checkpoint-operator.clusterName" -}}
{{- include "checkpoint-operator.fullname" . -}}
{{- if .Values.watchNamespaces }}-{{ .Release.Namespace }}{{ end -}}
{{- end }}

{{- define "checkpoint-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "checkpoint-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "checkpoint-operator.labels" -}}
{{- include "checkpoint-operator.labelsWith" (list . dict) -}}
{{- end }}

{{- /* Those of every object and some more: what selects pods cannot be changed, the rest can. */}}
{{- define "checkpoint-operator.labelsWith" -}}
{{- $chart := index . 0 -}}
{{- $labels := dict
      "app.kubernetes.io/version" (include "checkpoint-operator.labelValue" $chart.Chart.AppVersion)
      "app.kubernetes.io/managed-by" $chart.Release.Service
      "helm.sh/chart" (printf "%s-%s" $chart.Chart.Name $chart.Chart.Version | include "checkpoint-operator.labelValue") -}}
{{- $selector := include "checkpoint-operator.selectorLabels" $chart | fromYaml -}}
{{- mergeOverwrite $labels ($chart.Values.commonLabels | default dict) (index . 1 | default dict) $selector | toYaml -}}
{{- end }}

{{- define "checkpoint-operator.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "checkpoint-operator.fullname" .) "default") -}}
{{- end }}

{{- define "checkpoint-operator.image" -}}
{{- include "checkpoint-operator.imageOf" (list . .Values.image) -}}
{{- end }}

{{- define "checkpoint-operator.imageOf" -}}
{{- $chart := index . 0 }}{{ $image := index . 1 -}}
{{- with dig "global" "imageRegistry" "" $chart.Values.AsMap | default $image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else -}}
:{{ $image.tag | default (regexReplaceAll "[^A-Za-z0-9._-]" $chart.Chart.AppVersion "_" | trunc 128) }}
{{- end -}}
{{- end }}

{{- /* UID of the namespace kube-system, or empty where Helm cannot ask the cluster. A given UID needs no right to ask. */}}
{{- define "checkpoint-operator.clusterId" -}}
{{- if .Values.clusterId -}}
{{- .Values.clusterId -}}
{{- else -}}
{{- dig "metadata" "uid" "" (lookup "v1" "Namespace" "" "kube-system") -}}
{{- end -}}
{{- end }}

{{- /* "true" when changes that can destroy a run require a right or a confirmation. Where Helm knows only a version, Auto must
       not leave them out in silence. */}}
{{- define "checkpoint-operator.guards" -}}
{{- $mode := .Values.guardrails.mode -}}
{{- if eq $mode "On" -}}
true
{{- else if eq $mode "Auto" -}}
{{- if include "checkpoint-operator.offers" (list . "ValidatingAdmissionPolicy" "1.30.0") -}}
true
{{- else if not (.Capabilities.APIVersions.Has "v1/Pod") -}}
{{- fail (printf "guardrails.mode is Auto, and Helm knows only the version of the cluster, %s, which does not offer ValidatingAdmissionPolicy. Set guardrails.mode to On or Off, or pass the version of your cluster with --kube-version." .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* What a pod gets beside its own image, from the image of the library: its volume, what fills that if anything does,
       where it is mounted, and what goes to the end of PYTHONPATH. Empty when that is switched off. */}}
{{- define "checkpoint-operator.library" -}}
{{- $library := .Values.injection.library -}}
{{- if $library.enabled -}}
{{- $image := include "checkpoint-operator.imageOf" (list . $library.image) -}}
{{- $mounts := semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version | ternary "Image" "EmptyDir" -}}
{{- $name := "checkpoint-operator-library" -}}
{{- $path := "/var/run/checkpoint-operator/library" -}}
mount: {name: {{ $name }}, mountPath: {{ $path }}, readOnly: true}
pythonPath: {{ $path }}/python
{{- if eq ($library.volume | eq "Auto" | ternary $mounts $library.volume) "Image" }}
volume: {name: {{ $name }}, image: {reference: {{ quote $image }}, pullPolicy: {{ $library.image.pullPolicy }}}}
{{- else }}
volume: {name: {{ $name }}, emptyDir: {}}
initContainer:
  name: {{ $name }}
  image: {{ quote $image }}
  imagePullPolicy: {{ $library.image.pullPolicy }}
  command: [/bin/busybox, cp, -R, /python, /packages, {{ $path }}]
  volumeMounts: [{name: {{ $name }}, mountPath: {{ $path }}}]
  {{- with $library.resources }}
  resources: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $library.securityContext }}
  securityContext: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}
{{- end }}

{{- /* A value as an expression in CEL, whose lists and maps would otherwise hold values of one type only. */}}
{{- define "checkpoint-operator.cel" -}}
{{- if kindIs "map" . -}}
dyn({ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }}, {{ end }}{{ toJson $key }}: {{ include "checkpoint-operator.cel" (index $ $key) }}{{ end -}} })
{{- else if kindIs "slice" . -}}
dyn([ {{- range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "checkpoint-operator.cel" $item }}{{ end -}} ])
{{- else -}}
dyn({{ toJson . }})
{{- end -}}
{{- end }}

{{- /* How labelled pods are injected: "Policy", "Webhook", or not at all. On is an earlier name of Policy. */}}
{{- define "checkpoint-operator.injection" -}}
{{- $mode := .Values.injection.mode -}}
{{- if eq $mode "Auto" -}}
{{- include "checkpoint-operator.offers" (list . "MutatingAdmissionPolicy" "1.36.0") | empty | ternary "Webhook" "Policy" -}}
{{- else if ne $mode "Off" -}}
{{- eq $mode "On" | ternary "Policy" $mode -}}
{{- end -}}
{{- end }}

{{- /* "true" when the cluster offers the kind, introduced in that version. Helm knows the kinds of a cluster that it is
       connected to, or that --api-versions lists; otherwise (helm template) only a version, by default its own. */}}
{{- define "checkpoint-operator.offers" -}}
{{- $cluster := (index . 0).Capabilities }}{{ $kind := index . 1 }}{{ $since := index . 2 -}}
{{- if $cluster.APIVersions.Has (printf "admissionregistration.k8s.io/v1/%s" $kind) -}}
true
{{- else if $cluster.APIVersions.Has "v1/Pod" -}}
{{- else if semverCompare (printf ">=%s-0" $since) $cluster.KubeVersion.Version -}}
true
{{- end -}}
{{- end }}
