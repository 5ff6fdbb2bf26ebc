# SPDX-License-Identifier: Apache-2.0
"""Labels of the node that say which cards it has, and what Xeon Phi it is itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from deviceplugin.labels import DIRECTORY, label_value
from deviceplugin.plugins.mic.cards import Card
from deviceplugin.plugins.mic.selfboot import Processor
from deviceplugin.plugins.mic.vfio import Passed

FILE: Final = f"{DIRECTORY}/mic"

_DOMAIN = "intel.com"


def labels(cards: Sequence[Card], passed: Sequence[Passed], processor: Processor | None) -> dict[str, str]:
    """The labels by name, none at all where there is nothing to tell. Of cards that differ, the most frequent kind is told."""
    found: dict[str, str] = {}
    if cards:
        found["mic.count"] = str(len(cards))
        found["mic.driver"] = _most([card.driver.value for card in cards])
        for name, texts in (("family", [card.family for card in cards]), ("sku", [card.sku for card in cards])):
            if most := _most([text for text in texts if text]):
                found[f"mic.{name}"] = most
    if passed:
        found["mic-vfio.count"] = str(len(passed))
        found["mic-vfio.family"] = _most([card.family for card in passed])
    if processor is not None:
        found["xeon-phi.model"] = processor.model
        found["xeon-phi.memory-mode"] = processor.memory_mode
        found["xeon-phi.cluster-mode"] = processor.cluster_mode
        found["xeon-phi.mcdram-mib"] = str(processor.mcdram >> 20)
    return {f"{_DOMAIN}/{key}": value for key, value in ((key, label_value(found[key])) for key in sorted(found)) if value}


def _most(texts: Sequence[str]) -> str:
    """The most frequent text, and of several the first in order; empty if there are none."""
    counts = Counter(texts)
    return min(counts, key=lambda text: (-counts[text], text), default="")
