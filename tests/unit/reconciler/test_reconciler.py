# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from deviceplugin import Allocation, Device, Sharing, Verdict
from deviceplugin.hooks import Hooks
from deviceplugin.inventory import Snapshot
from deviceplugin.kubelet.podresources import Holder, Holdings
from deviceplugin.reconciler import Held, Reconciler, allocations
from deviceplugin.tally import Tally
from tests.helpers.core import WIDGET, Widgets, snapshot_of

MAIN, SIDE = Holder("default", "job", "main"), Holder("default", "job", "side")


def holdings(**by_id: Holder) -> Holdings:
    return Holdings({(WIDGET, device_id): (holder,) for device_id, holder in by_id.items()}, taken_at=1.0, error="")


class Judging(Widgets):
    """Answers with whatever :attr:`judge` makes of the allocations, and tells when it was asked."""

    def __init__(self, judge: Callable[[Sequence[Allocation]], Iterable[object]]) -> None:
        super().__init__()
        self.judge = judge
        self.asked: list[Sequence[Allocation]] = []
        self.done = threading.Semaphore(0)

    def reconcile(self, found: Sequence[Allocation]) -> Iterable[Verdict]:
        self.asked.append(found)
        return self.judge(found)  # type: ignore[return-value]


@contextmanager
def reconciling(plugin: Judging, snapshot: Snapshot | None, deadline: float = 5.0) -> Iterator[Callable[[Holdings], Reconciler]]:
    """A function that gives a view and waits until it has been looked at."""
    looked = threading.Semaphore(0)

    class Watched(Reconciler):
        def _publish(self, audit: object) -> None:
            super()._publish(audit)  # type: ignore[arg-type]
            looked.release()

    hooks = Hooks(plugin, "widgets", Tally(), {"reconcile": deadline})
    one = Watched(hooks, Tally(), lambda: {} if snapshot is None else {WIDGET: snapshot})
    one.start()

    def view(what: Holdings) -> Reconciler:
        one.view(what)
        assert looked.acquire(timeout=5.0)
        return one

    try:
        yield view
    finally:
        one.stop()
        hooks.close()


def test_an_allocation_is_what_one_container_holds_each_device_once() -> None:
    snapshot = snapshot_of(Device("b"), Device("a"), sharing=Sharing(replicas=2))
    ids = {row.id for row in snapshot.rows}
    assert ids == {"a::0", "a::1", "b::0", "b::1"}
    found = allocations({WIDGET: snapshot}, holdings(**{"b::0": MAIN, "a::1": MAIN, "a::0": MAIN, "b::1": SIDE, "unlisted": SIDE}))
    assert {key: [one.id for one in value.devices] for key, value in found.items()} == {
        Held(WIDGET, MAIN): ["a", "b"],
        Held(WIDGET, SIDE): ["b"],
    }
    assert (found[Held(WIDGET, MAIN)].pod, found[Held(WIDGET, MAIN)].container) == ("job", "main")


def test_a_verdict_is_known_for_each_holder_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broken = True
    plugin = Judging(lambda found: [Verdict(one, one.container == "main" or not broken, "tasks run elsewhere") for one in found])
    with reconciling(plugin, snapshot_of(Device("a"), Device("b"))) as view:
        for _ in range(3):
            audit = view(holdings(a=MAIN, b=SIDE)).audit
        assert audit.enforced(WIDGET, [MAIN]) == (True, "tasks run elsewhere")
        assert audit.enforced(WIDGET, [SIDE]) == (False, "tasks run elsewhere")
        assert audit.enforced(WIDGET, [MAIN, SIDE])[0] is False
        assert audit.enforced(WIDGET, []) == (None, "")
        broken = False
        assert view(holdings(a=MAIN, b=SIDE)).audit.enforced(WIDGET, [MAIN, SIDE])[0] is True
    assert [one.getMessage() for one in caplog.records] == [
        f"plugin widgets: what default/job/side holds of {WIDGET} is not enforced: tasks run elsewhere",
        f"plugin widgets: what default/job/side holds of {WIDGET} is enforced again",
    ]


def test_what_was_not_judged_is_not_known() -> None:
    with reconciling(Judging(lambda found: [Verdict(found[0], None, "cannot be seen")]), snapshot_of(Device("a"), Device("b"))) as view:
        audit = view(holdings(a=MAIN, b=SIDE)).audit
        assert audit.enforced(WIDGET, [MAIN]) == (None, "cannot be seen")
        assert audit.enforced(WIDGET, [SIDE]) == (None, "")


def test_nothing_is_asked_without_a_fresh_view_or_behind_another_instance(caplog: pytest.LogCaptureFixture) -> None:
    plugin = Judging(lambda found: [Verdict(one, True) for one in found])
    with reconciling(plugin, snapshot_of(Device("a"))) as view:
        assert view(holdings(a=MAIN)).audit.enforced(WIDGET, [MAIN])[0]
        stale = Holdings(holdings(a=MAIN).by_device, 1.0, "no socket at /x")
        audit = view(stale).audit
        assert audit.enforced(WIDGET, [MAIN]) == (None, "who holds what is not known: no socket at /x")
        view(stale)
    assert len(plugin.asked) == 1
    assert len(caplog.records) == 1, "once, not at each question"
    with reconciling(plugin, None) as view:
        assert view(holdings(a=MAIN)).audit.verdicts == {}
    assert len(plugin.asked) == 1


def test_no_allocation_at_all_is_asked_too() -> None:
    """What nobody holds any more is collected then."""
    plugin = Judging(lambda _found: [])
    with reconciling(plugin, snapshot_of(Device("a"))) as view:
        view(Holdings({}, 1.0, ""))
    assert plugin.asked == [()]


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (lambda _found: 1 / 0, "reconcile() failed: ZeroDivisionError"),
        (lambda _found: None, "reconcile() failed: TypeError"),
        (lambda _found: ["fine"], "must yield Verdicts on the allocations that it was given, not 'fine'"),
        (lambda found: [Verdict(Allocation("a", "b", "c", WIDGET, found[0].devices), True)], "on the allocations that it was given"),
    ],
)
def test_a_hook_that_fails_or_lies_takes_down_nothing(judge: Callable[..., Iterable[object]], said: str) -> None:
    plugin = Judging(judge)
    with reconciling(plugin, snapshot_of(Device("a"))) as view:
        audit = view(holdings(a=MAIN)).audit
        assert said in audit.error
        assert audit.enforced(WIDGET, [MAIN]) == (None, audit.error)
        plugin.judge = lambda found: [Verdict(one, True) for one in found]
        assert view(holdings(a=MAIN)).audit.enforced(WIDGET, [MAIN]) == (True, "")


def test_a_hook_that_hangs_is_not_called_again_before_it_came_back() -> None:
    gate = threading.Event()

    def judge(found: Sequence[Allocation]) -> list[Verdict]:
        gate.wait()
        return [Verdict(one, True) for one in found]

    plugin = Judging(judge)
    with reconciling(plugin, snapshot_of(Device("a")), deadline=0.05) as view:
        assert "did not answer within 0.05 s" in view(holdings(a=MAIN)).audit.error
        assert view(holdings(a=MAIN)).audit.error == "reconcile() still hangs"
        assert len(plugin.asked) == 1
        gate.set()
