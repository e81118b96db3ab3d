{{- /*
Checks that a schema cannot express: values that contradict each other or the installed release. Messages name value and remedy.
*/ -}}
{{- define "sagittal.checks" -}}
{{- include "sagittal.checkWorkers" . -}}
{{- with .Values.service.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "service.autoscaling.minReplicas: %d is more than maxReplicas (%d); lower it, or raise maxReplicas" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
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
{{- $name := printf "%s-valkey" (include "sagittal.fullname" .) -}}
{{- range (lookup "apps/v1" "StatefulSet" .Release.Namespace "").items -}}
{{- $labels := default dict .metadata.labels -}}
{{- $ours := and (eq (get $labels "app.kubernetes.io/instance") $.Release.Name) (eq (get $labels "app.kubernetes.io/component") "valkey") -}}
{{- if and $ours (eq (get (default dict .metadata.annotations) "meta.helm.sh/release-name") $.Release.Name) (ne .metadata.name $name) -}}
{{- fail (printf "nameOverride, fullnameOverride: this upgrade would rename Valkey to %s and leave the queue of %s behind in the volume data-%s-0; keep the names. To start with an empty queue on purpose, delete the old one first: kubectl --namespace %s delete statefulset %s" $name .metadata.name .metadata.name $.Release.Namespace .metadata.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
