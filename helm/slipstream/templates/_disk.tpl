{{/*
The room on a node's disk: volumes that go with the pod, each with a bound, and what the pod's
containers ask for and may take because of them. Contexts are those of _pod.tpl.
*/}}

{{/*
Volumes by their names, with their sizes: those of the role's `scratch`, and the model where it is in
no claim. A role whose `scratch` has `models` needs no more of the model than that. With model.path
nothing is fetched, and the volume stays empty.
*/}}
{{- define "slipstream.scratch" -}}
{{- $model := .root.Values.model -}}
{{- $sizes := omit .role.scratch "models" -}}
{{- $claimed := or (eq $model.cache.type "shared") (and .indexed (eq $model.cache.type "perPod")) -}}
{{- if and (has .component (list "gateway" "verifier" "drafter" "tune")) (not $claimed) -}}
{{- $size := ternary "1Mi" (default $model.cache.size .role.scratch.models) (not (empty $model.path)) -}}
{{- $_ := set $sizes "models" $size -}}
{{- end -}}
{{- toYaml $sizes -}}
{{- end -}}

{{- define "slipstream.scratchVolumes" -}}
{{- range $name, $size := include "slipstream.scratch" . | fromYaml }}
- name: {{ $name }}
  emptyDir:
    sizeLimit: {{ $size }}
{{- end }}
{{- end -}}

{{/* What these volumes, and more that the role has on the disk, may hold: bytes, for float64. */}}
{{- define "slipstream.scratchBytes" -}}
{{- $total := 0.0 -}}
{{- range $size := include "slipstream.scratch" . | fromYaml -}}
{{- $total = addf $total (include "slipstream.quantity" $size | float64) -}}
{{- end -}}
{{- range .role.extraVolumes -}}
{{- with .emptyDir -}}
{{- if ne (default "" .medium) "Memory" -}}
{{- $total = addf $total (default "0" .sizeLimit | include "slipstream.quantity" | float64) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $total -}}
{{- end -}}

{{/*
Resources with the node's disk among them: (dict "ctx" CONTEXT "resources" MAP). A kubelet holds all
volumes and logs of a pod against the most that one of its containers may take, so each may take all
of it. All is asked for, too: who takes more than that goes first when the disk is short.
*/}}
{{- define "slipstream.withDisk" -}}
{{- $resources := deepCopy (default (dict) .resources) -}}
{{- /* A log is rotated at 10 MiB, and five are kept; a container has another one of before it restarted. */ -}}
{{- $logs := 268435456 -}}
{{- $all := include "slipstream.scratchBytes" .ctx | float64 | addf $logs | include "slipstream.size" -}}
{{- $limits := default (dict) $resources.limits -}}
{{- $requests := default (dict) $resources.requests -}}
{{- $limit := get $limits "ephemeral-storage" | default $all -}}
{{- $_ := set $limits "ephemeral-storage" $limit -}}
{{- $_ := set $requests "ephemeral-storage" (get $requests "ephemeral-storage" | default $limit) -}}
{{- toYaml (merge (dict "limits" $limits "requests" $requests) $resources) -}}
{{- end -}}
