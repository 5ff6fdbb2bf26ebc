# SPDX-License-Identifier: Apache-2.0
"""What the plugin has left on a node, for when it goes for good."""

from __future__ import annotations

from collections.abc import Iterator

from deviceplugin.plugins.llc import naming
from deviceplugin.plugins.llc.catalog import Catalog
from deviceplugin.plugins.llc.config import LlcConfig
from deviceplugin.plugins.llc.division import divide_all
from deviceplugin.plugins.llc.layout import runs
from deviceplugin.plugins.llc.resctrl import ROOT, Absent, Resctrl, masks


def leavings(resctrl: Resctrl, catalog: Catalog, config: LlcConfig, remove: bool) -> Iterator[str]:
    """A line for each thing, which is removed first if ``remove``. Processes in a group are in the root group then.

    The root group's mask is ours where it is the one that reserve mode writes; then it becomes all ways, but for those that others hold exclusively.
    """
    try:
        survey = resctrl.survey()
    except Absent:
        survey = None
    if survey is not None:
        at = config.mount_point
        for name in survey.groups:
            if naming.key_of_group(name):
                if remove:
                    resctrl.remove(name)
                yield f"resctrl group {at}/{name}"
        now = masks(survey.root, survey.info.names)
        shrunk = {
            cache.id: max(runs(survey.info.cbm & ~survey.info.exclusive.get(cache.id, 0)), key=int.bit_count)
            for cache in divide_all(survey, config, None).places.caches.values()
            if now.get(cache.id) == cache.shared
        }
        if shrunk:
            if remove:
                resctrl.put(ROOT, dict.fromkeys(survey.info.names, shrunk))
            yield f"mask of the root group in {at}/schemata for caches {', '.join(map(str, sorted(shrunk)))}"
    if remove:
        gone = catalog.clear()
    else:
        gone = bool(catalog.keys())
    if gone:
        yield f"CDI spec of {catalog.kind}"
