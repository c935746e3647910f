{{/* Jobs that a release starts. */}}

{{/* Whether there is one that fetches the model, or one that tunes: "true" or nothing. */}}
{{- define "slipstream.downloads" -}}
{{- $model := .Values.model -}}
{{- if and (eq $model.cache.type "shared") $model.download.job.enabled (not $model.path) }}true{{ end -}}
{{- end -}}

{{- define "slipstream.tunes" -}}
{{- $drafter := .Values.drafter -}}
{{- if and $drafter.enabled (eq $drafter.layerPlan.source "tune") .Values.tune.enabled }}true{{ end -}}
{{- end -}}

{{/*
A Job: (dict "ctx" CONTEXT "name" "model" "spec" POD-SPEC-AS-YAML). What a Job runs can never be
changed, so its name carries a digest of that: another model, image or option is another Job, the
same is the same one, and an upgrade neither fails nor waits. It is no hook, so nothing waits for it.
*/}}
{{- define "slipstream.job" -}}
{{- $ctx := .ctx -}}
{{- $template := printf "metadata:\n  %s\nspec:\n  %s\n" (include "slipstream.podMetadata" $ctx | nindent 2 | trim) (.spec | nindent 2 | trim) -}}
{{- $name := printf "%s-%s" (include "slipstream.componentName" (list $ctx.root .name)) (sha256sum $template | trunc 8) }}
---
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "slipstream.metadata" (dict "root" $ctx.root "component" $ctx.component "name" $name) | nindent 2 }}
spec:
  backoffLimit: {{ int $ctx.role.backoffLimit }}
  activeDeadlineSeconds: {{ int $ctx.role.activeDeadlineSeconds }}
  {{- with int $ctx.role.ttlSecondsAfterFinished }}
  ttlSecondsAfterFinished: {{ . }}
  {{- end }}
  template:
    {{- $template | trim | nindent 4 }}
{{- end -}}

{{- define "slipstream.downloadPod" -}}
{{ include "slipstream.podSpec" . }}
restartPolicy: OnFailure
containers:
  {{- include "slipstream.fetchModel" . | nindent 2 }}
volumes:
  {{- include "slipstream.scratchVolumes" . | trim | nindent 2 }}
  {{- include "slipstream.modelVolume" . | nindent 2 }}
{{- end -}}

{{/* The search, which writes its journal beside the plan and goes on from there after a restart. */}}
{{- define "slipstream.tunePod" -}}
{{- $values := .root.Values -}}
{{- $file := "/plan/plan.json" -}}
{{ include "slipstream.podSpec" . }}
restartPolicy: OnFailure
initContainers:
  {{- if not $values.model.path }}
  {{- include "slipstream.fetchModel" . | nindent 2 }}
  {{- end }}
  - name: tune
    {{- include "slipstream.container" . | nindent 4 }}
    command: [python, -m, slipstream.cli]
    args:
      - tune
      - --model={{ include "slipstream.modelFolder" .root }}
      - --out={{ $file }}
      - --report=/plan/report
      - --resume
      - --budget={{ .role.budget }}
      - --kv-context={{ $values.drafter.kvContext }}
      - --dtype={{ $values.drafter.dtype }}
      - --device={{ ternary "cuda" "cpu" (not (empty (include "slipstream.accelerated" .role.gpu))) }}
      - --drafter-slowdown={{ .role.drafterSlowdown }}
      {{- range .role.extraArgs }}
      - {{ . | quote }}
      {{- end }}
    env:
      {{- include "slipstream.env" . | nindent 6 }}
      {{- with .role.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    resources:
      {{- include "slipstream.resources" . | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      - name: cache
        mountPath: /cache
      - name: models
        mountPath: /models
        readOnly: true
      - name: plan
        mountPath: /plan
containers:
  - name: save-plan
    {{- include "slipstream.container" . | nindent 4 }}
    command: [python, -m, slipstream.cli]
    args:
      - k8s
      - save-plan
      - {{ $file }}
      - --configmap={{ include "slipstream.layerPlanConfigMap" .root }}
      - --key=plan.json
    env:
      {{- include "slipstream.env" . | nindent 6 }}
    resources:
      {{- $few := dict "requests" (dict "cpu" "50m" "memory" "128Mi") "limits" (dict "memory" "512Mi") }}
      {{- include "slipstream.withDisk" (dict "ctx" . "resources" $few) | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      - name: cache
        mountPath: /cache
      - name: plan
        mountPath: /plan
        readOnly: true
volumes:
  {{- include "slipstream.scratchVolumes" . | trim | nindent 2 }}
  {{- include "slipstream.modelVolume" . | nindent 2 }}
{{- end -}}
