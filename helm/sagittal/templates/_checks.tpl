{{- /*
Checks that a schema cannot express: values that contradict each other or the installed release. Messages name value and remedy.
*/ -}}
{{- define "sagittal.checks" -}}
{{- include "sagittal.checkWorkers" . -}}
{{- include "sagittal.checkResources" . -}}
{{- include "sagittal.checkDecoderMemory" . -}}
{{- with .Values.service.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "service.autoscaling.minReplicas: %d is more than maxReplicas (%d); lower it, or raise maxReplicas" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.page.enabled -}}{{- include "sagittal.checkPage" . -}}{{- end -}}
{{- if .Values.valkey.enabled -}}
{{- include "sagittal.checkValkeyMemory" . -}}
{{- include "sagittal.checkValkeyName" . -}}
{{- end -}}
{{- end -}}

{{- define "sagittal.checkWorkers" -}}
{{- $names := list -}}
{{- range (include "sagittal.workers" . | fromJson).workers -}}
{{- if has .name $names -}}
{{- fail (printf "workers: two entries have the name %s; give each its own, because its Deployment is named after it" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if and .keda.enabled (gt (int .keda.minReplicas) (int .keda.maxReplicas)) -}}
{{- fail (printf "workers: %s has keda.minReplicas %d, which is more than keda.maxReplicas (%d); lower it, or raise keda.maxReplicas" .name (int .keda.minReplicas) (int .keda.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Kubernetes refuses requests above limits, and the kernel kills a process that may use more memory than its pod. */ -}}
{{- define "sagittal.checkResources" -}}
{{- $places := dict "service" .Values.service "page" .Values.page "valkey" .Values.valkey "valkey.exporter" .Values.valkey.exporter -}}
{{- $_ := set $places "prefetch" .Values.prefetch -}}
{{- range (include "sagittal.workers" . | fromJson).workers -}}
{{- $_ := set $places (printf "workers: %s," .name) . -}}
{{- include "sagittal.checkWorkerMemory" . -}}
{{- end -}}
{{- range $place, $values := $places -}}
{{- $requests := default dict $values.resources.requests -}}
{{- range $resource, $limit := default dict $values.resources.limits -}}
{{- with get $requests $resource -}}
{{- if gt (float64 (include "sagittal.bytes" .)) (float64 (include "sagittal.bytes" $limit)) -}}
{{- fail (printf "%s resources.requests.%s: %v is more than the limit (%v); lower it, or raise resources.limits.%s" $place $resource . $limit $resource) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* On a GPU, model_memory_mib is the GPU's. */ -}}
{{- define "sagittal.checkWorkerMemory" -}}
{{- $limits := default dict .resources.limits -}}
{{- $settings := list "memory_ceiling_mib" -}}
{{- if not (regexMatch "/" (keys $limits | join " ")) -}}{{- $settings = append $settings "model_memory_mib" -}}{{- end -}}
{{- range $setting := $settings -}}
{{- $bytes := mulf (get (default dict $.settings) $setting | default 0) 1048576 -}}
{{- if and $limits.memory (gt $bytes (float64 (include "sagittal.bytes" $limits.memory))) -}}
{{- fail (printf "workers: %s, settings.%s: %v MiB is more than the pod's limit (%v): the kernel would kill the worker first; lower it, or raise resources.limits.memory" $.name $setting (get $.settings $setting) $limits.memory) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sagittal.checkPage" -}}
{{- if and .Values.tls.existingSecret .Values.tls.clientCaSecret -}}
{{- fail "page.enabled: the service asks for client certificates (tls.clientCaSecret), and the page has none; use tokens instead" -}}
{{- end -}}
{{- if and .Values.page.separate .Values.tls.existingSecret (not .Values.page.caSecret) -}}
{{- fail "page.caSecret: the service uses TLS (tls.existingSecret); name a secret whose key ca.crt has the authority of its certificate" -}}
{{- end -}}
{{- if not .Values.page.separate -}}
{{- if has (int .Values.page.port) (list (int .Values.service.port) (int .Values.service.metricsPort)) -}}
{{- fail (printf "page.port: the service has the port %d for something else; choose another" (int .Values.page.port)) -}}
{{- end -}}
{{- range $name := list "caSecret" "podAnnotations" "podLabels" "nodeSelector" "tolerations" "affinity" "priorityClassName" "topologySpreadConstraints" -}}
{{- if get $.Values.page $name -}}
{{- fail (printf "page.%s: the page runs in the pods of the service, which have their own values; remove it, or set page.separate" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The processes that read images may use decode_memory and 60 MB each, and the page 256 MiB for open requests. */ -}}
{{- define "sagittal.checkDecoderMemory" -}}
{{- with dig "limits" "memory" "" .Values.service.resources -}}
{{- $settings := $.Values.service.settings -}}
{{- $decoders := int (dig "images__decode_processes" 2 $settings) -}}
{{- $memory := int64 (dig "images__decode_memory" 268435456 $settings) -}}
{{- $needed := mul $decoders (add $memory 62914560) -}}
{{- $page := ternary " and the page" "" (and $.Values.page.enabled (not $.Values.page.separate)) -}}
{{- if $page -}}{{- $needed = add $needed 268435456 -}}{{- end -}}
{{- if gt (float64 $needed) (float64 (include "sagittal.bytes" .)) -}}
{{- fail (printf "service.settings: %d image decoders of images__decode_memory %d and 60 MB each%s may use more than the pod's limit (service.resources.limits.memory: %v); lower them, or raise the limit" $decoders $memory $page .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
Beyond max_stored_bytes the queue deletes the oldest answers; beyond maxMemory it refuses new jobs; beyond the pod's limit the
kernel kills Valkey. maxmemory does not count the rewriting of the append-only file and connections: they need a quarter of the limit.
*/ -}}
{{- define "sagittal.checkValkeyMemory" -}}
{{- $memory := .Values.valkey.maxMemory -}}
{{- $unit := get (dict "kb" 1024 "mb" 1048576 "gb" 1073741824) (regexFind "[a-z]+$" $memory) -}}
{{- $bytes := mul (regexFind "^[0-9]+" $memory) $unit -}}
{{- $kept := int64 (dig "max_stored_bytes" 2147483648 .Values.queue.settings) -}}
{{- if gt $kept $bytes -}}
{{- fail (printf "valkey.maxMemory: %s is less than the %d bytes that the queue stores; lower queue.settings.max_stored_bytes, or raise maxMemory" $memory $kept) -}}
{{- end -}}
{{- with dig "limits" "memory" "" .Values.valkey.resources -}}
{{- if gt (mulf $bytes 4) (mulf (include "sagittal.bytes" .) 3) -}}
{{- fail (printf "valkey.maxMemory: %s is more than three quarters of the pod's limit (valkey.resources.limits.memory: %v): Valkey would be killed before it refuses jobs; lower maxMemory, or raise the limit" $memory .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Bytes of a memory quantity in Kubernetes notation. */ -}}
{{- define "sagittal.bytes" -}}
{{- $quantity := toString . -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 -}}
{{- $units = merge $units (dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976) -}}
{{- if regexMatch "[eE][0-9+]" $quantity -}}
{{- float64 $quantity -}}
{{- else -}}
{{- mulf (float64 (regexFind "^[0-9.]+" $quantity)) (get $units (regexFind "[A-Za-z]*$" $quantity)) -}}
{{- end -}}
{{- end -}}

{{- /* Other object names mean another StatefulSet with an empty volume, so the queue would be left behind. */ -}}
{{- define "sagittal.checkValkeyName" -}}
{{- if .Release.IsUpgrade -}}
{{- $name := include "sagittal.valkeyName" . -}}
{{- range (lookup "apps/v1" "StatefulSet" .Release.Namespace "").items -}}
{{- $labels := default dict .metadata.labels -}}
{{- $ours := and (eq (get $labels "app.kubernetes.io/instance") $.Release.Name) (eq (get $labels "app.kubernetes.io/component") "valkey") -}}
{{- if and $ours (eq (get (default dict .metadata.annotations) "meta.helm.sh/release-name") $.Release.Name) (ne .metadata.name $name) -}}
{{- fail (printf "nameOverride, fullnameOverride, valkey.replicas: this upgrade would rename Valkey to %s and leave the queue of %s behind in the volume data-%s-0; keep these values. To start with an empty queue on purpose, delete the old one first: kubectl --namespace %s delete statefulset %s" $name .metadata.name .metadata.name $.Release.Namespace .metadata.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
