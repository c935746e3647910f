{{/* What stands beside the pods of a role. Contexts are those of _pod.tpl. */}}

{{/* `replicas` of the context; none where a scaler decides, or every upgrade would undo its choice. */}}
{{- define "slipstream.replicas" -}}
{{- if not (include "slipstream.scaled" .role) -}}
replicas: {{ int .replicas }}
{{- end -}}
{{- end -}}

{{/* How pods are renewed; the numbers of a rolling update only where it is one. Takes a role's values. */}}
{{- define "slipstream.strategy" -}}
{{- $rolling := eq .updateStrategy.type "RollingUpdate" -}}
{{- toYaml (ternary .updateStrategy (omit .updateStrategy "rollingUpdate") $rolling) -}}
{{- end -}}

{{/* Takes the values of a role. */}}
{{- define "slipstream.scaled" -}}
{{- if or (dig "autoscaling" "enabled" false .) (dig "keda" "enabled" false .) -}}true{{- end -}}
{{- end -}}

{{/* Its pods, or where there is a scaler the bounds of that. */}}
{{- define "slipstream.mostReplicas" -}}
{{- if dig "autoscaling" "enabled" false . }}{{ int .autoscaling.maxReplicas }}{{ else if dig "keda" "enabled" false . }}{{ int .keda.maxReplicas }}{{ else }}{{ int .replicas }}{{ end -}}
{{- end -}}

{{- define "slipstream.leastReplicas" -}}
{{- if dig "autoscaling" "enabled" false . }}{{ int .autoscaling.minReplicas }}{{ else if dig "keda" "enabled" false . }}{{ int .keda.minReplicas }}{{ else }}{{ int .replicas }}{{ end -}}
{{- end -}}

{{/* Whether there is a drafter at all; takes the root. */}}
{{- define "slipstream.drafts" -}}
{{- if and .Values.drafter.enabled (gt (include "slipstream.mostReplicas" .Values.drafter | int) 0) }}true{{ end -}}
{{- end -}}

{{- define "slipstream.serviceAccount" -}}
{{- if .role.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "slipstream.metadata" (dict "root" .root "component" .component "name" (include "slipstream.serviceAccountName" .) "annotations" .role.serviceAccount.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end -}}

{{/* Of minAvailable and maxUnavailable, the first where it is given. */}}
{{- define "slipstream.disruptionBudget" -}}
{{- with .role.pdb }}
{{- if .enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "slipstream.metadata" $ | nindent 2 }}
spec:
  {{- if ne (toString .minAvailable) "" }}
  minAvailable: {{ include "slipstream.intOrPercent" .minAvailable }}
  {{- else }}
  maxUnavailable: {{ include "slipstream.intOrPercent" .maxUnavailable }}
  {{- end }}
  # A pod that is not ready serves nobody: it must not keep a node from being drained.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "slipstream.selectorLabels" (list $.root $.component) | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "slipstream.intOrPercent" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ int . }}{{ end -}}
{{- end -}}

{{/* HPA or KEDA's ScaledObject; `kind` of the context: Deployment or StatefulSet. */}}
{{- define "slipstream.scaler" -}}
{{- if dig "autoscaling" "enabled" false .role }}
{{- with .role.autoscaling }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "slipstream.metadata" $ | nindent 2 }}
spec:
  scaleTargetRef:
    {{- include "slipstream.scaleTarget" $ | nindent 4 }}
  minReplicas: {{ int .minReplicas }}
  maxReplicas: {{ int .maxReplicas }}
  metrics:
    {{- range .metrics }}
    - type: Pods
      pods:
        metric:
          name: {{ .name }}
        target:
          type: AverageValue
          averageValue: {{ .averageValue | quote }}
    {{- end }}
  {{- with .behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
{{- if dig "keda" "enabled" false .role }}
{{- with .role.keda }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "slipstream.metadata" $ | nindent 2 }}
spec:
  scaleTargetRef:
    {{- include "slipstream.scaleTarget" $ | nindent 4 }}
  minReplicaCount: {{ int .minReplicas }}
  maxReplicaCount: {{ int .maxReplicas }}
  pollingInterval: {{ int .pollingIntervalSeconds }}
  cooldownPeriod: {{ int .cooldownSeconds }}
  {{- with .behavior }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml . | nindent 8 }}
  {{- end }}
  triggers:
    {{- range .triggers }}
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: {{ $.root.Values.monitoring.prometheusAddress | quote }}
        query: {{ include "slipstream.query" (dict "query" .query "root" $.root "component" $.component) | quote }}
        threshold: {{ .threshold | quote }}
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "slipstream.scaleTarget" -}}
apiVersion: apps/v1
kind: {{ .kind }}
name: {{ include "slipstream.componentName" (list .root .component) }}
{{- end -}}

{{/* A PromQL expression whose {{selector}} became the labels of this role's series. */}}
{{- define "slipstream.query" -}}
{{- $name := include "slipstream.componentName" (list .root .component) -}}
{{- $selector := printf "component=%q,namespace=%q,pod=~\"%s-.+\"" .component .root.Release.Namespace $name -}}
{{- .query | replace "{{selector}}" $selector -}}
{{- end -}}

{{/*
Of a StatefulSet of verifiers or drafters, all but the pods. Nothing that can never change in it,
selector, service name and claims, depends on a version or on a value that an upgrade may change.
*/}}
{{- define "slipstream.setSpec" -}}
{{- include "slipstream.replicas" . }}
serviceName: {{ include "slipstream.componentName" (list .root .component) }}
# No pod waits for the one before it: each is whole by itself, or a shard that needs all the others.
podManagementPolicy: Parallel
updateStrategy:
  {{- include "slipstream.strategy" .role | nindent 2 }}
selector:
  matchLabels:
    {{- include "slipstream.selectorLabels" (list .root .component) | nindent 4 }}
{{- with include "slipstream.modelClaimTemplate" . }}
# What can be fetched again need not outlive the release; a pod that comes back finds its model.
persistentVolumeClaimRetentionPolicy:
  whenDeleted: Delete
  whenScaled: Retain
volumeClaimTemplates:
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Only pods that are ready have names and endpoints here: readiness decides who is found. */}}
{{- define "slipstream.headlessService" }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "slipstream.metadata" (dict "root" .root "component" .component "annotations" .role.service.annotations) | nindent 2 }}
spec:
  clusterIP: None
  selector:
    {{- include "slipstream.selectorLabels" (list .root .component) | nindent 4 }}
  ports:
    {{- range $name := list "grpc" "health" "metrics" }}
    - name: {{ $name }}
      port: {{ include "slipstream.port" (printf "%s/%s" $.component $name) }}
      targetPort: {{ $name }}
    {{- end }}
{{- end -}}
