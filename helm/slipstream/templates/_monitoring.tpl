{{/* What Prometheus and Grafana are told of a release. */}}

{{/*
Metadata with labels by which an operator or a sidecar selects: (dict "root" $ "component" "gateway"
"labels" MAP), and as for slipstream.metadata "name" and "annotations".
*/}}
{{- define "slipstream.monitorMetadata" -}}
{{- $name := default (include "slipstream.fullname" .root) .name -}}
{{- $metadata := include "slipstream.metadata" (merge (dict "name" $name) .) | fromYaml -}}
{{- $_ := set $metadata "labels" (merge (dict) (default (dict) .labels) $metadata.labels) -}}
{{- toYaml $metadata -}}
{{- end -}}

{{/*
The rules of files/alerts.yaml with the release's selector and thresholds, without those whose parts
it has not. Prometheus' own templates in them are not Helm's: nothing is rendered, only replaced.
*/}}
{{- define "slipstream.alerts" -}}
{{- $rule := .Values.monitoring.prometheusRule -}}
{{- $text := .Files.Get "files/alerts.yaml" | replace "@selector@" (include "slipstream.series" .) -}}
{{- range $name, $value := $rule.thresholds -}}
{{- $text = $text | replace (printf "@%s@" $name) (toString $value) -}}
{{- end -}}
{{- $parts := include "slipstream.monitoredParts" . | splitList " " -}}
{{- $base := $rule.runbookBaseUrl | trimSuffix "/" -}}
{{- $alerts := list -}}
{{- range $text | fromYamlArray -}}
{{- $has := not (has .alert $rule.disabled) -}}
{{- range .needs }}{{ $has = and $has (has . $parts) }}{{ end -}}
{{- if $has -}}
{{- $section := printf "alerts.md#%s" (lower .alert) -}}
{{- $runbook := ternary (dict "runbook_url" (printf "%s/%s" $base $section)) (dict "runbook" (printf "docs/%s" $section)) (ne $base "") -}}
{{- $annotations := merge (dict "summary" .summary "description" .description) $runbook -}}
{{- $alerts = append $alerts (dict "alert" .alert "expr" .expr "for" .for "labels" (dict "severity" .severity) "annotations" $annotations) -}}
{{- end -}}
{{- end -}}
{{- if not $alerts -}}
{{- fail "monitoring.prometheusRule has nothing to watch: enable monitoring.serviceMonitor and monitoring.podMonitor, or say in monitoring.prometheusRule.selector which series are this release's" -}}
{{- end -}}
{{- toYaml $alerts -}}
{{- end -}}

{{/* With a selector of their own, all series are taken to be collected by somebody. */}}
{{- define "slipstream.monitoredParts" -}}
{{- $monitoring := .Values.monitoring -}}
{{- $elsewhere := not (empty $monitoring.prometheusRule.selector) -}}
{{- $parts := list -}}
{{- if or $elsewhere $monitoring.serviceMonitor.enabled }}{{ $parts = append $parts "serviceMonitor" }}{{ end -}}
{{- if or $elsewhere $monitoring.podMonitor.enabled }}{{ $parts = append $parts "podMonitor" }}{{ end -}}
{{- if .Values.drafter.enabled }}{{ $parts = append $parts "drafter" }}{{ end -}}
{{- if ne .Values.redis.mode "none" }}{{ $parts = append $parts "store" }}{{ end -}}
{{- join " " $parts -}}
{{- end -}}

{{/* The labels of this release's series, as the monitors give them. */}}
{{- define "slipstream.series" -}}
{{- default (printf "namespace=%q,job=%q" .Release.Namespace .Release.Name) .Values.monitoring.prometheusRule.selector -}}
{{- end -}}
