{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- /* What of the host is mounted, and why. `facts` are those of _facts.tpl. */ -}}
{{- define "deviceplugin.volumeMounts" -}}
{{- $facts := .facts -}}
- name: config
  mountPath: /etc/deviceplugin
  readOnly: true
# Our sockets, and the kubelet's. Not /var/lib/kubelet: that has the pods' secrets.
- name: device-plugins
  mountPath: /var/lib/kubelet/device-plugins
{{- if $facts.watcher }}
# `registration: watcher` puts sockets there.
- name: plugins-registry
  mountPath: /var/lib/kubelet/plugins_registry
{{- end }}
# Who holds which device.
- name: pod-resources
  mountPath: /var/lib/kubelet/pod-resources
  readOnly: true
# Locks and the standby's socket, shared by all instances on the node.
- name: run
  mountPath: /run/deviceplugin
{{- range $number, $path := $facts.state }}
# What survives a restart: faults, what was programmed, private mounts.
- name: {{ include "deviceplugin.numbered" (list "state" $number) }}
  mountPath: {{ $path | quote }}
  {{- if $facts.propagate }}
  # pfs: private mounts are made and unmounted in the node's own namespace. A copy that stayed here would keep them alive.
  mountPropagation: HostToContainer
  {{- end }}
{{- end }}
{{- if $facts.cdi }}
# CDI specs that are written: gpu, for the strategies cdi-cri and cdi-annotations; llc, for the groups that runtimes put containers into.
- name: cdi
  mountPath: /var/run/cdi
{{- end }}
{{- if include "deviceplugin.dev" $facts }}
# What device files there are. They are looked at, not opened. /sys and /proc are there without a mount, read-only.
- name: dev
  mountPath: /dev
  readOnly: true
  recursiveReadOnly: IfPossible
{{- end }}
{{- range $number, $at := keys $facts.driver | sortAlpha }}
# gpu: the driver's libraries and programs, to load NVML and to write CDI specs: `injection.driverRoot`.
- name: {{ include "deviceplugin.numbered" (list "driver" $number) }}
  mountPath: {{ $at | quote }}
  readOnly: true
  recursiveReadOnly: IfPossible
{{- end }}
{{- range $number, $path := $facts.mps }}
# gpu: the MPS daemon and its clients meet in files, and in memory that they share.
- name: {{ include "deviceplugin.numbered" (list "mps" $number) }}
  mountPath: {{ $path | quote }}
- name: {{ include "deviceplugin.numbered" (list "mps-shm" $number) }}
  mountPath: /dev/shm
{{- end }}
{{- if $facts.labels }}
# The feature file for Node Feature Discovery.
- name: features
  mountPath: /etc/kubernetes/node-feature-discovery/features.d
{{- end }}
{{- range $number, $path := $facts.resctrl }}
# llc: groups are made and filled there. Mounted by the host, before us or after. A node without such a directory cannot run these pods.
- name: {{ include "deviceplugin.numbered" (list "resctrl" $number) }}
  mountPath: {{ $path | quote }}
  mountPropagation: HostToContainer
{{- end }}
{{- range $number, $path := keys $facts.files | sortAlpha }}
# gpu: device files below `injection.devRoot`; fpga: bitstreams; mic: libraries; pfs: files with numbers of slots, BeeGFS's configuration.
- name: {{ include "deviceplugin.numbered" (list "files" $number) }}
  mountPath: {{ $path | quote }}
  readOnly: true
{{- end }}
{{- with .extra }}{{ printf "\n" }}{{ toYaml . }}{{ end }}
{{- end -}}

{{- define "deviceplugin.volumes" -}}
{{- $facts := .facts -}}
{{- $kubelet := .root.Values.kubeletRootDirectory -}}
- name: config
  configMap:
    name: {{ include "deviceplugin.fullname" .root }}
- name: device-plugins
  hostPath: {path: /var/lib/kubelet/device-plugins, type: Directory}
{{- if $facts.watcher }}
- name: plugins-registry
  hostPath: {path: {{ printf "%s/plugins_registry" $kubelet | quote }}, type: Directory}
{{- end }}
- name: pod-resources
  hostPath: {path: {{ printf "%s/pod-resources" $kubelet | quote }}, type: DirectoryOrCreate}
- name: run
  hostPath: {path: /run/deviceplugin, type: DirectoryOrCreate}
{{- range $number, $path := $facts.state }}
- name: {{ include "deviceplugin.numbered" (list "state" $number) }}
  hostPath: {path: {{ $path | quote }}, type: DirectoryOrCreate}
{{- end }}
{{- if $facts.cdi }}
- name: cdi
  hostPath: {path: /var/run/cdi, type: DirectoryOrCreate}
{{- end }}
{{- if include "deviceplugin.dev" $facts }}
- name: dev
  hostPath: {path: /dev, type: Directory}
{{- end }}
{{- range $number, $at := keys $facts.driver | sortAlpha }}
- name: {{ include "deviceplugin.numbered" (list "driver" $number) }}
  hostPath: {path: {{ get $facts.driver $at | quote }}, type: Directory}
{{- end }}
{{- range $number, $path := $facts.mps }}
- name: {{ include "deviceplugin.numbered" (list "mps" $number) }}
  hostPath: {path: {{ $path | quote }}, type: DirectoryOrCreate}
- name: {{ include "deviceplugin.numbered" (list "mps-shm" $number) }}
  hostPath: {path: {{ printf "%s/shm" $path | quote }}, type: DirectoryOrCreate}
{{- end }}
{{- if $facts.labels }}
- name: features
  hostPath: {path: /etc/kubernetes/node-feature-discovery/features.d, type: DirectoryOrCreate}
{{- end }}
{{- range $number, $path := $facts.resctrl }}
- name: {{ include "deviceplugin.numbered" (list "resctrl" $number) }}
  hostPath: {path: {{ $path | quote }}, type: Directory}
{{- end }}
{{- range $number, $path := keys $facts.files | sortAlpha }}
- name: {{ include "deviceplugin.numbered" (list "files" $number) }}
  hostPath: {path: {{ $path | quote }}, type: {{ get $facts.files $path | quote }}}
{{- end }}
{{- with .root.Values.extraVolumes }}{{ printf "\n" }}{{ toYaml . }}{{ end }}
{{- end -}}

{{- /* Whether a plugin looks at device files. */ -}}
{{- define "deviceplugin.dev" -}}
{{- range list "gpu" "generic" "fpga" "mic" "other" }}{{ if has . $.kinds }}{{ . }}{{ end }}{{ end -}}
{{- end -}}

{{- /* A name, and for all but the first its number. */ -}}
{{- define "deviceplugin.numbered" -}}
{{- index . 0 }}{{ if index . 1 }}-{{ index . 1 }}{{ end -}}
{{- end -}}
