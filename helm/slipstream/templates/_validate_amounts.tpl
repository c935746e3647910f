{{/* Amounts that contradict each other: more of _validate.tpl, a line for each that is found. */}}

{{/* Takes (list QUANTITY QUANTITY): "true" where the first one is the larger. */}}
{{- define "slipstream.exceeds" -}}
{{- if gt (include "slipstream.quantity" (first .) | float64) (include "slipstream.quantity" (last .) | float64) }}true{{ end -}}
{{- end -}}

{{/* What an API server would refuse, of each container, whether it is one of this release or not. */}}
{{- define "slipstream.validate.resources" -}}
{{- $all := dict "model.download" .Values.model.download "redis.bundled" .Values.redis.bundled }}
{{- range $name := list "gateway" "verifier" "drafter" "tune" "tests" }}
{{- $_ := set $all $name (index $.Values $name) }}
{{- end }}
{{- range $path, $role := $all }}
{{- $resources := default (dict) $role.resources }}
{{- $limits := default (dict) $resources.limits }}
{{- range $name, $request := default (dict) $resources.requests }}
{{- $limit := get $limits $name | toString }}
{{- if and (contains "/" $name) (or (not $limit) (include "slipstream.exceeds" (list $request $limit)) (include "slipstream.exceeds" (list $limit $request))) }}
{{ $path }}.resources.requests has {{ $name }} {{ $request }}, of which Kubernetes takes only as much as limits has: give it in {{ $path }}.resources.limits alone
{{- else if and $limit (include "slipstream.exceeds" (list $request $limit)) }}
{{ $path }}.resources.requests.{{ $name }} {{ $request }} is more than {{ $path }}.resources.limits.{{ $name }} {{ $limit }}: raise the limit, or ask for less
{{- end }}
{{- end }}
{{- end }}
{{- include "slipstream.validate.redisRoom" .Values.redis.bundled }}
{{- end -}}

{{- define "slipstream.validate.redisRoom" -}}
{{- $redis := . }}
{{- $data := mulf 3 (include "slipstream.redisBytes" $redis.maxMemory | float64) }}
{{- if gt $data (include "slipstream.quantity" $redis.persistence.size | float64) }}
redis.bundled.persistence.size {{ $redis.persistence.size }} is less than three times redis.bundled.maxMemory {{ $redis.maxMemory }}, which its file may be while it is rewritten: make it {{ include "slipstream.size" $data }} or more
{{- end }}
{{- with dig "limits" "memory" "" (default (dict) $redis.resources) | toString }}
{{- $most := mulf 0.75 (include "slipstream.quantity" . | float64) }}
{{- if gt (include "slipstream.redisBytes" $redis.maxMemory | float64) $most }}
redis.bundled.maxMemory {{ $redis.maxMemory }} is more than three quarters of redis.bundled.resources.limits.memory {{ . }}: a rewrite of its file and its clients' buffers need the rest, or it is killed before it is full; lower it, or raise the limit
{{- end }}
{{- end }}
{{- end -}}

{{/* The room of a role's pods, in memory and on the disk: (dict "root" $ "component" NAME "path" VALUES-PATH). */}}
{{- define "slipstream.validate.room" -}}
{{- $role := ternary (include "slipstream.redisRole" .root | fromYaml) (get .root.Values .path) (eq .component "redis") }}
{{- $ctx := merge (dict "role" $role "indexed" (has .component (list "verifier" "drafter"))) . }}
{{- $limits := dig "limits" (dict) (default (dict) $role.resources) }}
{{- $inMemory := 0.0 }}
{{- range $role.extraVolumes }}
{{- if hasKey . "emptyDir" }}
{{- $bounds := default (dict) .emptyDir }}
{{- if not $bounds.sizeLimit }}
{{ $.path }}.extraVolumes has the emptyDir {{ .name }} without a bound: give it a sizeLimit
{{- else if eq (default "" $bounds.medium) "Memory" }}
{{- $inMemory = addf $inMemory (include "slipstream.quantity" .emptyDir.sizeLimit | float64) }}
{{- end }}
{{- end }}
{{- end }}
{{- with $limits.memory }}
{{- $memory := include "slipstream.quantity" . | float64 }}
{{- if and (gt $inMemory 0.0) (ge $inMemory $memory) }}
{{ $.path }}.extraVolumes may take {{ include "slipstream.size" $inMemory }} of memory, which counts against {{ $.path }}.resources.limits.memory {{ . }} and leaves nothing: raise the limit, or lower the volumes' sizeLimit
{{- end }}
{{- if and (hasKey $role "kvCacheGib") (not (include "slipstream.accelerated" $role.gpu)) (ge (mulf $role.kvCacheGib 1073741824) $memory) }}
{{ $.path }}.kvCacheGib {{ $role.kvCacheGib }} leaves no room for the weights in {{ $.path }}.resources.limits.memory {{ . }}: lower it, or raise the limit to weights and kvCacheGib and 1.5Gi
{{- end }}
{{- end }}
{{- $disk := include "slipstream.scratchBytes" $ctx | float64 }}
{{- $effective := include "slipstream.withDisk" (dict "ctx" $ctx "resources" $role.resources) | fromYaml }}
{{- $limit := get $effective.limits "ephemeral-storage" }}
{{- if gt $disk (include "slipstream.quantity" $limit | float64) }}
{{ .path }}.resources.limits.ephemeral-storage {{ $limit }} is less than the {{ include "slipstream.size" $disk }} that its volumes may hold: leave it out, or lower {{ .path }}.scratch{{ if and (hasKey (include "slipstream.scratch" $ctx | fromYaml) "models") (not (hasKey $role.scratch "models")) }} or model.cache.size{{ end }}
{{- end }}
{{- if and (not (hasKey $limits "ephemeral-storage")) (include "slipstream.exceeds" (list (get $effective.requests "ephemeral-storage") $limit)) }}
{{ .path }}.resources.requests.ephemeral-storage is more than the limit of {{ $limit }} that comes of {{ .path }}.scratch: leave it out, or give {{ .path }}.resources.limits.ephemeral-storage, too
{{- end }}
{{- end -}}

{{/* (dict "name" "verifier" "role" VALUES) */}}
{{- define "slipstream.validate.rollout" -}}
{{- $strategy := .role.updateStrategy }}
{{- if eq $strategy.type "RollingUpdate" }}
{{- $none := list "0" "0%" }}
{{- $rolling := default (dict) $strategy.rollingUpdate }}
{{- $stays := has (get $rolling "maxUnavailable" | toString) $none }}
{{- if and $stays (ne .name "gateway") }}
{{ .name }}.updateStrategy.rollingUpdate.maxUnavailable 0 lets no pod be renewed: leave it out, or set it to 1 or more
{{- else if and $stays (has (get $rolling "maxSurge" | toString) $none) }}
{{ .name }}.updateStrategy.rollingUpdate has 0 for both maxSurge and maxUnavailable, so that no pod could be renewed: set maxSurge to 1 or more
{{- end }}
{{- end }}
{{- end -}}

{{- define "slipstream.validate.times" -}}
{{- $manager := .Values.tls.certManager }}
{{- if $manager.enabled }}
{{- $duration := include "slipstream.seconds" $manager.duration | float64 }}
{{- $before := include "slipstream.seconds" $manager.renewBefore | float64 }}
{{- if ge $before $duration }}
tls.certManager.renewBefore {{ $manager.renewBefore }} is not less than tls.certManager.duration {{ $manager.duration }}, so that certificates would be renewed all the time: lower it, to a third of that
{{- end }}
{{- if or (lt $duration 3600.0) (lt $before 300.0) }}
tls.certManager.duration {{ $manager.duration }} or tls.certManager.renewBefore {{ $manager.renewBefore }} is less than cert-manager takes: 1h and 5m at least
{{- end }}
{{- if and (not $manager.issuerRef.name) (lt (include "slipstream.seconds" $manager.caDuration | float64) $duration) }}
tls.certManager.caDuration {{ $manager.caDuration }} is less than tls.certManager.duration {{ $manager.duration }}: certificates would outlive their authority, so raise it
{{- end }}
{{- end }}
{{- range $kind := list "serviceMonitor" "podMonitor" }}
{{- $monitor := index $.Values.monitoring $kind }}
{{- if gt (include "slipstream.seconds" $monitor.scrapeTimeout | float64) (include "slipstream.seconds" $monitor.interval | float64) }}
monitoring.{{ $kind }}.scrapeTimeout {{ $monitor.scrapeTimeout }} is more than monitoring.{{ $kind }}.interval {{ $monitor.interval }}, which Prometheus refuses: lower it
{{- end }}
{{- end }}
{{- end -}}
