{{/*
What a StatefulSet says of its pods' claims can never change. Where helm asks the cluster, in an
install or upgrade, the one that is there is looked at first: an API server would only say that
some fields may change, not what to do. Where it does not, in `helm template`, nothing is found.
*/}}

{{/*
A claim for each pod: (dict "root" $ "component" NAME "name" VOLUME "claim" VALUES). Its labels can
never change either, so only those that never do are there.
*/}}
{{- define "slipstream.claimTemplate" -}}
- metadata:
    name: {{ .name }}
    labels:
      {{- include "slipstream.selectorLabels" (list .root .component) | nindent 6 }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .claim.storageClass }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources:
      requests:
        storage: {{ .claim.size }}
{{- end -}}

{{/* Ends with a message where a StatefulSet of the release has others than the values ask for. */}}
{{- define "slipstream.claims" -}}
{{- $lines := list -}}
{{- $model := include "slipstream.modelClaimTemplate" (dict "root" $ "component" "") | fromYamlArray -}}
{{- range $component := ternary (list "verifier" "drafter") (list "verifier") .Values.drafter.enabled -}}
{{- $lines = append $lines (include "slipstream.claimsChange" (dict "root" $ "component" $component "values" "model.cache" "templates" $model)) -}}
{{- end -}}
{{- if eq .Values.redis.mode "bundled" -}}
{{- $data := include "slipstream.redisClaimTemplate" . | fromYamlArray -}}
{{- $lines = append $lines (include "slipstream.claimsChange" (dict "root" $ "component" "redis" "values" "redis.bundled.persistence" "templates" $data)) -}}
{{- end -}}
{{- with compact $lines -}}
{{- fail (printf "\nclaims of a StatefulSet that is there can never change:\n%s\nPods and claims stay, pods serve on, and the next StatefulSet takes them over and renews them. What to do about\nclaims that are there, and how to go back: docs/kubernetes.md, \"Another volume\"" (join "\n" .)) -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "component" NAME "values" PATH "templates" LIST): a line where those there are others. */}}
{{- define "slipstream.claimsChange" -}}
{{- $name := include "slipstream.componentName" (list .root .component) -}}
{{- $namespace := .root.Release.Namespace -}}
{{- with lookup "apps/v1" "StatefulSet" $namespace $name -}}
{{- $there := include "slipstream.claimsText" (default (list) .spec.volumeClaimTemplates) -}}
{{- $wanted := include "slipstream.claimsText" $.templates -}}
{{- if ne $there $wanted -}}
- {{ $.values }} asks for {{ $wanted }}, and {{ $name }} has {{ $there }}: leave that value as it was, or upgrade again after
    kubectl -n {{ $namespace }} delete statefulset {{ $name }} --cascade=orphan
{{- if not .spec.volumeClaimTemplates }}
  and, as a pod that runs can get no claim, renew its pods after the upgrade one by one, from 0 on:
    kubectl -n {{ $namespace }} delete pod {{ $name }}-0
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Claim templates in words; equal ones are equal however a cluster writes them. */}}
{{- define "slipstream.claimsText" -}}
{{- $texts := list -}}
{{- range . -}}
{{- $size := include "slipstream.quantity" .spec.resources.requests.storage | float64 | include "slipstream.size" -}}
{{- $class := default "the default" .spec.storageClassName -}}
{{- $texts = append $texts (printf "claims of %s of %s class" $size $class) -}}
{{- end -}}
{{- join " and " $texts | default "no claims" -}}
{{- end -}}
