#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes charts/deviceplugin/values.schema.json: what is below says what the chart takes, and `config` is made of the daemon's own types.

chart_schema.py            writes it
chart_schema.py --check    status 1 if it is not as it should be
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from deviceplugin.config import Settings, load_class

OUTPUT = Path(__file__).resolve().parents[1] / "charts" / "deviceplugin" / "values.schema.json"
PLUGINS = ("gpu", "generic", "llc", "fpga", "mic", "pfs")
SET_BY_THE_CHART = ("listen", "nodeName")

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
NAME: Schema = {"type": "string", "maxLength": 63, "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"}
PATH: Schema = {"type": "string", "pattern": "^/"}
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
SECONDS: Schema = {"type": "integer", "minimum": 0}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
# Kubernetes' own types: what is in them the API server checks.
ANY: Schema = {"type": "object"}
ANYS: Schema = {"type": "array", "items": ANY}
SHARE: Schema = {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+%$"}]}
QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}


def closed(properties: Mapping[str, Schema], *required: str) -> Schema:
    """A mapping with these keys and no others."""
    return {"type": "object", "properties": dict(properties), "additionalProperties": False} | ({"required": list(required)} if required else {})


PROBE = closed({key: {"type": "integer", "minimum": 1} for key in ("periodSeconds", "timeoutSeconds", "failureThreshold")})

VALUES: dict[str, Schema] = {
    "config": {"$ref": "#/definitions/Settings"},
    "privileged": BOOLEAN,
    "image": closed(
        {
            "repository": {"type": "string", "minLength": 1},
            "tag": {"type": "string", "pattern": r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"},
            "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        }
    ),
    "imagePullSecrets": {"type": "array", "items": closed({"name": STRING}, "name")},
    "nameOverride": NAME,
    "fullnameOverride": NAME,
    "runtimeClassName": STRING,
    "priorityClassName": {"type": "string", "minLength": 1},
    "nodeSelector": STRINGS,
    "affinity": closed({"nodeAffinity": ANY, "podAffinity": ANY, "podAntiAffinity": ANY}),
    "tolerations": {
        "type": "array",
        "items": closed(
            {
                "key": STRING,
                "operator": {"enum": ["Exists", "Equal", "Lt", "Gt"]},
                "value": STRING,
                "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
                "tolerationSeconds": SECONDS,
            }
        ),
    },
    "updateStrategy": closed(
        {
            "type": {"enum": ["RollingUpdate", "OnDelete"]},
            # A null takes the default out, for OnDelete.
            "rollingUpdate": {"anyOf": [closed({"maxSurge": SHARE, "maxUnavailable": SHARE}), {"type": "null"}]},
        },
        "type",
    ),
    "resources": closed({"requests": QUANTITIES, "limits": QUANTITIES}),
    "port": PORT,
    "probes": closed({"startup": PROBE, "readiness": PROBE, "liveness": PROBE}),
    "terminationGracePeriodSeconds": {"type": "integer", "minimum": 3},
    "kubeletRootDirectory": PATH,
    "podLabels": STRINGS,
    "podAnnotations": STRINGS,
    "extraEnv": {"type": "array", "items": closed({"name": STRING, "value": STRING, "valueFrom": ANY}, "name")},
    "extraVolumes": ANYS,
    "extraVolumeMounts": ANYS,
    "extraCapabilities": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z_]+$", "not": {"pattern": "^CAP_"}}},
    "serviceAccount": closed({"create": BOOLEAN, "name": STRING, "annotations": STRINGS}),
    "metrics": closed(
        {
            "service": closed({"enabled": BOOLEAN, "labels": STRINGS, "annotations": STRINGS}),
            "podMonitor": closed({"enabled": BOOLEAN, "labels": STRINGS, "interval": DURATION, "scrapeTimeout": DURATION}),
            "rules": closed({"enabled": BOOLEAN, "labels": STRINGS}),
            "dashboards": closed({"enabled": BOOLEAN, "labels": STRINGS, "annotations": STRINGS}),
        }
    ),
    "networkPolicy": closed({"enabled": BOOLEAN, "from": ANYS}),
    "admissionPolicy": closed(
        {
            "enabled": BOOLEAN,
            "actions": {"type": "array", "items": {"enum": ["Deny", "Warn", "Audit"]}, "minItems": 1, "uniqueItems": True},
            "exemptNamespaces": {"type": "array", "items": STRING},
        }
    ),
    # Helm puts them beside our values where the chart is part of another.
    "global": ANY,
}


def configuration() -> dict[str, Schema]:
    """The types of a configuration, by name."""
    options = {name: load_class(f"deviceplugin.plugins.{name}:{name.capitalize()}").Config for name in PLUGINS}
    references, found = msgspec.json.schema_components([Settings, *options.values()], ref_template="#/definitions/{name}")
    definitions: dict[str, Schema] = {name: dict(_plain(one)) for name, one in found.items()}
    settings = definitions["Settings"]["properties"]
    for key in SET_BY_THE_CHART:
        del settings[key]
    # On some nodes: the same keys, laid over the rest. What a null takes out, and what is complete only with the rest, the daemon checks.
    definitions["NodeSettings"]["properties"]["settings"] = closed({key: {} for key in settings if key not in ("version", "labelFiles", "nodes")})
    definitions["PluginSettings"]["allOf"] = [
        {
            "if": {"properties": {"plugin": {"const": name}}, "required": ["plugin"]},
            "then": {"properties": {"config": {"$ref": reference["$ref"]}}},
        }
        for name, reference in zip(options, references[1:], strict=True)
    ]
    return definitions


def _plain(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A schema without what only readers need, which the documentation tells better."""
    for key, value in schema.items():
        if key == "properties":
            yield key, {name: dict(_plain(one)) for name, one in value.items()}
        elif key not in ("title", "description", "default") and value != []:
            yield key, _plain_value(value)


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(_plain(value))
    return [_plain_value(one) for one in value] if isinstance(value, list) else value


def schema() -> str:
    """The whole file."""
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "SPDX-License-Identifier: Apache-2.0. Made by tools/chart_schema.py: edit that.",
        **closed(VALUES),
        "definitions": configuration(),
    }
    return json.dumps(whole, indent=1) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its status."""
    if arguments == ["--check"]:
        if OUTPUT.read_text() == schema():
            return 0
        print(f"{OUTPUT} is not as the daemon's types are: run tools/chart_schema.py", file=sys.stderr)
        return 1
    OUTPUT.write_text(schema())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
