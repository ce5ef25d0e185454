{{/* The sidecar's container, as `dsobs k8s inject` makes it. */}}
{{- define "dsobs.sidecar" -}}
{{- $root := .root -}}
{{- $vllm := $root.Values.vllm -}}
{{- $sidecar := deepCopy .injected.sidecar -}}
{{- $_ := set $sidecar "image" (include "dsobs.image" $root) -}}
{{- $_ := set $sidecar "imagePullPolicy" $root.Values.image.pullPolicy -}}
{{- if $root.Values.secret -}}
{{- $_ := set $sidecar "envFrom" (list (dict "secretRef" (dict "name" $root.Values.secret))) -}}
{{- else -}}
{{- $_ := unset $sidecar "envFrom" -}}
{{- end -}}
{{- if eq $root.Values.rbac.level "none" -}}
{{- $mounts := list -}}
{{- range $sidecar.volumeMounts -}}{{- if ne .name "dsobs-token" -}}{{- $mounts = append $mounts . -}}{{- end -}}{{- end -}}
{{- $_ := set $sidecar "volumeMounts" $mounts -}}
{{- end -}}
{{- range $vllm.env -}}
{{- if eq .name "VLLM_API_KEY" -}}
{{- /* For dsobs's synthetic requests. */ -}}
{{- $key := dict "name" "DSOBS_TARGET__API_KEY" "value" "env:VLLM_API_KEY" -}}
{{- $_ := set $sidecar "env" (concat (list . $key) $sidecar.env) -}}
{{- end -}}
{{- end -}}
{{- $limits := $vllm.resources.limits | default dict -}}
{{- $requests := $vllm.resources.requests | default dict -}}
{{- $guaranteed := true -}}
{{- range list "cpu" "memory" -}}
{{- if not (hasKey $limits .) -}}{{- $guaranteed = false -}}
{{- else if ne (toString (get $limits .)) (toString (ternary (get $requests .) (get $limits .) (hasKey $requests .))) -}}
{{- $guaranteed = false -}}
{{- end -}}
{{- end -}}
{{- if $guaranteed -}}{{- $_ := set $sidecar "resources" (deepCopy .injected.guaranteedResources) -}}{{- end -}}
{{- if hasKey $limits "ephemeral-storage" -}}
{{- $_ := set $sidecar.resources.requests "ephemeral-storage" .injected.diskRequest -}}
{{- $disk := add 256 (include "dsobs.stateLimit" $root) -}}
{{- $_ := set $sidecar.resources.limits "ephemeral-storage" (printf "%dMi" $disk) -}}
{{- end -}}
{{- if and (hasKey $vllm.podSecurityContext "runAsUser") (eq (int $vllm.podSecurityContext.runAsUser) 0) -}}
{{- $_ := set $sidecar.securityContext "runAsUser" 65532 -}}
{{- $_ := set $sidecar.securityContext "runAsGroup" 65532 -}}
{{- end -}}
{{- toYaml $sidecar -}}
{{- end }}
