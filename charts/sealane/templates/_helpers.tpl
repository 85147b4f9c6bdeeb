{{/* Name of this release's objects. */}}
{{- define "sealane.name" -}}
{{- if contains "sealane" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-sealane" (.Release.Name | trunc 32 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "sealane.operator" -}}
{{ include "sealane.name" . }}-operator
{{- end -}}

{{/* Name of objects that are in no namespace: two releases may have the same name. */}}
{{- define "sealane.global" -}}
{{ .Release.Namespace }}-{{ include "sealane.operator" . }}
{{- end -}}

{{- define "sealane.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "sealane.chartLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: sealane
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* By which the operator's pods are found. NetworkPolicies of RelayClusters let pods of this name in: it is not to be changed. */}}
{{- define "sealane.operatorSelector" -}}
app.kubernetes.io/name: sealane-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sealane.operatorLabels" -}}
{{ include "sealane.operatorSelector" . }}
{{ include "sealane.chartLabels" . }}
{{- end -}}

{{- define "sealane.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "sealane.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{/* What `helm test` needs: a RelayCluster and RelayPolicies of this release. */}}
{{- define "sealane.hasTest" -}}
{{- if and .Values.test.enabled .Values.cluster.enabled .Values.policies -}}
{{- $listeners := .Values.cluster.spec.relay.listeners | default dict -}}
{{- $proxied := eq (dig "expose" "clientAddress" "Local" .Values.cluster.spec.relay) "ProxyProtocol" -}}
{{- if and (ne (toString (get $listeners "mx")) "false") (or (not $proxied) .Values.test.relay) -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sealane.test" -}}
{{ include "sealane.name" . }}-test
{{- end -}}

{{- define "sealane.testSelector" -}}
app.kubernetes.io/name: sealane-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
