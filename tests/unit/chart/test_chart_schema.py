# SPDX-License-Identifier: Apache-2.0
"""The chart's schema takes what the daemon takes, and its values are all there and explained."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "deviceplugin"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_schema", ROOT / "tools" / "chart_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_schema_is_what_the_daemons_types_make_it(maker: ModuleType) -> None:
    assert maker.main(["--check"]) == 0


def mappings(schema: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every part of a schema that describes a mapping with keys of its own."""
    if "properties" in schema and "if" not in schema and not place.endswith("/if"):
        yield place, schema
    for key, value in schema.items():
        if isinstance(value, dict):
            yield from mappings(value, f"{place}/{key}")
        elif isinstance(value, list):
            for number, one in enumerate(value):
                if isinstance(one, dict):
                    yield from mappings(one, f"{place}/{key}/{number}")


def test_no_mapping_takes_keys_that_it_does_not_know() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = dict(mappings(schema))
    assert "/definitions/GpuConfig" in found
    lax = [place for place, one in found.items() if one.get("additionalProperties") is not False and not re.search(r"/allOf/\d+/(if|then)", place)]
    assert lax == []


def test_every_value_of_the_schema_has_a_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values.keys() == schema.keys() - {"global"}
    for name in ("image", "serviceAccount", "networkPolicy", "admissionPolicy", "probes", "metrics"):
        assert values[name].keys() == schema[name]["properties"].keys(), name
    for name, part in schema["metrics"]["properties"].items():
        assert values["metrics"][name].keys() == part["properties"].keys(), name


def test_every_value_is_explained() -> None:
    """A key at the top has a comment above it, or is in a block of lines whose first has one."""
    explained = False
    for line in (CHART / "values.yaml").read_text().splitlines():
        if not line:
            explained = False
        elif line.startswith("#"):
            explained = True
        elif re.match(r"\w", line):
            assert explained, line
