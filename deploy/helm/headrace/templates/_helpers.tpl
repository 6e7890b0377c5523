{{/* Names and labels. */}}
{{- define "headrace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "headrace.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := include "headrace.name" . }}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Of a component: (dict "root" $ "component" "bridge") */}}
{{- define "headrace.selector" -}}
app.kubernetes.io/name: {{ include "headrace.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "headrace.labels" -}}
{{ include "headrace.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: headrace
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Of an image: (dict "root" $ "image" .Values.bridge.image) */}}
{{- define "headrace.image" -}}
{{- if and .root.Values.imageRegistry (hasPrefix "headrace/" .image.repository) }}{{ trimSuffix "/" .root.Values.imageRegistry }}/{{ end }}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end }}
{{- end }}

{{/* Of the bridge's Prometheus metrics, and of the watcher's. */}}
{{- define "headrace.bridgePort" -}}{{ (include "headrace.pipeline" . | fromYaml).observe.address | splitList ":" | last }}{{- end }}
{{- define "headrace.watcherPort" -}}9465{{- end }}
{{- define "headrace.grpcPort" -}}{{ ternary 8001 8500 (eq .Values.serving.kind "triton") }}{{- end }}
{{- define "headrace.httpPort" -}}{{ ternary 8000 8501 (eq .Values.serving.kind "triton") }}{{- end }}

{{/* The pipeline as the bridge reads it: what was given, and the addresses that only the chart can know. */}}
{{- define "headrace.pipeline" -}}
{{- $given := required "pipeline: required while bridge.enabled is true; it is what headrace run reads (headrace init writes one)" .Values.pipeline }}
{{- /* `helm lint` goes on after what is required, so that there is something to go on with. */}}
{{- $pipeline := deepCopy (ternary $given (dict "name" "none" "kafka" (dict "bootstrap_servers" "none:9092") "source" (dict "topics" list) "model" dict "result" dict) (kindIs "map" $given)) }}
{{- $model := $pipeline.model }}
{{- if not $model.address }}
{{- if not .Values.serving.enabled }}{{ fail "pipeline.model.address: required while serving.enabled is false; name the model server, such as dns:///triton.models:8001" }}{{ end }}
{{- $_ := set $model "address" (printf "dns:///%s-serving.%s:%s" (include "headrace.fullname" .) .Release.Namespace (include "headrace.grpcPort" .)) }}
{{- end }}
{{- if and .Values.serving.enabled (not $model.server) }}{{ $_ := set $model "server" .Values.serving.kind }}{{ end }}
{{- if and .Values.serving.enabled (ne $model.server .Values.serving.kind) }}{{ fail (printf "pipeline.model.server is %s, but serving.kind is %s; they must agree, or serving.enabled be false" $model.server .Values.serving.kind) }}{{ end }}
{{- $observe := default dict $pipeline.observe }}
{{- if not $observe.address }}{{ $_ := set $observe "address" "0.0.0.0:9464" }}{{ end }}
{{- if regexMatch "^(127[.]|localhost:)" $observe.address }}{{ fail (printf "pipeline.observe.address: %s cannot be reached by probes and Prometheus; write 0.0.0.0:9464 or leave it out" $observe.address) }}{{ end }}
{{- if and .Values.serving.enabled (regexMatch "^(dns:///)?(127[.]|localhost:)" $model.address) }}{{ fail (printf "pipeline.model.address: at %s there is nothing in a bridge's pod; leave it out, and it is the release's own server" $model.address) }}{{ end }}
{{- $_ := set $pipeline "observe" $observe }}
{{- /* What the chart itself reads must be there when it renders, not only when the bridge starts. */}}
{{- range $key, $value := dict "kafka.bootstrap_servers" $pipeline.kafka.bootstrap_servers "source.topics" (join "," $pipeline.source.topics) "source.group" $pipeline.source.group "model.address" $model.address "drain_timeout" $pipeline.drain_timeout "observe.address" $observe.address }}
{{- if contains "${" (toString $value) }}{{ fail (printf "pipeline.%s: %s is known to the bridge alone, but the chart needs it too; write its value, or set it with --set" $key $value) }}{{ end }}
{{- end }}
{{- if and .Values.bridge.staticMembership ($pipeline.source).instance_id }}{{ fail "pipeline.source.instance_id: leave it out with bridge.staticMembership, which names each pod" }}{{ end }}
{{- toYaml $pipeline }}
{{- end }}

{{/* Seconds of 250ms, 2s, 1.5m; (dict "value" "30s") */}}
{{- define "headrace.seconds" -}}
{{- $text := toString .value | replace " " "" }}
{{- $number := regexFind "^[0-9.]+" $text | float64 }}
{{- $unit := regexFind "[a-z]+$" $text }}
{{- $factor := get (dict "us" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "" 1.0) $unit }}
{{- mulf $number $factor }}
{{- end }}

{{/* How long a bridge may take to end: what is in flight, the last call's deadline, the commit, and 5 s for the rest. */}}
{{- define "headrace.grace" -}}
{{- $pipeline := include "headrace.pipeline" . | fromYaml }}
{{- $drain := include "headrace.seconds" (dict "value" (default "30s" $pipeline.drain_timeout)) | float64 }}
{{- $call := include "headrace.seconds" (dict "value" (default "2s" $pipeline.model.timeout)) | float64 }}
{{- $commit := include "headrace.seconds" (dict "value" (default "100ms" $pipeline.commit_interval)) | float64 }}
{{- $needed := addf $drain $call $commit 5.0 | ceil | int }}
{{- $given := .Values.bridge.terminationGracePeriodSeconds }}
{{- if and $given (lt (int $given) $needed) }}{{ fail (printf "bridge.terminationGracePeriodSeconds: %d is less than the %d s that a drain may take (drain_timeout + model.timeout + commit_interval + 5 s): the bridge would be killed in the middle of it; raise it, or lower pipeline.drain_timeout" (int $given) $needed) }}{{ end }}
{{- default $needed $given | int }}
{{- end }}

{{/* Pod Security: restricted. */}}
{{- define "headrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "headrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods go: (dict "root" $ "component" "bridge" "placement" .Values.bridge) */}}
{{- define "headrace.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .placement.topologySpread }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "headrace.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Files of a bridge: the pipeline, and the Secrets that it names. The test pod has them too. */}}
{{- define "headrace.bridgeMounts" }}
- {name: pipeline, mountPath: /etc/headrace/pipeline.yaml, subPath: pipeline.yaml, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- range .Values.bridge.secrets }}
- {name: {{ printf "secret-%s" .name | trunc 63 | trimSuffix "-" }}, mountPath: /etc/headrace/secrets/{{ .name }}, readOnly: true}
{{- end }}
{{- end }}
{{- define "headrace.bridgeVolumes" }}
- name: pipeline
  configMap: {name: {{ include "headrace.fullname" . }}-pipeline}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- range .Values.bridge.secrets }}
- name: {{ printf "secret-%s" .name | trunc 63 | trimSuffix "-" }}
  secret: {secretName: {{ .name }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* The repository as the watcher names it. */}}
{{- define "headrace.repository" -}}
{{- $repository := .Values.repository }}
{{- if eq $repository.kind "objectStore" -}}
{{ required "repository.url: required with kind objectStore, such as s3://bucket/models" $repository.url }}
{{- else if eq $repository.kind "gitSync" -}}
/repository/current/{{ $repository.gitSync.path | trimAll "/" }}
{{- else if eq $repository.kind "image" -}}
/repository{{ printf "/%s" (trimAll "/" $repository.image.path) | trimSuffix "/" }}
{{- else -}}
/repository
{{- end }}
{{- end }}
{{- define "headrace.claim" -}}
{{ default (printf "%s-models" (include "headrace.fullname" .)) .Values.repository.pvc.existingClaim }}
{{- end }}

{{/* An entry of a TriggerAuthentication for a file below /etc/headrace/secrets: (dict "parameter" "ca" "file" "…") */}}
{{- define "headrace.secretRef" -}}
{{- $parts := regexFindAll "[^/]+" (trimPrefix "/etc/headrace/secrets/" (default "" .file)) -1 }}
{{- if or (not (hasPrefix "/etc/headrace/secrets/" (default "" .file))) (ne (len $parts) 2) }}{{ fail (printf "bridge.autoscaling: %q is not /etc/headrace/secrets/NAME/KEY, so that KEDA cannot be told which Secret it is; name bridge.autoscaling.authenticationRef" .file) }}{{ end -}}
- {parameter: {{ .parameter }}, name: {{ first $parts }}, key: {{ last $parts | quote }}}
{{- end }}

{{- define "headrace.dnsRule" -}}
- ports:
    {{- range .Values.networkPolicy.dnsPorts }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.dns }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* How servers are replaced: where only one node can mount the volume, the next server cannot start beside the last. */}}
{{- define "headrace.servingStrategy" -}}
{{- $claim := .Values.repository.pvc }}
{{- $modes := join "," $claim.accessModes }}
{{- $alone := and (eq .Values.repository.kind "pvc") (not $claim.existingClaim) (eq $modes "ReadWriteOnce") }}
{{- if and $alone (or .Values.serving.autoscaling.enabled (gt (int .Values.serving.replicas) 1)) }}{{ fail "repository.pvc.accessModes: a ReadWriteOnce volume is mounted by one node alone, but there may be several servers; take ReadWriteMany, or another repository.kind" }}{{ end }}
{{- if eq .Values.serving.strategy "auto" }}{{ ternary "Recreate" "RollingUpdate" $alone }}{{ else }}{{ .Values.serving.strategy }}{{ end }}
{{- end }}

{{/* What speaks to Kafka and the model: bridges, and the pod of `helm test`, which no budget or monitor should count. */}}
{{- define "headrace.bridgeAndTest" -}}
matchLabels:
  app.kubernetes.io/name: {{ include "headrace.name" . }}
  app.kubernetes.io/instance: {{ .Release.Name }}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: [bridge, test]}
{{- end }}
