{{/* Names, labels, addresses and images: every template asks here, so that each has one spelling. */}}

{{- define "slipstream.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters: names of pods, and of Services with a suffix, stay within 63. */}}
{{- define "slipstream.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "slipstream.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "slipstream.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Takes (list root component). */}}
{{- define "slipstream.componentName" -}}
{{- printf "%s-%s" (include "slipstream.fullname" (first .)) (last .) -}}
{{- end -}}

{{/* What never changes in the life of a release: (list root component). */}}
{{- define "slipstream.selectorLabels" -}}
{{- $root := first . -}}
app.kubernetes.io/name: {{ include "slipstream.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{/* Labels of an object: (list root component), component "" for what belongs to no role. */}}
{{- define "slipstream.labels" -}}
{{- $root := first . -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "slipstream.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with last . }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: slipstream
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The metadata of an object: (dict "root" $ "component" "verifier" "name" NAME "annotations" MAP);
without a name, the component's own.
*/}}
{{- define "slipstream.metadata" -}}
name: {{ default (include "slipstream.componentName" (list .root .component)) .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "slipstream.labels" (list .root .component) | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
An image: (dict "root" $ "role" VALUES). What has a `gpu` block holds a model, and has an image for
CPUs and one for CUDA; the gateway has one for all.
*/}}
{{- define "slipstream.image" -}}
{{- $image := .role.image -}}
{{- $name := $image.repository -}}
{{- with default .root.Values.image.registry $image.registry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name -}}
{{- end -}}
{{- $tag := .root.Chart.AppVersion -}}
{{- with .role.gpu -}}
{{- $variant := $.root.Values.image.variant -}}
{{- if eq $variant "auto" }}{{ $variant = ternary "cuda" "cpu" (not (empty (include "slipstream.accelerated" .))) }}{{ end -}}
{{- $tag = printf "%s-%s" $tag $variant -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default $tag $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A port's number, by its name: "gateway/http". */}}
{{- define "slipstream.port" -}}
{{- $ports := dict "gateway/http" 8000 "gateway/grpc" 50050
  "verifier/grpc" 50051 "verifier/health" 50061 "verifier/metrics" 9400
  "drafter/grpc" 50052 "drafter/health" 50062 "drafter/metrics" 9401
  "redis/redis" 6379 -}}
{{- required (printf "no port is called %s" .) (get $ports .) -}}
{{- end -}}

{{/* host:port to listen on, by the port's name: (list root "verifier/grpc"). */}}
{{- define "slipstream.listen" -}}
{{- $host := (first .).Values.bindAddress -}}
{{- printf "%s:%s" (ternary (printf "[%s]" $host) $host (contains ":" $host)) (include "slipstream.port" (last .)) -}}
{{- end -}}

{{/* host:port by which others reach this pod, by the port's name: (list root "verifier/grpc"). */}}
{{- define "slipstream.ownAddress" -}}
{{- $ipv6 := contains ":" (first .).Values.bindAddress -}}
{{- printf "%s:%s" (ternary "[$(POD_IP)]" "$(POD_IP)" $ipv6) (include "slipstream.port" (last .)) -}}
{{- end -}}

{{/* A Service's name in DNS: (list root component). */}}
{{- define "slipstream.host" -}}
{{- printf "%s.%s.svc" (include "slipstream.componentName" .) (first .).Release.Namespace -}}
{{- end -}}

{{/* How our processes find all pods of a role: (list root component). */}}
{{- define "slipstream.peers" -}}
{{- $port := include "slipstream.port" (printf "%s/grpc" (last .)) -}}
{{- if eq (first .).Values.discovery.mode "kubernetes" -}}
{{- printf "k8s:///%s:%s" (include "slipstream.componentName" .) $port -}}
{{- else -}}
{{- printf "dns:///%s:%s" (include "slipstream.host" .) $port -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "component" NAME "role" VALUES) */}}
{{- define "slipstream.serviceAccountName" -}}
{{- $own := ternary (include "slipstream.componentName" (list .root .component)) "default" .role.serviceAccount.create -}}
{{- default $own .role.serviceAccount.name -}}
{{- end -}}

{{/* Secrets and ConfigMaps that are given or made. */}}
{{- define "slipstream.apiKeysSecret" -}}
{{- $keys := .Values.gateway.apiKeys -}}
{{- default (printf "%s-api-keys" (include "slipstream.fullname" .)) $keys.existingSecret -}}
{{- end -}}

{{- define "slipstream.redisSecret" -}}
{{- if eq .Values.redis.mode "external" -}}
{{- .Values.redis.external.existingSecret -}}
{{- else -}}
{{- default (printf "%s-redis" (include "slipstream.fullname" .)) .Values.redis.bundled.auth.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "slipstream.tlsSecret" -}}
{{- default (printf "%s-tls" (include "slipstream.fullname" .)) .Values.tls.existingSecret -}}
{{- end -}}

{{- define "slipstream.modelClaim" -}}
{{- default (printf "%s-models" (include "slipstream.fullname" .)) .Values.model.cache.existingClaim -}}
{{- end -}}

{{- define "slipstream.layerPlanConfigMap" -}}
{{- $plan := .Values.drafter.layerPlan -}}
{{- if eq $plan.source "tune" -}}
{{- /* A plan is one model's: with another model drafters wait for that one's, and do not fail on this. */ -}}
{{- printf "%s-layer-plan-%s" (include "slipstream.fullname" .) (include "slipstream.modelFolder" . | sha256sum | trunc 8) -}}
{{- else -}}
{{- $plan.configMap.name -}}
{{- end -}}
{{- end -}}

{{/* The model: its folder in the containers, and the name that clients use. */}}
{{- define "slipstream.modelFolder" -}}
{{- if .Values.model.path -}}
{{- .Values.model.path -}}
{{- else -}}
{{- printf "/models/%s" (regexReplaceAll "[^A-Za-z0-9._-]+" .Values.model.name "--") -}}
{{- end -}}
{{- end -}}

{{- define "slipstream.servedName" -}}
{{- if .Values.model.servedName -}}
{{- .Values.model.servedName -}}
{{- else if .Values.model.path -}}
{{- base .Values.model.path -}}
{{- else if eq (lower .Values.model.name) "default" -}}
smollm2-135m-instruct
{{- else -}}
{{- regexReplaceAll "@.*$" .Values.model.name "" -}}
{{- end -}}
{{- end -}}
