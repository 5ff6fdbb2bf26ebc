{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- /*
What follows from the configuration, as JSON:

  kinds          the plugins that run on any node: gpu, generic, llc, fpga, mic, pfs, and "other" for those of somebody else's
  state          directories in which the daemon remembers
  watcher        whether any resource is announced through the plugin watcher
  events         whether the API server is told of Events
  cdi            whether a plugin writes CDI specs
  driver         by the path in our container: the host's directory with NVIDIA's driver
  mps            directories that MPS daemons share with their clients
  labels         whether a plugin writes a feature file for Node Feature Discovery
  resctrl        where the host has resctrl
  propagate      whether what is mounted below the state directories on the host must be seen
  files          by the path, here and on the host, of what a plugin reads: the type of its hostPath
  hostPID        why the host's processes must be seen; empty if they need not
  capabilities   beyond none
  privileged     what cannot be had without
*/ -}}
{{- define "deviceplugin.facts" -}}
{{- $config := .Values.config -}}
{{- $known := list "gpu" "generic" "llc" "fpga" "mic" "pfs" -}}
{{- $common := dict -}}
{{- $all := list -}}
{{- range $config.plugins -}}
  {{- $common = set $common (include "deviceplugin.label" .) . -}}
  {{- $all = append $all . -}}
{{- end -}}
{{- $states := list ($config.stateDirectory | default "/var/lib/deviceplugin") -}}
{{- range $config.nodes -}}
  {{- $settings := .settings | default dict -}}
  {{- with $settings.stateDirectory }}{{ $states = append $states . }}{{ end -}}
  {{- range $settings.plugins -}}
    {{- $all = append $all (mergeOverwrite (deepCopy (get $common (include "deviceplugin.label" .) | default dict)) (deepCopy .)) -}}
  {{- end -}}
{{- end -}}

{{- $kinds := list -}}
{{- $entries := list -}}
{{- range $all -}}
  {{- if not (eq (toString .enabled) "false") -}}
    {{- $kind := ternary .plugin "other" (has .plugin $known) -}}
    {{- $kinds = append $kinds $kind -}}
    {{- $entries = append $entries (dict "kind" $kind "config" (.config | default dict)) -}}
  {{- end -}}
{{- end -}}

{{- $driver := dict -}}
{{- $mps := list -}}
{{- $files := dict -}}
{{- $resctrl := list -}}
{{- $propagate := false -}}
{{- $labels := false -}}
{{- $hostPID := list -}}
{{- $capabilities := .Values.extraCapabilities -}}
{{- $privileged := list -}}
{{- range $entries -}}
  {{- $options := .config -}}
  {{- if eq .kind "gpu" -}}
    {{- $injection := $options.injection | default dict -}}
    {{- $root := $injection.driverRoot | default "/" -}}
    {{- $at := $injection.containerDriverRoot | default "/driver-root" -}}
    {{- $place := ternary (printf "%s/usr" $at) $at (eq $root "/") -}}
    {{- $path := ternary "/usr" $root (eq $root "/") -}}
    {{- if ne (get $driver $place | default $path) $path -}}
      {{- $text := "config: the gpu plugin has two driver roots, %s and %s, at %s: give one another injection.containerDriverRoot" -}}
      {{- fail (printf $text (get $driver $place) $path $place) -}}
    {{- end -}}
    {{- $driver = set $driver $place $path -}}
    {{- /* Looked for under the host's name, also where the driver's files are mounted elsewhere. */ -}}
    {{- $devices := printf "%s/dev" (trimSuffix "/" ($injection.devRoot | default "/")) -}}
    {{- if ne $devices "/dev" }}{{ $files = set $files $devices "Directory" }}{{ end -}}
    {{- if $injection.mps }}{{ $mps = append $mps (required "config: the gpu plugin's injection.mps needs mpsRoot" $injection.mpsRoot) }}{{ end -}}
    {{- if $options.labels }}{{ $labels = true }}{{ end -}}
  {{- else if eq .kind "generic" -}}
    {{- range $options.devices }}{{ range .groups }}{{ range concat (.paths | default list) (.usb | default list) -}}
      {{- if contains "\"openable\":true" (toJson .) -}}
        {{- $privileged = append $privileged "generic: health by `openable` opens device files, which the device cgroup forbids" -}}
      {{- end -}}
    {{- end }}{{ end }}{{ end -}}
  {{- else if eq .kind "llc" -}}
    {{- $resctrl = append $resctrl ($options.mountPoint | default "/sys/fs/resctrl") -}}
    {{- $hostPID = append $hostPID "llc: resctrl shows processes by their ids in the reader's PID namespace" -}}
    {{- /* Whose process one is shows in its environment, which only its tracer may read. */ -}}
    {{- $capabilities = append $capabilities "SYS_PTRACE" -}}
  {{- else if eq .kind "fpga" -}}
    {{- if $options.functions -}}
      {{- $files = set $files ($options.bitstreams | default "/srv/intel.com/fpga") "DirectoryOrCreate" -}}
      {{- $privileged = append $privileged "fpga: `functions` are programmed through device files, which the device cgroup forbids" -}}
    {{- end -}}
    {{- $states = append $states ($options.stateDirectory | default "/var/lib/deviceplugin/fpga") -}}
  {{- else if eq .kind "mic" -}}
    {{- /* Files or directories. */ -}}
    {{- range $options.libraries }}{{ $files = set $files .path "" }}{{ end -}}
    {{- if has $options.prepare (list "boot" "reset") -}}
      {{- $privileged = append $privileged (printf "mic: `prepare: %s` writes to /sys, which is read-only otherwise" $options.prepare) -}}
    {{- end -}}
    {{- $states = append $states (dir ($options.record | default "/var/lib/deviceplugin/mic-told.json")) -}}
    {{- if $options.labels }}{{ $labels = true }}{{ end -}}
  {{- else if eq .kind "pfs" -}}
    {{- $hostPID = append $hostPID "pfs: the node's mounts are those of its process 1" -}}
    {{- $privileged = append $privileged "pfs: the node's mount namespace is entered, and programs of the node are run in it" -}}
    {{- $states = append $states ($options.directory | default "/var/lib/deviceplugin/pfs") -}}
    {{- range $options.filesystems -}}
      {{- if .privateMount }}{{ $propagate = true }}{{ end -}}
      {{- /* The directory: who edits the file may put another in its place. */ -}}
      {{- with .slotsFile }}{{ $files = set $files (dir .) "DirectoryOrCreate" }}{{ end -}}
      {{- if and (eq .type "beegfs") .privateMount -}}
        {{- $files = set $files (dir (.privateMount.config | default "/etc/beegfs/beegfs-client.conf")) "Directory" -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}

{{- /* One below another is there with it. */ -}}
{{- $state := list -}}
{{- range ($states | uniq | sortAlpha) -}}
  {{- $path := . -}}
  {{- $below := false -}}
  {{- range $state }}{{ if hasPrefix (printf "%s/" .) $path }}{{ $below = true }}{{ end }}{{ end -}}
  {{- if not $below }}{{ $state = append $state $path }}{{ end -}}
{{- end -}}

{{- if and $privileged (not .Values.privileged) -}}
  {{- $text := "this configuration needs `privileged: true` (%s); set it, or leave that out of the configuration" -}}
  {{- fail (printf $text ($privileged | uniq | join "; ")) -}}
{{- end -}}
{{- $text := toJson $config -}}
{{- dict
  "kinds" ($kinds | uniq)
  "state" $state
  "watcher" (contains "\"registration\":\"watcher\"" $text)
  "events" (contains "\"kubernetesEvents\":true" $text)
  "cdi" (or (has "gpu" $kinds) (has "llc" $kinds))
  "driver" $driver
  "mps" ($mps | uniq)
  "resctrl" ($resctrl | uniq)
  "propagate" $propagate
  "labels" $labels
  "files" $files
  "hostPID" ($hostPID | uniq | join "; ")
  "capabilities" ($capabilities | uniq | sortAlpha)
| toJson -}}
{{- end -}}

{{- /* What a plugin's entry is called: deviceplugin/config.py, plugin_label. */ -}}
{{- define "deviceplugin.label" -}}
{{- if .name }}{{ .name }}{{ else }}{{ splitList ":" (.plugin | default "") | first | base | trimSuffix ".py" }}{{ end -}}
{{- end -}}
