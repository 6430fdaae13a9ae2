{{- define "calibrator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 52 characters leave room for the longest suffix. */}}
{{- define "calibrator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "calibrator.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "calibrator.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What never changes: selectors cannot be edited. */}}
{{- define "calibrator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "calibrator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "calibrator.labels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "calibrator.selectorLabels" . }}
{{- end }}

{{- define "calibrator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "calibrator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "calibrator.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{/* Directory of the secrets' files. */}}
{{- define "calibrator.secretsPath" -}}/run/secrets/calibrator{{- end }}

{{/* calibrator.yaml: `config` and what only the chart can know. */}}
{{- define "calibrator.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $_ := set $config "listen" (dict "host" .Values.listenHost "port" 8300) }}
{{- $_ = set $config "store" (merge (dict "path" "/var/lib/calibrator/calibrator.db") (default dict $config.store)) }}
{{- if .Values.haproxyAgent.enabled }}
{{- $gateways := default dict $config.gateways }}
{{- $_ = set $gateways "haproxy" (dict "host" .Values.listenHost "port" 8301) }}
{{- $_ = set $config "gateways" $gateways }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* Combinations that a schema cannot explain. Each sentence says what is wrong and what to write instead. */}}
{{- define "calibrator.validate" -}}
{{- if ne (int .Values.replicaCount) 1 }}
{{- fail (printf "replicaCount: %v is refused. SQLite has one writer, and two calibrators would measure the same engines at the same time. Leave it at 1." .Values.replicaCount) }}
{{- end }}
{{- if not .Values.config.backends }}
{{- fail "config.backends is empty: there is nothing to calibrate. Give at least one backend with url, model, objectives and fallback_cap." }}
{{- end }}
{{- if hasKey .Values.config "listen" }}
{{- fail "config.listen is set by the chart. Leave it out; the ports of the Service are service.port and haproxyAgent.port, the address is listenHost." }}
{{- end }}
{{- if hasKey (default dict .Values.config.store) "path" }}
{{- fail "config.store.path is set by the chart, to the volume of `persistence`. Leave it out." }}
{{- end }}
{{- if hasKey (default dict .Values.config.gateways) "haproxy" }}
{{- fail "config.gateways.haproxy is set by the chart. Leave it out and give haproxyAgent.enabled: true." }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if regexMatch "^(?i)CALIBRATOR_(LISTEN__|STORE__PATH|GATEWAYS__HAPROXY__)" .name }}
{{- fail (printf "extraEnv %s would move what the Service, the probes and the volume rely on. Leave it out." .name) }}
{{- end }}
{{- end }}
{{- $root := include "calibrator.secretsPath" . }}
{{- range regexFindAll (printf "%s/[^\\s\"'},]+" $root) (toYaml .Values.config) -1 }}
{{- $name := trimPrefix (printf "%s/" $root) . }}
{{- if not (hasKey $.Values.secrets $name) }}
{{- fail (printf "config refers to %s, but there is no secrets.%s. Give it its secretName and key." . $name) }}
{{- end }}
{{- end }}
{{- if lt (int .Values.terminationGracePeriodSeconds) (add (int .Values.preStopSleepSeconds) 15 | int) }}
{{- fail (printf "terminationGracePeriodSeconds: %v is too short: preStopSleepSeconds (%v) counts inside it, and ending probes, saving and answering take up to 15 s." .Values.terminationGracePeriodSeconds .Values.preStopSleepSeconds) }}
{{- end }}
{{- if and .Values.haproxyAgent.enabled (eq (int .Values.service.port) (int .Values.haproxyAgent.port)) }}
{{- fail "service.port and haproxyAgent.port are the same. Give two ports." }}
{{- end }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) }}
{{- fail "networkPolicy.egress is empty: the calibrator could reach no engine. Give rules towards the engines' ports." }}
{{- end }}
{{- with .Values.podDisruptionBudget }}
{{- if and .enabled (eq (kindIs "invalid" .minAvailable) (kindIs "invalid" .maxUnavailable)) }}
{{- fail "podDisruptionBudget: give one of minAvailable and maxUnavailable." }}
{{- end }}
{{- end }}
{{- end }}
