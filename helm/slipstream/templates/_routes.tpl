{{/* What leads from outside to the gateway. */}}

{{/*
An Ingress of one protocol: (dict "root" $ "name" NAME "ingress" VALUES "hosts" LIST "paths" LIST
"port" "http" "protocol" "HTTP"). No hosts: any.
*/}}
{{- define "slipstream.ingress" }}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- $annotations := ternary (include "slipstream.nginxAnnotations" . | fromYaml) (dict) .ingress.nginx.enabled }}
  {{- include "slipstream.metadata" (dict "root" .root "component" "gateway" "name" .name "annotations" (merge (dict) .ingress.annotations $annotations)) | nindent 2 }}
spec:
  {{- with .ingress.className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with .ingress.tlsSecret }}
  tls:
    - secretName: {{ . }}
      {{- with $.hosts }}
      hosts:
        {{- toYaml . | nindent 8 }}
      {{- end }}
  {{- end }}
  rules:
    {{- range default (list "") .hosts }}
    - http:
        paths:
          {{- range $.paths }}
          - path: {{ . }}
            pathType: Prefix
            backend:
              service:
                name: {{ include "slipstream.componentName" (list $.root "gateway") }}
                port:
                  name: {{ $.port }}
          {{- end }}
      {{- with . }}
      host: {{ . | quote }}
      {{- end }}
    {{- end }}
{{- end -}}

{{/*
What ingress-nginx must be told for streams: it would hold tokens back until its buffer is full, and
cut a stream after a minute of silence, as in a long queue.
*/}}
{{- define "slipstream.nginxAnnotations" -}}
{{- $nginx := .ingress.nginx -}}
nginx.ingress.kubernetes.io/backend-protocol: {{ .protocol }}
nginx.ingress.kubernetes.io/proxy-buffering: "off"
nginx.ingress.kubernetes.io/proxy-read-timeout: {{ int $nginx.timeoutSeconds | quote }}
nginx.ingress.kubernetes.io/proxy-send-timeout: {{ int $nginx.timeoutSeconds | quote }}
nginx.ingress.kubernetes.io/proxy-body-size: {{ $nginx.bodySize | quote }}
{{- end -}}

{{/* Takes the values of a route, and its name there: (list VALUES "httpRoute"). */}}
{{- define "slipstream.routeParents" -}}
{{- $route := first . -}}
{{- if not $route.parentRefs -}}
{{- fail (printf "gateway.%s.enabled is true, but gateway.%s.parentRefs names no Gateway, as [{name: public, namespace: gateways}]" (last .) (last .)) -}}
{{- end -}}
parentRefs:
  {{- toYaml $route.parentRefs | nindent 2 }}
{{- with $route.hostnames }}
hostnames:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
