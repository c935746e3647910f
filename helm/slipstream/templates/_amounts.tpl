{{/* What amounts mean, so that they can be compared and added. */}}

{{/*
A Kubernetes quantity in its base unit, for float64: 500m is 0.5, 2Gi 2147483648. Products are of
decimals, so equal amounts are equal however they are written.
*/}}
{{- define "slipstream.quantity" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+([eE][+-]?[0-9]+)?" $text -}}
{{- $units := dict "" 1 "n" 1e-9 "u" 1e-6 "m" 1e-3
  "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
  "Ki" 1024 "Mi" 1048576 "Gi" 1073741824
  "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- mulf (float64 $number) (get $units (trimPrefix $number $text)) -}}
{{- end -}}

{{/* Bytes, as a float64, as a quantity: whole GiB, or whole MiB, rounded up. */}}
{{- define "slipstream.size" -}}
{{- $mebibytes := ceil (divf . 1048576) | int64 -}}
{{- if mod $mebibytes 1024 }}{{ $mebibytes }}Mi{{ else }}{{ div $mebibytes 1024 }}Gi{{ end -}}
{{- end -}}

{{/* A duration such as 1h30m in seconds, for float64. */}}
{{- define "slipstream.seconds" -}}
{{- $units := dict "ms" 1e-3 "s" 1 "m" 60 "h" 3600 "d" 86400 -}}
{{- $total := 0.0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 -}}
{{- $number := regexFind "^[0-9]+" . -}}
{{- $total = addf $total (mulf (float64 $number) (get $units (trimPrefix $number .))) -}}
{{- end -}}
{{- $total -}}
{{- end -}}

{{/* Bytes of Redis's own units, for float64: its kb is 1024, and there is no other in the schema. */}}
{{- define "slipstream.redisBytes" -}}
{{- include "slipstream.quantity" (regexReplaceAll "b$" . "i" | replace "k" "K" | replace "m" "M" | replace "g" "G") -}}
{{- end -}}
