{{/*
Pieces of NetworkPolicies. An arrow between two roles is a rule of the one that is asked (`ingress`)
and one of the one that asks (`egress`): networkpolicies.yaml lists both.
*/}}

{{/* Pods of roles: (list root component component ...) */}}
{{- define "slipstream.pods" -}}
{{- range rest . }}
- podSelector:
    matchLabels:
      {{- include "slipstream.selectorLabels" (list (first $) .) | nindent 6 }}
{{- end }}
{{- end -}}

{{/* One rule: (dict "key" "from" or "to", "peers" YAML or "", "ports" LIST); no peers: all. */}}
{{- define "slipstream.rule" -}}
- ports:
    {{- range .ports }}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
  {{- with .peers | trim }}
  {{ $.key }}:
    {{- . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "slipstream.blocks" -}}
{{- range . }}
- ipBlock: {cidr: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* Who may ask the gateway: those that are named, or the pods of its namespace. */}}
{{- define "slipstream.clients" -}}
{{- if .Values.networkPolicy.gatewayFrom -}}
{{- toYaml .Values.networkPolicy.gatewayFrom -}}
{{- else -}}
- podSelector: {}
{{- end -}}
{{- end -}}

{{/* Egress to what is outside of the release: (dict "root" $ "api" BOOL "hub" BOOL "traces" BOOL). */}}
{{- define "slipstream.egressOutside" -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- if .api }}
# The API server, whose EndpointSlices are watched.
{{ include "slipstream.rule" (dict "key" "to" "ports" $policy.apiServer.ports "peers" (include "slipstream.blocks" $policy.apiServer.cidrs)) }}
{{- end }}
{{- if .hub }}
# Where models are fetched from.
{{ include "slipstream.rule" (dict "key" "to" "ports" $policy.modelHub.ports "peers" (include "slipstream.blocks" $policy.modelHub.cidrs)) }}
{{- end }}
{{- if and .traces .root.Values.telemetry.otlpEndpoint }}
# The collector of traces.
{{ include "slipstream.rule" (dict "key" "to" "ports" $policy.otlp.ports "peers" (empty $policy.otlp.to | ternary "" (toYaml $policy.otlp.to))) }}
{{- end }}
{{- end -}}

{{/* Begins a policy for the pods of a role: (list root component). */}}
{{- define "slipstream.policy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "slipstream.metadata" (dict "root" (first .) "component" (last .)) | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "slipstream.selectorLabels" . | nindent 6 }}
{{- end -}}
