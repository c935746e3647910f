{{/*
What pods have in common. Unless said otherwise a define takes a role's context:
(dict "root" $ "component" "verifier" "role" .Values.verifier).
*/}}

{{/*
Labels and annotations of a pod; `checksums` of the context: annotations that change with what the
process reads once. Without helm.sh/chart: a new chart that changes nothing here restarts nothing.
*/}}
{{- define "slipstream.podMetadata" -}}
labels:
  {{- include "slipstream.selectorLabels" (list .root .component) | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/part-of: slipstream
  {{- with merge (dict) (default (dict) .role.podLabels) .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .checksums) (default (dict) .role.podAnnotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Security, identity and place of a pod. `api` of the context: whether it talks to the API server. */}}
{{- define "slipstream.podSpec" -}}
serviceAccountName: {{ include "slipstream.serviceAccountName" . }}
automountServiceAccountToken: {{ default false .api }}
# Services' addresses would come as variables like SLIPSTREAM_GATEWAY_SERVICE_PORT, among the
# settings of our own processes.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "slipstream.gracePeriod" . }}
securityContext:
  runAsNonRoot: true
  {{- with .root.Values.security.runAsUser }}
  runAsUser: {{ int64 . }}
  {{- end }}
  {{- with .root.Values.security.runAsGroup }}
  runAsGroup: {{ int64 . }}
  {{- end }}
  {{- with .root.Values.security.fsGroup }}
  fsGroup: {{ int64 . }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- include "slipstream.scheduling" . }}
{{- end -}}

{{/* Each line begins with a line break, so that nothing is left where nothing is set. */}}
{{- define "slipstream.scheduling" -}}
{{- with .role.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .role.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with dig "gpu" "claimTemplate" "" .role }}
resourceClaims:
  - name: gpu
    resourceClaimTemplateName: {{ . }}
{{- end }}
{{- with .role.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "slipstream.affinity" . | fromYaml }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .role.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .role.topologySpread }}
topologySpreadConstraints:
  {{- range .role.topologySpread }}
  - topologyKey: {{ .topologyKey }}
    maxSkew: {{ int .maxSkew }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    # Nodes that the pods may not go to are no place that lacks one: else DoNotSchedule would let no
    # node have a second pod while a node of the control plane, or with GPUs, has none.
    nodeTaintsPolicy: Honor
    {{- with $.kind }}
    # While a new version comes, only its own pods count: those of the old one are about to go.
    matchLabelKeys: [{{ ternary "pod-template-hash" "controller-revision-hash" (eq . "Deployment") }}]
    {{- end }}
    labelSelector:
      matchLabels:
        {{- include "slipstream.selectorLabels" (list $.root $.component) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/*
The role's affinity, and for drafters beside it the wish to be where verifiers are, and for shards to
be where the other shards are: every draft goes through all of them.
*/}}
{{- define "slipstream.affinity" -}}
{{- $affinity := deepCopy (default (dict) .role.affinity) -}}
{{- $pods := default (dict) $affinity.podAffinity -}}
{{- $required := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $preferred := "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- $zone := include "slipstream.near" (list . "verifier" "topology.kubernetes.io/zone") | fromYaml -}}
{{- $node := include "slipstream.near" (list . .component "kubernetes.io/hostname") | fromYaml -}}
{{- $colocation := default "off" .role.colocation -}}
{{- if eq $colocation "required" -}}
{{- $_ := set $pods $required (append (default (list) (get $pods $required)) $zone) -}}
{{- else if eq $colocation "preferred" -}}
{{- $wish := dict "weight" 100 "podAffinityTerm" $zone -}}
{{- $_ := set $pods $preferred (append (default (list) (get $pods $preferred)) $wish) -}}
{{- end -}}
{{- if and (gt (int .role.shards) 1) (eq .role.shardColocation "preferred") -}}
{{- $wish := dict "weight" 50 "podAffinityTerm" $node -}}
{{- $_ := set $pods $preferred (append (default (list) (get $pods $preferred)) $wish) -}}
{{- end -}}
{{- with $pods }}{{ $_ := set $affinity "podAffinity" . }}{{ end -}}
{{- toYaml $affinity -}}
{{- end -}}

{{/* A term of an affinity to pods of this release: (list CONTEXT component topologyKey). */}}
{{- define "slipstream.near" -}}
topologyKey: {{ last . }}
labelSelector:
  matchLabels:
    {{- include "slipstream.selectorLabels" (list (first .).root (index . 1)) | nindent 4 }}
{{- end -}}

{{/* After preStop and the process's own grace there are 5 seconds left to write and to end. */}}
{{- define "slipstream.gracePeriod" -}}
{{- add (default 0 .role.preStopSeconds) (default 0 .role.stopGraceSeconds) 5 -}}
{{- end -}}

{{/* Endpoints are told of a pod's end while it still serves: nobody is sent to a closed port. */}}
{{- define "slipstream.lifecycle" -}}
{{- with int .role.preStopSeconds }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ . }}
{{- end }}
{{- end -}}
