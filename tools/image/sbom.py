#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""sbom.py ROOT VERSION: what is in the image, as a CycloneDX document, from the metadata that the installed packages brought along.

Debian's packages come from /var/lib/dpkg/status.d, Python's from their dist-info. Licences are named where the metadata says them in SPDX's terms;
the texts are in the image: /usr/share/doc/PACKAGE/copyright for Debian's, dist-info/licenses for Python's.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def python_packages(root: Path) -> list[dict[str, Any]]:
    """The distributions in the image, our own among them."""
    found = []
    for one in importlib.metadata.distributions(path=[str(path) for path in root.glob("usr/local/lib/python3*/dist-packages")]):
        name = one.metadata["Name"]
        purl = f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(one.version)}"
        component: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": one.version, "purl": purl}
        expression = one.metadata["License-Expression"]
        named = one.metadata["License"] or ""
        if expression:
            component["licenses"] = [{"expression": expression}]
        elif named and "\n" not in named:
            component["licenses"] = [{"license": {"name": named}}]
        found.append(component)
    return found


def debian_packages(root: Path) -> list[dict[str, Any]]:
    """Debian's packages in the image."""
    found = []
    for file in root.glob("var/lib/dpkg/status.d/*"):
        fields = HeaderParser().parsestr(file.read_text(encoding="utf-8"))
        name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}&distro=debian-12"
        found.append(
            {
                "type": "library",
                "bom-ref": purl,
                "supplier": {"name": "Debian"},
                "name": name,
                "version": version,
                "licenses": [{"license": {"name": f"see /usr/share/doc/{name}/copyright"}}],
                "purl": purl,
            }
        )
    return found


def document(root: Path, version: str) -> dict[str, Any]:
    """The whole of it, in an order that depends on nothing but the content."""
    components = sorted([*python_packages(root), *debian_packages(root)], key=lambda one: str(one["purl"]))
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    subject = f"pkg:oci/deviceplugin?arch={architecture}&tag={quote(version, safe='')}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": subject, "name": "deviceplugin", "version": version, "purl": subject}},
        "components": components,
        "dependencies": [{"ref": subject, "dependsOn": [one["bom-ref"] for one in components]}],
    }


if __name__ == "__main__":
    json.dump(document(Path(sys.argv[1]), sys.argv[2]), sys.stdout, indent=1)
