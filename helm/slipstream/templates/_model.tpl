{{/* How the model gets into pods. Contexts are those of _pod.tpl. */}}

{{/*
The model's volume where it is a shared claim. Where each pod has a claim, the StatefulSet's template
names it; the gateway, which needs the tokenizer only, then has none. All others are in _disk.tpl.
*/}}
{{- define "slipstream.modelVolume" -}}
{{- $cache := .root.Values.model.cache -}}
{{- if eq $cache.type "shared" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "slipstream.modelClaim" .root }}
{{- end }}
{{- end -}}

{{/* Of a StatefulSet's pods, where each has a claim of its own. */}}
{{- define "slipstream.modelClaimTemplate" -}}
{{- if eq .root.Values.model.cache.type "perPod" -}}
{{- include "slipstream.claimTemplate" (merge (dict "name" "models" "claim" .root.Values.model.cache) .) -}}
{{- end -}}
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
    # What is fetched once needs no cache of its pieces, which would fill the volume of /cache.
    - name: HF_XET_CHUNK_CACHE_SIZE_BYTES
      value: "0"
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
    {{- $needs := default .root.Values.model.download.resources .fetchResources }}
    {{- include "slipstream.withDisk" (dict "ctx" . "resources" $needs) | nindent 4 }}
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
