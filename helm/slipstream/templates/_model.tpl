{{/* How the model gets into pods. Contexts are those of _pod.tpl. */}}

{{/*
The model's volume: a shared claim, or one that goes with the pod. Where each pod has a claim, the
StatefulSet's template names it, and the gateway, which needs the tokenizer only, has none.
*/}}
{{- define "slipstream.modelVolume" -}}
{{- $cache := .root.Values.model.cache -}}
{{- if eq $cache.type "shared" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "slipstream.modelClaim" .root }}
{{- else if not (and .indexed (eq $cache.type "perPod")) }}
- name: models
  emptyDir: {}
{{- end }}
{{- end -}}

{{/* A claim for each pod. Its labels can never change, so only those that never do are there. */}}
{{- define "slipstream.modelClaimTemplate" -}}
{{- $cache := .root.Values.model.cache -}}
- metadata:
    name: models
    labels:
      {{- include "slipstream.selectorLabels" (list .root .component) | nindent 6 }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with $cache.storageClass }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources:
      requests:
        storage: {{ $cache.size }}
{{- end -}}

{{/*
The init container that brings the model, and does nothing where it is there already; several may
do that on one volume at once. `fetchArgs` of the context: more options for it;
`fetchResources`: what it may take, if not as much as a whole model needs.
*/}}
{{- define "slipstream.fetchModel" -}}
- name: fetch-model
  {{- include "slipstream.container" . | nindent 2 }}
  command: [python, -m, slipstream.cli]
  args:
    - fetch
    - {{ .root.Values.model.name | quote }}
    - --to={{ include "slipstream.modelFolder" .root }}
    {{- range .fetchArgs }}
    - {{ . }}
    {{- end }}
  env:
    {{- include "slipstream.env" . | nindent 4 }}
    {{- with .root.Values.model.hfToken }}
    {{- if .existingSecret }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ .existingSecret }}
          key: {{ .key }}
    {{- end }}
    {{- end }}
    {{- with .root.Values.model.download.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    {{- toYaml (default .root.Values.model.download.resources .fetchResources) | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    - name: cache
      mountPath: /cache
    - name: models
      mountPath: /models
{{- end -}}

{{/* initContainers of a pod that needs the model, or part of it. */}}
{{- define "slipstream.initContainers" -}}
{{- if not .root.Values.model.path }}
initContainers:
  {{- include "slipstream.fetchModel" . | nindent 2 }}
{{- end }}
{{- end -}}
