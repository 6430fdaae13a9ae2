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

{{/* Files by name, as in `secrets`: those of the user, and those of the database. */}}
{{- define "calibrator.secrets" -}}
{{- $secrets := deepCopy .Values.secrets }}
{{- with .Values.postgresql }}
{{- if .enabled }}
{{- $_ := set $secrets "postgresql-url" (dict "secretName" .secretName "key" .key) }}
{{- if .caSecretName }}
{{- $_ := set $secrets "postgresql-ca" (dict "secretName" .caSecretName "key" .caKey) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $secrets }}
{{- end }}

{{/* Non-empty: SQLite's file lies on a volume. */}}
{{- define "calibrator.isPersistent" -}}
{{- if kindIs "invalid" .Values.persistence.enabled }}
{{- not .Values.postgresql.enabled | ternary "yes" "" }}
{{- else }}
{{- .Values.persistence.enabled | ternary "yes" "" }}
{{- end }}
{{- end }}

{{/* Scheme of the pod's port. */}}
{{- define "calibrator.scheme" -}}
{{- ternary "https" "http" (hasKey (default dict .Values.config.listen) "tls") }}
{{- end }}

{{/* calibrator.yaml: `config` and what only the chart can know. */}}
{{- define "calibrator.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $_ := set $config "listen" (merge (dict "host" .Values.listenHost "port" 8300) (default dict $config.listen)) }}
{{- $place := dict "path" "/var/lib/calibrator/calibrator.db" }}
{{- if .Values.postgresql.enabled }}
{{- $root := include "calibrator.secretsPath" . }}
{{- $place = dict "postgresql" (dict "file" (printf "%s/postgresql-url" $root)) }}
{{- if .Values.postgresql.caSecretName }}
{{- $_ = set $place "ca_file" (printf "%s/postgresql-ca" $root) }}
{{- end }}
{{- end }}
{{- $_ = set $config "store" (merge $place (default dict $config.store)) }}
{{- if .Values.haproxyAgent.enabled }}
{{- $gateways := default dict $config.gateways }}
{{- $_ = set $gateways "haproxy" (dict "host" .Values.listenHost "port" 8301) }}
{{- $_ = set $config "gateways" $gateways }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* Milliseconds of a duration such as 1m30s. */}}
{{- define "calibrator.milliseconds" -}}
{{- $factors := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 }}
{{- $sum := 0 }}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 }}
{{- $sum = add $sum (mul (regexFind "[0-9]+" . | int) (get $factors (regexFind "[a-z]+" .))) }}
{{- end }}
{{- $sum }}
{{- end }}

{{/* Combinations that a schema cannot explain. Each sentence says what is wrong and what to write instead. */}}
{{- define "calibrator.validate" -}}
{{- $database := .Values.postgresql }}
{{- if lt (int .Values.replicaCount) 1 }}
{{- fail (printf "replicaCount: %v is refused: nothing would serve gateways, and they would keep their last cap until it is stale. To stop sweeps, set mode: observe on the backends." .Values.replicaCount) }}
{{- end }}
{{- if and (gt (int .Values.replicaCount) 1) (not $database.enabled) }}
{{- fail (printf "replicaCount: %v is refused. SQLite has a single writer, and two instances would measure the same engines at the same time. Leave it at 1, or give postgresql.enabled: true with a Secret that contains the database's URL." .Values.replicaCount) }}
{{- end }}
{{- if and $database.enabled (not $database.secretName) }}
{{- fail "postgresql.secretName is empty. Name an existing Secret whose key `postgresql.key` holds postgresql://user:password@host:5432/name." }}
{{- end }}
{{- if and (not $database.enabled) (or $database.secretName $database.caSecretName) }}
{{- fail "postgresql names a Secret, but postgresql.enabled is false: state would go to SQLite. Set it to true, or remove the Secret." }}
{{- end }}
{{- if and $database.enabled (or (include "calibrator.isPersistent" .) .Values.persistence.existingClaim) }}
{{- fail "persistence and postgresql cannot be combined: there is one place for state, and several pods cannot share a ReadWriteOnce volume. Leave persistence.enabled at null and existingClaim empty, or turn postgresql off." }}
{{- end }}
{{- range list "postgresql-url" "postgresql-ca" }}
{{- if hasKey $.Values.secrets . }}
{{- fail (printf "secrets.%s is the chart's own name. Give postgresql.secretName and caSecretName instead." .) }}
{{- end }}
{{- end }}
{{- if not .Values.config.backends }}
{{- fail "config.backends is empty: there is nothing to calibrate. Give at least one backend with url, model, objectives and fallback_cap." }}
{{- end }}
{{- $listen := default dict .Values.config.listen }}
{{- if or (hasKey $listen "host") (hasKey $listen "port") }}
{{- fail "config.listen.host and .port are set by the chart. Leave them out; the ports of the Service are service.port and haproxyAgent.port, the address is listenHost." }}
{{- end }}
{{- if hasKey (default dict $listen.tls) "client_ca_file" }}
{{- fail "config.listen.tls.client_ca_file would lock out Kubernetes' own probes, which have no client certificate. Leave it out: require tokens (config.auth.read_tokens), or let a service mesh require certificates." }}
{{- end }}
{{- $store := default dict .Values.config.store }}
{{- if hasKey $store "path" }}
{{- fail "config.store.path is set by the chart, to the volume of `persistence`. Leave it out." }}
{{- end }}
{{- if or (hasKey $store "postgresql") (hasKey $store "ca_file") }}
{{- fail "config.store.postgresql and .ca_file are set by the chart. Leave them out and give postgresql.enabled: true with secretName and key, so that replicas, probes and rollouts match." }}
{{- end }}
{{- if hasKey (default dict .Values.config.gateways) "haproxy" }}
{{- fail "config.gateways.haproxy is set by the chart. Leave it out and give haproxyAgent.enabled: true." }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if regexMatch "^(?i)CALIBRATOR_(LISTEN__(HOST|PORT|TLS)|STORE__(PATH|POSTGRESQL|CA_FILE)|GATEWAYS__HAPROXY__)" .name }}
{{- fail (printf "extraEnv %s would change what the Service, the probes and the volume rely on. Leave it out." .name) }}
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
{{- fail "networkPolicy.egress is empty: calibrator could not reach any engine. Add rules for the engines' ports." }}
{{- end }}
{{- if and .Values.networkPolicy.enabled $database.enabled (not .Values.networkPolicy.postgresqlEgress) }}
{{- fail "networkPolicy.postgresqlEgress is empty: calibrator could not reach its database. Add a rule for its port." }}
{{- end }}
{{- if and .Values.networkPolicy.postgresqlEgress (not $database.enabled) }}
{{- fail "networkPolicy.postgresqlEgress is given, but postgresql.enabled is false. Remove one of the two." }}
{{- end }}
{{- include "calibrator.validatePod" . }}
{{- with .Values.serviceMonitor }}
{{- if gt (int (include "calibrator.milliseconds" .scrapeTimeout)) (int (include "calibrator.milliseconds" .interval)) }}
{{- fail (printf "serviceMonitor.scrapeTimeout: %s is longer than the interval of %s, which the Prometheus operator rejects. Shorten it." .scrapeTimeout .interval) }}
{{- end }}
{{- end }}
{{- with .Values.podDisruptionBudget }}
{{- if and .enabled (eq (kindIs "invalid" .minAvailable) (kindIs "invalid" .maxUnavailable)) }}
{{- fail "podDisruptionBudget: give one of minAvailable and maxUnavailable." }}
{{- end }}
{{- end }}
{{- end }}

{{/* Likewise, for what is added to the pod: the API server would refuse it later and in its own words, or nobody would. */}}
{{- define "calibrator.validatePod" -}}
{{- if regexMatch "^(127\\..*|localhost|::1)$" .Values.listenHost }}
{{- fail (printf "listenHost: %s is the pod's own loopback: neither the Service nor the probes could reach it. Give 0.0.0.0 or \"::\"." .Values.listenHost) }}
{{- end }}
{{- range $key, $_ := merge (dict) .Values.commonLabels .Values.podLabels }}
{{- if regexMatch "^(app\\.kubernetes\\.io/(name|instance|version|managed-by)|helm\\.sh/chart)$" $key }}
{{- fail (printf "The label %s is the chart's own: selectors rely on it. Remove it from commonLabels and podLabels; nameOverride changes the name." $key) }}
{{- end }}
{{- end }}
{{- $volumes := list "config" "state" "tmp" "secrets" }}
{{- range .Values.extraVolumes }}
{{- if has .name $volumes }}
{{- fail (printf "extraVolumes defines the volume \"%s\" twice, or under a name of the chart (config, state, tmp, secrets). Rename it." .name) }}
{{- end }}
{{- $volumes = append $volumes .name }}
{{- end }}
{{- range .Values.extraVolumeMounts }}
{{- if not (has .name $volumes) }}
{{- fail (printf "extraVolumeMounts mounts \"%s\", which is not a volume. Add it to extraVolumes." .name) }}
{{- end }}
{{- end }}
{{- range .Values.extraContainers }}
{{- if eq .name "calibrator" }}
{{- fail "extraContainers has a container \"calibrator\", which is the chart's own. Rename it." }}
{{- end }}
{{- end }}
{{- end }}
