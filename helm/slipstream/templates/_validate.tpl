{{/*
Combinations of values that cannot work. Each define writes one line for each that it finds: the
value, why not, and what would be right. All of them are told at once.
*/}}

{{- define "slipstream.validate" -}}
{{- $found := list -}}
{{- range $theme := list "names" "labels" "model" "sessions" "access" "drafter" "tune" "tls" "network" "times" "resources" -}}
{{- $found = concat $found (include (printf "slipstream.validate.%s" $theme) $ | splitList "\n") -}}
{{- end -}}
{{- range $name := list "gateway" "verifier" "drafter" -}}
{{- $role := index $.Values $name -}}
{{- if or (ne $name "drafter") $role.enabled -}}
{{- $context := dict "root" $ "name" $name "role" $role -}}
{{- $found = concat $found (include "slipstream.validate.scaling" $context | splitList "\n") -}}
{{- $found = concat $found (include "slipstream.validate.disruptions" $context | splitList "\n") -}}
{{- $found = concat $found (include "slipstream.validate.rollout" $context | splitList "\n") -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.redis.mode "bundled" -}}
{{- $context := dict "root" $ "name" "redis.bundled" "role" (include "slipstream.redisRole" $ | fromYaml) -}}
{{- $found = concat $found (include "slipstream.validate.disruptions" $context | splitList "\n") -}}
{{- $found = concat $found (include "slipstream.validate.rollout" $context | splitList "\n") -}}
{{- end -}}
{{- range $component, $path := dict "gateway" "gateway" "verifier" "verifier" "drafter" "drafter" "redis" "redis.bundled" "tune" "tune" "test" "tests" -}}
{{- $found = concat $found (include "slipstream.validate.room" (dict "root" $ "component" $component "path" $path) | splitList "\n") -}}
{{- end -}}
{{- $lines := list -}}
{{- range $found }}{{ with trim . }}{{ $lines = append $lines (printf "- %s" .) }}{{ end }}{{ end -}}
{{- if $lines -}}
{{- fail (printf "\nvalues that cannot work together:\n%s" (join "\n" $lines)) -}}
{{- end -}}
{{- end -}}

{{/* Names of Services, and of pods in DNS, are labels that begin with a letter; a release's need not be. */}}
{{- define "slipstream.validate.names" -}}
{{- $name := include "slipstream.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
release {{ .Release.Name }} gives the name {{ $name }}, which no Service can have: set fullnameOverride, of lower-case letters, digits and dashes, with a letter first
{{- end }}
{{- end -}}

{{/* Selectors find pods by these: another value would lose them, and a second one is no object. */}}
{{- define "slipstream.validate.labels" -}}
{{- $given := dict "commonLabels" .Values.commonLabels "redis.bundled.podLabels" .Values.redis.bundled.podLabels "model.download.job.podLabels" .Values.model.download.job.podLabels }}
{{- range $name := list "gateway" "verifier" "drafter" "tune" "tests" }}
{{- $_ := set $given (printf "%s.podLabels" $name) (index $.Values $name).podLabels }}
{{- end }}
{{- range $path, $labels := $given }}
{{- range $label, $_ := $labels }}
{{- if or (hasPrefix "app.kubernetes.io/" $label) (eq $label "helm.sh/chart") }}
{{ $path }} has {{ $label }}, which the chart sets itself: use a name of your own
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "slipstream.validate.model" -}}
{{- $model := .Values.model }}
{{- $cache := $model.cache }}
{{- if not (regexMatch "^(default|[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?)$" $model.name) }}
model.name {{ $model.name | quote }} names no model: give default, or owner/name or owner/name@revision of the hub; for a folder that is there already use model.path
{{- end }}
{{- if and $cache.existingClaim (ne $cache.type "shared") }}
model.cache.existingClaim is one claim for all pods, but model.cache.type is {{ $cache.type }}: set model.cache.type to shared, or leave existingClaim empty
{{- end }}
{{- if and (hasPrefix "/models" $model.path) (not $cache.existingClaim) }}
model.path {{ $model.path }} is in the model volume, which is empty at first: name the claim that holds the model in model.cache.existingClaim (with model.cache.type shared), or give model.name instead of model.path
{{- end }}
{{- range $name := list "verifier" "drafter" }}
{{- $role := index $.Values $name }}
{{- if and $role.gpu.claimTemplate (gt (int $role.gpu.count) 0) }}
{{ $name }}.gpu.claimTemplate and {{ $name }}.gpu.count would ask for two GPUs, of which one would be used: leave one of them out
{{- end }}
{{- if and (include "slipstream.accelerated" $role.gpu) (eq $.Values.image.variant "cpu") }}
{{ $name }}.gpu asks for a GPU, but image.variant cpu has an image without CUDA: set image.variant to auto or cuda, or {{ $name }}.gpu.count to 0 without a claimTemplate
{{- end }}
{{- end }}
{{- end -}}

{{- define "slipstream.validate.sessions" -}}
{{- $redis := .Values.redis }}
{{- $most := int (include "slipstream.mostReplicas" .Values.gateway) }}
{{- if and (eq $redis.mode "none") (gt $most 1) }}
redis.mode none keeps sessions in one gateway, but there may be {{ $most }}: set redis.mode to external (or bundled, for a trial), or gateway.replicas to 1 without a scaler
{{- end }}
{{- if eq $redis.mode "external" }}
{{- $external := $redis.external }}
{{- $placeholder := contains "$(REDIS_PASSWORD)" $external.url }}
{{- if not (or $external.url $external.existingSecret) }}
redis.mode external needs redis.external.url, or a Secret with the whole URL in redis.external.existingSecret
{{- end }}
{{- if and $placeholder (not $external.existingSecret) }}
redis.external.url has $(REDIS_PASSWORD), but no Secret holds it: set redis.external.existingSecret and redis.external.key
{{- end }}
{{- if and $external.url $external.existingSecret (not $placeholder) }}
redis.external.existingSecret is not used by redis.external.url: put the password in as redis://:$(REDIS_PASSWORD)@host:6379/0, or leave url empty where the Secret holds the whole URL
{{- end }}
{{- end }}
{{- end -}}

{{- define "slipstream.validate.access" -}}
{{- $keys := .Values.gateway.apiKeys }}
{{- if not (or $keys.existingSecret $keys.generate) }}
gateway.apiKeys: the gateway serves other machines with API keys only; name a Secret in gateway.apiKeys.existingSecret (its file is made by `python -m gateway.keys add NAME FILE`), or set gateway.apiKeys.generate
{{- end }}
{{- if eq $keys.key $keys.clearKey }}
gateway.apiKeys.key and gateway.apiKeys.clearKey are both {{ $keys.key }}: the first holds hashes, the second a key in the clear
{{- end }}
{{- end -}}

{{- define "slipstream.validate.drafter" -}}
{{- $drafter := .Values.drafter }}
{{- $plan := $drafter.layerPlan }}
{{- if $drafter.enabled }}
{{- if gt (int $drafter.shards) 1 }}
{{- if include "slipstream.scaled" $drafter }}
drafter.shards is {{ $drafter.shards }}, and a scaler adds single pods, not rows of {{ $drafter.shards }}: turn off drafter.autoscaling and drafter.keda and set drafter.replicas, or set drafter.shards to 1
{{- end }}
{{- if eq $plan.source "adaptive" }}
drafter.layerPlan.source adaptive needs a drafter in one piece, as layers would move between shards: set drafter.shards to 1, or the source to auto, configMap or tune
{{- end }}
{{- end }}
{{- if and (eq $plan.source "configMap") (not $plan.configMap.name) }}
drafter.layerPlan.source configMap needs the ConfigMap's name in drafter.layerPlan.configMap.name (`slipstream k8s save-plan` makes one)
{{- end }}
{{- end }}
{{- end -}}

{{/* The Job fetches the model, tunes, and stores the plan, by one deadline. */}}
{{- define "slipstream.validate.tune" -}}
{{- if include "slipstream.tunes" . }}
{{- $budget := .Values.tune.budget }}
{{- $least := include "slipstream.seconds" $budget | float64 | add 600 | int }}
{{- if lt (int .Values.tune.activeDeadlineSeconds) (int $least) }}
tune.activeDeadlineSeconds {{ int .Values.tune.activeDeadlineSeconds }} would end the Job before tune.budget {{ $budget }} is over and the plan is stored, as the model is fetched first: set it to {{ $least }} at least, or tune.budget lower
{{- end }}
{{- end }}
{{- end -}}

{{- define "slipstream.validate.tls" -}}
{{- $tls := .Values.tls }}
{{- $manager := $tls.certManager }}
{{- if and $tls.enabled (not $tls.existingSecret) (not $manager.enabled) }}
tls.enabled needs certificates: name a Secret with tls.crt, tls.key and ca.crt in tls.existingSecret, or set tls.certManager.enabled
{{- end }}
{{- if and $tls.existingSecret $manager.enabled }}
tls.existingSecret and tls.certManager.enabled are two sources of one certificate: leave one of them out
{{- end }}
{{- if and $manager.enabled (not $tls.enabled) }}
tls.certManager.enabled asks for a certificate that nobody uses: set tls.enabled
{{- end }}
{{- end -}}

{{- define "slipstream.validate.network" -}}
{{- $policy := .Values.networkPolicy }}
{{- $service := .Values.gateway.service }}
{{- if eq (int $service.httpPort) (int $service.grpcPort) }}
gateway.service.httpPort and gateway.service.grpcPort are both {{ int $service.httpPort }}: a Service has each port once, so give one of them another
{{- end }}
{{- if $policy.enabled }}
{{- if not $policy.gatewayFrom }}
{{- range $kind := list "ingress" "httpRoute" "grpcRoute" }}
{{- if (index $.Values.gateway $kind).enabled }}
gateway.{{ $kind }} brings requests from its controller's pods, which the NetworkPolicy keeps out: name them in networkPolicy.gatewayFrom, as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}}]
{{- end }}
{{- end }}
{{- if ne .Values.gateway.service.type "ClusterIP" }}
gateway.service.type {{ .Values.gateway.service.type }} brings requests from outside, which the NetworkPolicy keeps out: name their addresses in networkPolicy.gatewayFrom, as [{ipBlock: {cidr: 0.0.0.0/0}}]
{{- end }}
{{- end }}
{{- if and (or .Values.monitoring.serviceMonitor.enabled .Values.monitoring.podMonitor.enabled) (not $policy.metricsFrom) }}
monitoring lets Prometheus scrape, which the NetworkPolicy keeps out: name its namespace in networkPolicy.metricsFrom, as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "name" "verifier" "role" VALUES) */}}
{{- define "slipstream.validate.scaling" -}}
{{- if and .role.autoscaling.enabled .role.keda.enabled }}
{{ .name }}.autoscaling.enabled and {{ .name }}.keda.enabled would both scale the same pods: turn one of them off
{{- end }}
{{- if and .role.keda.enabled (not .root.Values.monitoring.prometheusAddress) }}
{{ .name }}.keda asks Prometheus: set monitoring.prometheusAddress, as http://prometheus-operated.monitoring:9090
{{- end }}
{{- range $kind := list "autoscaling" "keda" }}
{{- $scaler := index $.role $kind }}
{{- if and $scaler.enabled (gt (int $scaler.minReplicas) (int $scaler.maxReplicas)) }}
{{ $.name }}.{{ $kind }}.minReplicas {{ $scaler.minReplicas }} is more than maxReplicas {{ $scaler.maxReplicas }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A budget that lets no pod go keeps nodes from being drained, and clusters from being upgraded. */}}
{{- define "slipstream.validate.disruptions" -}}
{{- $pdb := .role.pdb }}
{{- if $pdb.enabled }}
{{- $least := toString $pdb.minAvailable }}
{{- $pods := mul (int (include "slipstream.leastReplicas" .role)) (int (default 1 .role.shards)) }}
{{- if ne $least "" }}
{{- $stay := int $least }}
{{- if hasSuffix "%" $least }}
{{- /* Kubernetes rounds up. */}}
{{- $stay = div (add (mul (int (trimSuffix "%" $least)) $pods) 99) 100 }}
{{- end }}
{{- if or (eq $least "100%") (and (ge (int $stay) (int $pods)) (gt (int $pods) 0)) }}
{{ .name }}.pdb.minAvailable {{ $least }} of {{ $pods }} pods lets none of them go, so that nodes can never be drained: lower it, or use {{ .name }}.pdb.maxUnavailable
{{- end }}
{{- else if has (toString $pdb.maxUnavailable) (list "0" "0%" "") }}
{{ .name }}.pdb.maxUnavailable {{ $pdb.maxUnavailable | quote }} lets no pod go, so that nodes can never be drained: set it to 1 or more, or {{ .name }}.pdb.enabled to false
{{- end }}
{{- end }}
{{- end -}}
