{{/* What containers have in common. Contexts are those of _pod.tpl. */}}

{{- define "slipstream.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* image, imagePullPolicy and security of a container. */}}
{{- define "slipstream.container" -}}
image: {{ include "slipstream.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{ include "slipstream.containerSecurity" . }}
{{- end -}}

{{/* Not empty where a `gpu` block asks for one, in one of the two ways. */}}
{{- define "slipstream.accelerated" -}}
{{- if or (gt (int .count) 0) .claimTemplate }}true{{ end -}}
{{- end -}}

{{/* Requests and limits, with the GPU, or slice of one, by its name or by the claim on it. */}}
{{- define "slipstream.resources" -}}
{{- $resources := include "slipstream.withDisk" (dict "ctx" . "resources" .role.resources) | fromYaml -}}
{{- with .role.gpu -}}
{{- if .claimTemplate -}}
{{- $_ := set $resources "claims" (list (dict "name" "gpu")) -}}
{{- else if gt (int .count) 0 -}}
{{- $_ := set $resources.limits .resource (int .count) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Where a process runs, and where it may write. `indexed` of the context: a pod of a StatefulSet. */}}
{{- define "slipstream.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- if .indexed }}
- name: POD_INDEX
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
{{- end }}
- name: HOME
  value: /cache
- name: SLIPSTREAM_CACHE
  value: /cache
- name: HF_HOME
  value: /cache/huggingface
{{- end -}}

{{/* Options of every process. */}}
{{- define "slipstream.commonArgs" -}}
{{- $telemetry := .root.Values.telemetry -}}
- --stop-grace={{ .role.stopGraceSeconds }}
- --log-level={{ $telemetry.logLevel }}
- --log-format={{ $telemetry.logFormat }}
{{- with $telemetry.otlpEndpoint }}
- --otlp-endpoint={{ . }}
{{- end }}
{{- if .root.Values.tls.enabled }}
- --tls-cert=/etc/slipstream/tls/tls.crt
- --tls-key=/etc/slipstream/tls/tls.key
- --tls-ca=/etc/slipstream/tls/ca.crt
- --tls-name={{ .root.Values.tls.name }}
{{- end }}
{{- with include "slipstream.zone" . }}
- --zone={{ . }}
{{- end }}
{{- end -}}

{{/* A zone that is given, or where endpoints are watched the one that this pod's endpoint has. */}}
{{- define "slipstream.zone" -}}
{{- if .role.zone -}}
{{- .role.zone -}}
{{- else if eq .root.Values.discovery.mode "kubernetes" -}}
k8s:///{{ include "slipstream.componentName" (list .root .component) }}
{{- end -}}
{{- end -}}

{{/* Options of what holds a model. */}}
{{- define "slipstream.modelArgs" -}}
- --model={{ include "slipstream.modelFolder" .root }}
- --served-model-name={{ include "slipstream.servedName" .root }}
- --listen={{ include "slipstream.listen" (list .root (printf "%s/grpc" .component)) }}
- --health={{ include "slipstream.listen" (list .root (printf "%s/health" .component)) }}
- --metrics={{ include "slipstream.listen" (list .root (printf "%s/metrics" .component)) }}
- --device={{ ternary "cuda" "cpu" (not (empty (include "slipstream.accelerated" .role.gpu))) }}
{{- with int (include "slipstream.threads" .) }}
- --threads={{ . }}
{{- end }}
- --dtype={{ .role.dtype }}
- --kv-cache-gib={{ .role.kvCacheGib }}
- --max-sequences={{ int .role.maxSequences }}
{{- end -}}

{{/* Threads on a CPU: as given, or the CPUs of the limit, rounded up; 0 where there is none. */}}
{{- define "slipstream.threads" -}}
{{- $cpu := toString (dig "limits" "cpu" "" (default (dict) .role.resources)) -}}
{{- if or (include "slipstream.accelerated" .role.gpu) (and (not .role.threads) (not $cpu)) -}}
0
{{- else if .role.threads -}}
{{- int .role.threads -}}
{{- else -}}
{{- include "slipstream.quantity" $cpu | float64 | ceil -}}
{{- end -}}
{{- end -}}

{{/* One HTTP or gRPC probe's budget. */}}
{{- define "slipstream.budget" -}}
periodSeconds: {{ int .periodSeconds }}
timeoutSeconds: {{ int .timeoutSeconds }}
failureThreshold: {{ int .failureThreshold }}
{{- end -}}

{{/* The kubelet's own gRPC probes of the health port, which stays plain where there is TLS. */}}
{{- define "slipstream.grpcProbes" -}}
{{- range $probe := list "startup" "liveness" "readiness" }}
{{ $probe }}Probe:
  grpc:
    port: {{ include "slipstream.port" (printf "%s/health" $.component) }}
    service: {{ $probe }}
  {{- include "slipstream.budget" (index $.role.probes $probe) | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Volumes: what may be written, the model, TLS; then the role's own. */}}
{{- define "slipstream.volumes" -}}
{{- include "slipstream.scratchVolumes" . | trim }}
{{- include "slipstream.modelVolume" . }}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "slipstream.tlsSecret" .root }}
    defaultMode: 0440
{{- end }}
{{- with .role.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* For serving: the model is read-only. */}}
{{- define "slipstream.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: cache
  mountPath: /cache
- name: models
  mountPath: /models
  readOnly: true
{{- if .root.Values.tls.enabled }}
- name: tls
  mountPath: /etc/slipstream/tls
  readOnly: true
{{- end }}
{{- with .role.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of verifiers and drafters. */}}
{{- define "slipstream.modelPorts" -}}
ports:
  {{- range $name := list "grpc" "health" "metrics" }}
  - name: {{ $name }}
    containerPort: {{ include "slipstream.port" (printf "%s/%s" $.component $name) }}
  {{- end }}
{{- end -}}
