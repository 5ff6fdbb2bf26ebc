# SPDX-License-Identifier: Apache-2.0
"""The status page: one file without any other, complete as the server renders it. A function from the daemon's picture to text."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from html import escape
from importlib.resources import files

from msgspec import Struct

from deviceplugin.allocation import natural
from deviceplugin.observe.picture import Unit, draw
from deviceplugin.observe.readiness import instance_name
from deviceplugin.observe.status import DeviceStatus, HealthEvent, PluginStatus, ResourceStatus, Status
from deviceplugin.observe.words import count, one_line

MAX_CARDS = 512
"""Units that are drawn of one resource. ``/devices`` has them all."""

ALIKE = 5
"""So many units that nothing tells apart are one card with a bar of slots: the ways of a cache, shares of a bandwidth."""

MAX_SLOTS = 64
"""Slots that are drawn one by one on a card; more are drawn in proportion."""

_CSS = files(__package__).joinpath("page.css").read_text("utf-8")
_JS = files(__package__).joinpath("page.js").read_text("utf-8")
_FACTS = ("model", "profile", "pciAddress", "address", "path", "serial")
_WORST = ("unhealthy", "unknown", "healthy")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = (
    f"default-src 'none'; style-src 'sha256-{_digest(_CSS)}'; script-src 'sha256-{_digest(_JS)}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: whatever a device or a pod is called, nothing but our own style and script can come of it."""


def document(status: Status) -> str:
    """The whole page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_text(status.node)}: devices</title><style>{_CSS}</style></head><body><main>{fragment(status)}</main>"
        f'<div id="stale" role="status" hidden>not connected: this is how it was</div><script>{_JS}</script></body></html>'
    )


def fragment(status: Status) -> str:
    """What changes of it, without anything that changes by itself as time passes: two equal pictures give equal text."""
    resources = [one for one in status.resources if one.devices or one.role != "none"]
    connected = {name for plugin in status.plugins for way in plugin.connections for name in (way.unit, way.other)}
    return "".join(
        (
            *_head(status),
            *_checks(status),
            *_resources(resources),
            *_layout(resources, connected),
            *_links(status),
            *_left_out(status.plugins),
            *_events(status.events),
        )
    )


def _head(status: Status) -> Iterator[str]:
    ready = '<span class="badge good">ready</span>' if status.ready else '<span class="badge">not ready</span>'
    started = status.taken_at - datetime.timedelta(seconds=status.uptime_seconds)
    who = _text(instance_name(status.pid, status.host))
    yield f"<header><h1>{_text(status.node)}</h1>{ready}"
    yield f'<span class="soft">deviceplugin {_text(status.release)}, {who}, started {_time(started.replace(microsecond=0))}</span></header>'
    if status.config_error:
        yield f'<p class="bad">The configuration was not applied: {_text(status.config_error)}</p>'


def _checks(status: Status) -> Iterator[str]:
    failed = [one for one in status.checks if not one.ok]
    if failed:
        yield '<ul class="plain">'
        yield from (f'<li class="bad">{_text(one.name)}: {_text(one.text)}</li>' for one in failed)
        yield "</ul>"


def _resources(resources: Sequence[ResourceStatus]) -> Iterator[str]:
    yield "<h2>Resources</h2>"
    if not resources:
        yield '<p class="soft">No devices.</p>'
        return
    yield '<div class="scroll"><table><tr><th>Resource<th>Plugin<th>Role<th>Kubelet<th class="number">In the list<th class="number">Healthy'
    yield '<th class="number">Held<th>Enforced</tr>'
    for one in resources:
        held = sum(bool(device.held_by) for device in one.devices)
        unknown = any(device.held_by is None for device in one.devices)
        well = "good" if one.healthy == len(one.devices) else "bad"
        phase = f"{one.phase}{': ' + one.error if one.error else ''}" if one.phase else f"waits for {one.waits_for}" if one.waits_for else one.error
        yield f"<tr><td><b>{_text(one.name)}</b><td>{_text(one.plugin)}<td>{_text(one.role)}<td>{_text(phase)}"
        yield f'<td class="number">{len(one.devices)}<td class="number {well}">{one.healthy}<td class="number">{"?" if unknown else held}'
        yield f"<td>{_enforcement(one.devices)}</tr>"
    yield "</table></div>"


def _enforcement(devices: Sequence[DeviceStatus]) -> str:
    tiers = ", ".join(sorted({one.enforcement for one in devices}))
    broken = sum(one.enforced is False for one in devices)
    verified = sum(one.enforced is True for one in devices)
    if broken:
        return f'{_text(tiers)}, <span class="bad">{broken} NOT ENFORCED</span>'
    return _text(tiers) + (f', <span class="good">{verified} verified</span>' if verified else "")


class _Card(Struct, frozen=True):
    """A unit of one resource, or many that nothing tells apart, with their entries of the list."""

    resource: ResourceStatus
    name: str
    devices: tuple[DeviceStatus, ...]

    @property
    def health(self) -> str:
        return next(word for word in _WORST if any(one.health == word for one in self.devices))

    @property
    def number(self) -> str:
        """What people call it for short, if anything."""
        return str(self.devices[0].attributes.get("index", ""))

    @property
    def numa(self) -> tuple[int, ...]:
        return self.devices[0].numa_nodes


def _cards(resource: ResourceStatus, connected: Set[str] = frozenset()) -> list[_Card]:
    units: dict[str, list[DeviceStatus]] = {}
    for one in resource.devices:
        units.setdefault(one.unit, []).append(one)
    alike: dict[object, list[str]] = {}
    for unit, devices in units.items():
        first = devices[0]
        facts = (first.numa_nodes, tuple(sorted(first.attributes.items())), tuple(sorted(first.capacity.items())))
        alike.setdefault(unit if unit in connected else facts, []).append(unit)
    found: list[_Card] = []
    for same in alike.values():
        names = sorted(same, key=natural)
        if len(names) < ALIKE:
            found += (_Card(resource, name, tuple(units[name])) for name in names)
        else:
            found.append(_Card(resource, f"{names[0]} … {names[-1]}", tuple(device for name in names for device in units[name])))
    return sorted(found, key=lambda card: (natural(card.number), natural(card.name)))[:MAX_CARDS]


def _layout(resources: Sequence[ResourceStatus], connected: Set[str]) -> Iterator[str]:
    cards = [card for resource in resources for card in _cards(resource, connected)]
    if not cards:
        return
    yield '<h2>Devices</h2><div class="nodes">'
    for numa in sorted({card.numa for card in cards}, key=lambda nodes: (not nodes, nodes)):
        name = f"NUMA node{'s' if len(numa) > 1 else ''} {', '.join(map(str, numa))}" if numa else "No NUMA node known"
        yield f'<section class="numa"><h3>{name}</h3><div class="cards">'
        yield from (_card(card) for card in cards if card.numa == numa)
        yield "</div></section>"
    yield '</div><p class="key"><span><span class="slots"><i></i></span>free</span><span><span class="slots"><i class="held"></i></span>held</span>'
    yield '<span><span class="slots"><i class="sick"></i></span>given to nobody new</span>'
    yield '<span><span class="slots"><i class="loose"></i></span>held and not enforced</span></p>'


def _card(card: _Card) -> str:
    first = card.devices[0]
    facts = [str(first.attributes[key]) for key in _FACTS if first.attributes.get(key) not in (None, "", card.name)]
    who = dict.fromkeys(f"{one.namespace}/{one.pod}/{one.container}" for device in card.devices for one in device.held_by or ())
    causes = {f"{one.health}: {one.cause}" if one.cause else one.health: one.since for one in card.devices if one.health != "healthy"}
    loose = dict.fromkeys(one.enforcement_detail or "not enforced" for one in card.devices if one.enforced is False)
    lines = [f"<small>{_text(card.resource.name)}{' · ' if facts else ''}{_text(' · '.join(facts))}</small>"]
    lines += (f'<small class="bad">{_text(cause)}, {_time(since)}</small>' for cause, since in causes.items())
    lines += (f'<small class="warn">NOT ENFORCED: {_text(detail)}</small>' for detail in loose)
    lines += (f"<small>{_text(name)}</small>" for name in list(who)[:8])
    if len(who) > 8:
        lines.append(f"<small>and {count(len(who) - 8, 'more container')}</small>")
    number = f"<span>{_text(card.number)}</span> " if card.number else ""
    return f'<div class="card {card.health}"><b>{number}{_text(card.name)}</b>{_slots(card.devices)}{"".join(lines)}</div>'


def _slots(devices: Sequence[DeviceStatus]) -> str:
    """A bar of entries of the list."""
    if len(devices) > MAX_SLOTS:
        counts = Counter(_slot(one) for one in devices)
        cells = "".join(_cell(kind) * max(1, round(counts[kind] * MAX_SLOTS / len(devices))) for kind in sorted(counts))
    else:
        cells = "".join(_cell(_slot(one), _title(one)) for one in devices)
    held = sum(bool(one.held_by) for one in devices)
    return f'<div class="slots" role="img" aria-label="{held} of {len(devices)} held">{cells}</div>'


def _cell(kind: str, title: str = "") -> str:
    attributes = "".join(f' {key}="{_text(value)}"' for key, value in (("class", kind), ("title", title)) if value)
    return f"<i{attributes}></i>"


def _title(device: DeviceStatus) -> str:
    who = ", ".join(f"{one.namespace}/{one.pod}/{one.container}" for one in device.held_by or ())
    return f"{device.id}: {who or (device.health if device.health != 'healthy' else 'free')}"


def _slot(device: DeviceStatus) -> str:
    if device.held_by:
        return "loose" if device.enforced is False else "held"
    return "" if device.health == "healthy" else "sick"


def _links(status: Status) -> Iterator[str]:
    ways = [way for plugin in status.plugins for way in plugin.connections]
    units: dict[str, Unit] = {}
    connected = {name for way in ways for name in (way.unit, way.other)}
    for card in [card for resource in status.resources for card in _cards(resource, connected) if card.name in connected]:
        label = card.number or str(len(units))
        worst = units[card.name].health if card.name in units and units[card.name].health != "healthy" else card.health
        units[card.name] = Unit(card.name, label, f"{card.name}: {worst}", worst, card.numa)
    if picture := draw(list(units.values()), ways):
        yield f'<h2>Connections</h2><div class="numa">{picture}</div>'


def _left_out(plugins: Iterable[PluginStatus]) -> Iterator[str]:
    left = [(plugin.name, one) for plugin in plugins for one in plugin.skipped]
    if left:
        yield f'<details id="left-out"><summary>{count(len(left), "thing")} seen and not advertised</summary><ul>'
        yield from (f"<li>{_text(name)}: {_text(one.what)}: {_text(one.reason)}</li>" for name, one in left[:MAX_CARDS])
        yield "</ul></details>"


def _events(events: Sequence[HealthEvent]) -> Iterator[str]:
    yield "<h2>Changes of health</h2>"
    if not events:
        yield '<p class="soft">None since it was started.</p>'
        return
    yield '<div class="scroll"><table><tr><th>When<th>Plugin<th>Unit<th>From<th>To<th>Cause</tr>'
    for one in reversed(events):
        style = "good" if one.after == "healthy" else "bad" if one.after == "unhealthy" else "warn"
        yield f"<tr><td>{_time(one.at)}<td>{_text(one.plugin)}<td>{_text(one.unit)}<td>{_text(one.before) or '-'}"
        yield f'<td class="{style}">{_text(one.after)}<td>{_text(one.cause)}</tr>'
    yield "</table></div>"


def _text(text: str) -> str:
    return escape(one_line(text))


def _time(moment: datetime.datetime) -> str:
    """As the server says it; the script says how long ago that is."""
    text = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    return f'<time datetime="{text}">{text}</time>'
