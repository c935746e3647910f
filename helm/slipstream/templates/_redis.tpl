{{/* The session store's address, from the root context. */}}

{{/*
The store's URL comes as a variable: Kubernetes puts the password in, which so is neither in the
object nor in the process's arguments.
*/}}
{{- define "slipstream.sessionStoreEnv" -}}
{{- $redis := .Values.redis -}}
{{- $secret := include "slipstream.redisSecret" . -}}
{{- if eq $redis.mode "none" -}}
# One gateway's own file, which ends with its pod.
- name: SLIPSTREAM_GATEWAY_SESSION_STORE
  value: sqlite:///cache/sessions.db
{{- else if and (eq $redis.mode "external") (not $redis.external.url) -}}
- name: SLIPSTREAM_GATEWAY_SESSION_STORE
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ $redis.external.key }}
{{- else -}}
{{- if $secret -}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ ternary $redis.external.key $redis.bundled.auth.key (eq $redis.mode "external") }}
{{ end -}}
- name: SLIPSTREAM_GATEWAY_SESSION_STORE
  value: {{ ternary $redis.external.url (include "slipstream.bundledRedisUrl" .) (eq $redis.mode "external") | quote }}
{{- end -}}
{{- end -}}

{{/* The bundled Redis as a role: one pod, whose data are in a volume that goes with it if in no claim. */}}
{{- define "slipstream.redisRole" -}}
{{- $redis := .Values.redis.bundled -}}
{{- $data := ternary (dict) (dict "data" $redis.persistence.size) $redis.persistence.enabled -}}
{{- toYaml (merge (dict "replicas" 1 "scratch" (merge $data $redis.scratch)) $redis) -}}
{{- end -}}

{{- define "slipstream.redisClaimTemplate" -}}
{{- with .Values.redis.bundled.persistence -}}
{{- if .enabled -}}
{{- include "slipstream.claimTemplate" (dict "root" $ "component" "redis" "name" "data" "claim" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The certificate carries the release's TLS name, not the Service's: the CA is what is checked. */}}
{{- define "slipstream.bundledRedisUrl" -}}
{{- $address := printf ":$(REDIS_PASSWORD)@%s:%s/0" (include "slipstream.host" (list . "redis")) (include "slipstream.port" "redis/redis") -}}
{{- if .Values.tls.enabled -}}
{{- $files := "/etc/slipstream/tls" -}}
{{- printf "rediss://%s?ssl_ca_certs=%s/ca.crt&ssl_certfile=%s/tls.crt&ssl_keyfile=%s/tls.key&ssl_check_hostname=false" $address $files $files $files -}}
{{- else -}}
{{- printf "redis://%s" $address -}}
{{- end -}}
{{- end -}}

{{/* The password's hash is in users.acl, of the Secret: nothing here is secret. */}}
{{- define "slipstream.redisConfig" -}}
{{- $port := include "slipstream.port" "redis/redis" -}}
bind {{ .Values.bindAddress }}
{{- if .Values.tls.enabled }}
port 0
tls-port {{ $port }}
tls-cert-file /etc/slipstream/tls/tls.crt
tls-key-file /etc/slipstream/tls/tls.key
tls-ca-cert-file /etc/slipstream/tls/ca.crt
tls-auth-clients yes
{{- else }}
port {{ $port }}
{{- end }}
aclfile /etc/redis-users/users.acl
dir /data
appendonly yes
# A session that is evicted is a lost one: better an error, which is told, than that.
maxmemory {{ .Values.redis.bundled.maxMemory }}
maxmemory-policy noeviction
{{- end -}}

{{- define "slipstream.redisPing" -}}
- redis-cli
- -e
{{- /* Bound to :: it takes IPv6 alone, and redis-cli would ask 127.0.0.1. */}}
{{- if contains ":" .Values.bindAddress }}
- -h
- "::1"
{{- end }}
- -p
- {{ include "slipstream.port" "redis/redis" | quote }}
{{- if .Values.tls.enabled }}
- --tls
- --cacert
- /etc/slipstream/tls/ca.crt
- --cert
- /etc/slipstream/tls/tls.crt
- --key
- /etc/slipstream/tls/tls.key
{{- end }}
- ping
{{- end -}}
