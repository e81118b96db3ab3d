{{- define "sagittal.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sagittal.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Placement of pods. Takes a dict of root, pod (values) and selector (text). */ -}}
{{- define "sagittal.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if hasKey .pod "topologySpreadConstraints" }}
topologySpreadConstraints:
{{- if .pod.topologySpreadConstraints }}
{{- toYaml .pod.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- $.selector | nindent 8 }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Environment variables for the queue, for service and workers. */ -}}
{{- define "sagittal.queueEnv" -}}
{{- $queue := .Values.queue -}}
{{- $secret := $queue.existingSecret -}}
{{- $key := $queue.secretPasswordKey -}}
{{- $shards := "" -}}
{{- range $queue.shards }}{{ $shards = printf "%s,%s" $shards . }}{{ end -}}
{{- if .Values.valkey.enabled -}}
{{- if or $queue.url $secret -}}
{{- fail "queue: valkey.enabled and an external Redis are both set; set valkey.enabled to false, or leave queue.url and queue.existingSecret empty" -}}
{{- end -}}
{{- $secret = include "sagittal.valkeySecret" . -}}
{{- $key = .Values.valkey.secretPasswordKey -}}
{{- $name := include "sagittal.valkeyName" . -}}
- name: SAGITTAL_QUEUE__URL
  value: {{ printf "redis://%s:6379/0%s" $name $shards }}
{{- if gt (int .Values.valkey.replicas) 1 }}
{{- if $shards -}}
{{- fail "queue.shards: valkey.replicas is more than 1; Sentinels name the primary of one server only" -}}
{{- end }}
{{- $sentinels := list -}}
{{- range $index := until (int .Values.valkey.replicas) -}}
{{- $sentinels = append $sentinels (printf "%s-%d.%s.%s.svc:26379" $name $index $name $.Release.Namespace) -}}
{{- end }}
- name: SAGITTAL_QUEUE__SENTINELS
  value: {{ toJson $sentinels | quote }}
- name: SAGITTAL_QUEUE__SYNCHRONOUS_REPLICAS
  value: "1"
{{- end }}
{{- else if and $secret $queue.secretUrlKey -}}
{{- if $shards -}}
{{- fail "queue.shards: queue.secretUrlKey is set too; put all URLs into the secret, separated by commas" -}}
{{- end -}}
- name: SAGITTAL_QUEUE__URL
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ $queue.secretUrlKey }}
{{- else -}}
- name: SAGITTAL_QUEUE__URL
  value: {{ printf "%s%s" (required "queue.url: not set, but valkey.enabled is false; set the URL of an external Redis" $queue.url) $shards | quote }}
{{- end }}
{{- if and $secret $key }}
- name: SAGITTAL_QUEUE__PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ $key }}
{{- end }}
{{- range $name, $value := $queue.settings }}
- name: SAGITTAL_QUEUE__{{ upper $name }}
  value: {{ include "sagittal.setting" $value }}
{{- end }}
{{- end -}}

{{- /* Certificates for TLS to Redis, for service and workers; nothing if the system's suffice. */ -}}
{{- define "sagittal.redisTlsMount" -}}
{{- if .Values.queue.tlsSecret -}}
- {name: redis-tls, mountPath: /etc/redis-tls, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "sagittal.redisTlsVolume" -}}
{{- with .Values.queue.tlsSecret -}}
- name: redis-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end -}}
{{- end -}}

{{- /* Trace collector, for service and workers. */ -}}
{{- define "sagittal.tracingEnv" -}}
{{- if .Values.tracing.endpoint }}
- name: SAGITTAL_TRACING__ENDPOINT
  value: {{ .Values.tracing.endpoint | quote }}
{{- end }}
{{- end -}}

{{- /* Other settings: SAGITTAL_ followed by the name in upper case. */ -}}
{{- define "sagittal.settingsEnv" -}}
{{- range $name, $value := . }}
- name: SAGITTAL_{{ upper $name }}
  value: {{ include "sagittal.setting" $value }}
{{- end }}
{{- end -}}

{{- /* Settings of the page, in the service or in a program of its own. */ -}}
{{- define "sagittal.pageEnv" -}}
{{- $page := .Values.page -}}
- {name: SAGITTAL_PAGE_LISTEN_HOST, value: 0.0.0.0}
- {name: SAGITTAL_PAGE_LISTEN_PORT, value: {{ $page.port | quote }}}
- {name: SAGITTAL_PAGE_DRAIN, value: {{ $page.drainSeconds | quote }}}
{{- with $page.origins }}
- {name: SAGITTAL_PAGE_ORIGINS, value: {{ join "," . | quote }}}
{{- end }}
{{- with $page.tokenHeader }}
- {name: SAGITTAL_PAGE_TOKEN_HEADER, value: {{ . | quote }}}
{{- end }}
{{- with $page.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* A value as an environment variable: large numbers without exponents, structures as JSON. */ -}}
{{- define "sagittal.setting" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ printf "%.0f" . | quote }}{{ else }}{{ toString . | quote }}{{ end -}}
{{- else if or (kindIs "map" .) (kindIs "slice" .) -}}
{{- toJson . | quote -}}
{{- else -}}
{{- toString . | quote -}}
{{- end -}}
{{- end -}}

{{- /* Where workers keep fetched weights and measured batch sizes. */ -}}
{{- define "sagittal.cacheVolume" -}}
{{- $claim := include "sagittal.claim" (dict "root" . "storage" "modelCache") -}}
{{- if and $claim .Values.modelCache.hostPath -}}
{{- fail "modelCache: hostPath is set together with a claim; leave one of them empty" -}}
{{- end -}}
{{- if $claim -}}
persistentVolumeClaim: {claimName: {{ $claim }}}
{{- else if .Values.modelCache.hostPath -}}
hostPath: {path: {{ .Values.modelCache.hostPath }}, type: Directory}
{{- else -}}
emptyDir: {sizeLimit: {{ .Values.modelCache.size }}}
{{- end -}}
{{- end -}}
