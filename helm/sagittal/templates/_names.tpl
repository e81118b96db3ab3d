{{- define "sagittal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sagittal.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "sagittal.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sagittal.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Labels common to every selector of the release. An upgrade cannot change selectors: add nothing here. */ -}}
{{- define "sagittal.releaseSelector" -}}
app.kubernetes.io/name: {{ include "sagittal.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sagittal.labels" -}}
{{ include "sagittal.releaseSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Labels of pods. They must not change with the chart's version, because each change restarts the pods, including Valkey. */ -}}
{{- define "sagittal.podLabels" -}}
{{ include "sagittal.releaseSelector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sagittal.pageSelector" -}}
{{ include "sagittal.releaseSelector" . }}
app.kubernetes.io/component: page
{{- end -}}

{{- define "sagittal.backupSelector" -}}
{{ include "sagittal.releaseSelector" . }}
app.kubernetes.io/component: backup
{{- end -}}

{{- define "sagittal.prefetchSelector" -}}
{{ include "sagittal.releaseSelector" . }}
app.kubernetes.io/component: prefetch
{{- end -}}

{{- define "sagittal.serviceSelector" -}}
{{ include "sagittal.releaseSelector" . }}
app.kubernetes.io/component: service
{{- end -}}

{{- /* Selects all workers. */ -}}
{{- define "sagittal.workersSelector" -}}
{{ include "sagittal.releaseSelector" . }}
app.kubernetes.io/component: worker
{{- end -}}

{{- /* Selects one worker deployment. Takes a dict of root and worker. */ -}}
{{- define "sagittal.workerSelector" -}}
{{ include "sagittal.workersSelector" .root }}
sagittal/worker: {{ .worker.name }}
{{- end -}}

{{- define "sagittal.valkeySelector" -}}
{{ include "sagittal.releaseSelector" . }}
app.kubernetes.io/component: valkey
{{- end -}}

{{- /* Image reference. Takes a dict of root and image. */ -}}
{{- define "sagittal.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default (list .root.Chart.AppVersion .image.variant | compact | join "-") .image.tag }}
{{- end -}}
{{- end -}}

{{- /* The entries of `workers` merged with `workerDefaults`, as JSON of {"workers": [...]}. */ -}}
{{- define "sagittal.workers" -}}
{{- $workers := list -}}
{{- range .Values.workers -}}
{{- $worker := mergeOverwrite (deepCopy $.Values.workerDefaults) . -}}
{{- if not $worker.models -}}
{{- fail (printf "workers: %s has no models; list names from `models`" $worker.name) -}}
{{- end -}}
{{- if and $worker.keda.enabled (not $.Values.keda.prometheusUrl) -}}
{{- fail (printf "workers: %s has keda.enabled without keda.prometheusUrl; set the URL of Prometheus" $worker.name) -}}
{{- end -}}
{{- range $worker.models -}}
{{- $toml := get $.Values.models . -}}
{{- if not $toml -}}
{{- fail (printf "workers: %s serves the model %s, which `models` does not have; add it there" $worker.name .) -}}
{{- end -}}
{{- if not (regexMatch (printf `(?m)^\s*name\s*=\s*"%s"` (regexQuoteMeta .)) $toml) -}}
{{- fail (printf "models: the TOML of %s must have name = %q" . .) -}}
{{- end -}}
{{- end -}}
{{- $workers = append $workers $worker -}}
{{- end -}}
{{- toJson (dict "workers" $workers) -}}
{{- end -}}
