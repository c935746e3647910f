{{/* What works, but should be known: a line each, for NOTES.txt. */}}
{{- define "slipstream.warnings" -}}
{{- $most := int (include "slipstream.mostReplicas" .Values.verifier) }}
{{- if eq .Values.redis.mode "bundled" }}
- The bundled Redis is one pod{{ if not .Values.redis.bundled.persistence.enabled }} without persistence{{ end }}: while it restarts nothing can be resumed. For production: redis.mode=external.
{{- else if eq .Values.redis.mode "none" }}
- Sessions and streams end with the gateway's pod: redis.mode=external keeps them.
{{- end }}
{{- if lt $most 2 }}
- One verifier: while its pod is replaced running answers wait, and new requests get 503. verifier.replicas=2 mends that.
{{- end }}
{{- if lt (int (include "slipstream.mostReplicas" .Values.gateway)) 2 }}
- One gateway: connections break when its pod is replaced, and clients have to come back for the rest.
{{- end }}
{{- if and (eq .Values.model.cache.type "ephemeral") (not .Values.model.path) }}
- Each pod fetches the model at each start (model.cache.type=ephemeral): perPod or shared keep it.
{{- end }}
{{- if and (eq .Values.model.cache.type "shared") (not (has "ReadWriteMany" .Values.model.cache.accessModes)) (not .Values.model.cache.existingClaim) }}
- The shared claim is not ReadWriteMany: all pods must be on one node.
{{- end }}
{{- if and (not .Values.model.path) (ne .Values.model.name "default") (not (contains "@" .Values.model.name)) }}
- {{ .Values.model.name }} has no revision: pods that fetch it at different times may hold different ones. Add @REVISION.
{{- end }}
{{- if not (include "slipstream.drafts" .) }}
- No drafter: answers come at the speed of plain decoding.
{{- end }}
{{- if not .Values.tls.enabled }}
- Prompts and tokens are not encrypted between the pods: tls.enabled.
{{- end }}
{{- if not .Values.networkPolicy.enabled }}
- Every pod of the cluster reaches verifiers and drafters, which ask for no key: networkPolicy.enabled.
{{- end }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.gatewayFrom) }}
- Only pods of {{ .Release.Namespace }} reach the gateway (and port-forward): networkPolicy.gatewayFrom.
{{- end }}
{{- end -}}
