# SPDX-License-Identifier: Apache-2.0
"""How units are connected, drawn: the units on a circle, NUMA node by NUMA node, what joins several of them in the middle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from msgspec import Struct

from deviceplugin.observe.status import ConnectionStatus

SIZE = 520
_MIDDLE = SIZE / 2
_RADIUS = 190.0
_DOT = 19
_WIDEST = 7.0
MAX_UNITS = 64
"""Units in one drawing: beyond, nobody could read it."""


class Unit(Struct, frozen=True):
    """A unit as it is drawn. ``health`` is its class in the style sheet."""

    name: str
    label: str
    title: str
    health: str
    numa: tuple[int, ...] = ()


def draw(units: Sequence[Unit], ways: Sequence[ConnectionStatus]) -> str:
    """An SVG, empty if nothing is connected. Names that are no unit's are hubs."""
    joined = {name for way in ways for name in (way.unit, way.other)}
    shown = sorted((unit for unit in units if unit.name in joined), key=lambda unit: (unit.numa, unit.label, unit.name))[:MAX_UNITS]
    if not shown:
        return ""
    places = {unit.name: _on_circle(i, len(shown)) for i, unit in enumerate(shown)}
    drawn = {unit.name for unit in units}
    hubs = sorted({way.other for way in ways if way.unit in places and way.other not in drawn})
    places |= {hub: (_MIDDLE, _MIDDLE + (i - (len(hubs) - 1) / 2) * 50) for i, hub in enumerate(hubs)}
    kinds = ", ".join(sorted({way.kind for way in ways}))
    parts = [f'<svg viewBox="0 0 {SIZE} {SIZE}" role="img" aria-label="{escape(kinds)} between {len(shown)} units">']
    parts += _ways(ways, places)
    parts += (_hub(hub, *places[hub]) for hub in hubs)
    parts += (_unit(unit, *places[unit.name]) for unit in shown)
    return "".join([*parts, "</svg>"])


def _on_circle(number: int, count: int) -> tuple[float, float]:
    # Half a step off the top, so that two NUMA nodes are the right and the left half.
    angle = 2 * math.pi * (number + 0.5) / count - math.pi / 2
    return round(_MIDDLE + _RADIUS * math.cos(angle), 1), round(_MIDDLE + _RADIUS * math.sin(angle), 1)


def _ways(ways: Sequence[ConnectionStatus], places: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    most = max((way.lanes for way in ways), default=1)
    for way in ways:
        if way.unit in places and way.other in places:
            (x, y), (u, v) = places[way.unit], places[way.other]
            width = max(1.5, _WIDEST * way.lanes / most)
            title = f"{way.lanes} x {way.kind}" if way.lanes > 1 else way.kind
            line = f"M{x} {y}Q{_bend(x, u)} {_bend(y, v)} {u} {v}"
            yield f'<path class="way" stroke-width="{width:.1f}" d="{line}"><title>{escape(title)}</title></path>'


def _bend(a: float, b: float) -> float:
    """The middle of a way, drawn a little towards the centre: ways between neighbours are seen apart from the circle."""
    return round((a + b) / 2 * 0.75 + _MIDDLE * 0.25, 1)


def _hub(name: str, x: float, y: float) -> str:
    width = 20 + 8 * len(name)
    return (
        f'<rect class="hub" x="{x - width / 2}" y="{y - 16}" width="{width}" height="32" rx="6"/>'
        f'<text class="on" x="{x}" y="{y + 5}" text-anchor="middle">{escape(name)}</text>'
    )


def _unit(unit: Unit, x: float, y: float) -> str:
    outward = 1 + (_DOT + 14) / _RADIUS
    tx, ty = _MIDDLE + (x - _MIDDLE) * outward, _MIDDLE + (y - _MIDDLE) * outward + 5
    anchor = "middle" if abs(x - _MIDDLE) < _RADIUS / 3 else "start" if x > _MIDDLE else "end"
    node = f"NUMA {','.join(map(str, unit.numa))}" if unit.numa else ""
    return (
        f'<g><title>{escape(unit.title)}</title><circle class="unit {escape(unit.health)}" cx="{x}" cy="{y}" r="{_DOT}"/>'
        f'<text class="on" x="{x}" y="{y + 5}" text-anchor="middle">{escape(unit.label)}</text>'
        f'<text x="{tx:.1f}" y="{ty:.1f}" text-anchor="{anchor}">{escape(node)}</text></g>'
    )
