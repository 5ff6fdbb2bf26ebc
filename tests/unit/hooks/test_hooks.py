# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from deviceplugin.hooks import MAX_HUNG, SHOWN, HookFailed, Hooks, HookTimeout
from deviceplugin.model import Device, Edits
from deviceplugin.plugin import Plugin
from deviceplugin.tally import Tally

SHORT = 0.02
"""A deadline for hooks that are meant to miss it."""


class Acting(Plugin):
    """Its allocate() does what it is told."""

    act: Callable[[], Any] = staticmethod(lambda: Edits())

    def allocate(self, devices: Sequence[Device]) -> Edits:
        edits: Edits = self.act()
        return edits

    def discover(self) -> Iterator[Device]:
        yield Device("a")
        yield Device("b")
        self.act()


class Told(logging.Handler):
    """The lines of the log, as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def of(self, plugin: str) -> str:
        """The next line about this plugin: what an earlier test left hanging may still come back."""
        while not (line := self.lines.get(timeout=10)).startswith(f"plugin {plugin}: "):
            pass
        return line

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put(record.getMessage())


@pytest.fixture
def told() -> Iterator[Told]:
    handler = Told()
    log = logging.getLogger("deviceplugin.hooks")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end, so that nothing hangs longer than its test."""
    event = threading.Event()
    yield event
    event.set()


def make(act: Callable[[], Any] = Edits, name: str = "acting") -> Hooks:
    plugin = Acting()
    plugin.act = act
    return Hooks(plugin, name, Tally())


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


def threads(name: str) -> int:
    return sum(thread.name == f"hook-{name}" for thread in threading.enumerate())


def test_a_hook_answers() -> None:
    edits = Edits(envs={"A": "1"})
    assert make(lambda: edits).call("allocate", []) is edits


def test_what_a_generator_yields_is_collected_under_the_deadline(gate: threading.Event) -> None:
    assert [device.id for device in make().call("discover")] == ["a", "b"]
    with pytest.raises(HookTimeout, match=r"plugin acting: discover\(\) did not answer within 0.02 s"):
        make(gate.wait).call("discover", deadline=SHORT)


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no card"), "ValueError: no card"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError("  \n"), "ValueError"),
        (KeyError(), "KeyError"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration(), "StopIteration"),
        (MemoryError(), "MemoryError"),
        (Mute(), "Mute"),
        (ValueError("x" * 10_000), "ValueError: " + "x" * SHOWN),
    ],
)
@pytest.mark.parametrize("hook", ["allocate", "discover"])
def test_whatever_a_hook_raises_is_one_short_line_that_names_it(hook: str, error: BaseException, text: str) -> None:
    if hook == "discover" and isinstance(error, StopIteration):
        text = "RuntimeError: generator raised StopIteration"
    hooks = make(raising(error))
    with pytest.raises(HookFailed) as caught:
        hooks.call(hook, *([[]] if hook == "allocate" else []))
    assert str(caught.value) == f"plugin acting: {hook}() failed: {text}"
    assert hooks._tally.value("hook_failures", plugin="acting", hook=hook, reason="error") == 1


def test_a_discovery_that_yields_nothing_to_go_through_has_failed() -> None:
    class Forgetful(Plugin):
        def discover(self) -> list[Device]:
            return None  # type: ignore[return-value]

    with pytest.raises(HookFailed, match="NoneType"):
        Hooks(Forgetful(), "forgetful", Tally()).call("discover")


def test_a_hook_that_hangs_takes_down_nothing_but_itself(gate: threading.Event) -> None:
    hooks = make(gate.wait)
    with pytest.raises(HookTimeout):
        hooks.call("allocate", [], deadline=SHORT)
    ((hook, age),) = hooks.hung()
    assert hook == "allocate"
    assert age >= SHORT
    hooks.plugin.act = lambda: "done"  # type: ignore[attr-defined]
    assert hooks.call("allocate", []) == "done"
    assert make(lambda: "other", "neighbour").call("allocate", []) == "other"


def test_an_answer_that_comes_too_late_is_thrown_away_and_said(gate: threading.Event, told: Told) -> None:
    hooks = make(gate.wait, "late")
    with pytest.raises(HookTimeout):
        hooks.call("allocate", [], deadline=SHORT)
    gate.set()
    line = told.of("late")
    assert line.startswith("plugin late: allocate() came back after ")
    assert line.endswith("its answer is thrown away")
    assert hooks.hung() == ()


def test_an_exception_that_comes_too_late_is_no_answer_either(gate: threading.Event, told: Told) -> None:
    def act() -> None:
        gate.wait()
        raise SystemExit(1)

    hooks = make(act, "later")
    with pytest.raises(HookTimeout):
        hooks.call("allocate", [], deadline=SHORT)
    gate.set()
    assert "thrown away" in told.of("later")
    hooks.plugin.act = lambda: "done"  # type: ignore[attr-defined]
    assert hooks.call("allocate", []) == "done"


def test_a_plugin_that_hangs_all_over_is_not_called_until_something_comes_back(gate: threading.Event, told: Told) -> None:
    hooks = make(gate.wait, "hanging")
    for _ in range(MAX_HUNG):
        with pytest.raises(HookTimeout):
            hooks.call("allocate", [], deadline=0.001)
    assert len(hooks.hung()) == MAX_HUNG
    before = threads("hanging")
    with pytest.raises(HookFailed, match=rf"discover\(\) not called, since {MAX_HUNG} calls hang, the oldest in allocate\(\) for 0 s"):
        hooks.call("discover")
    assert threads("hanging") == before
    assert hooks._tally.value("hook_failures", plugin="hanging", hook="discover", reason="refused") == 1
    assert make(lambda: "other", "neighbour").call("allocate", []) == "other"
    gate.set()
    for _ in range(MAX_HUNG):
        told.of("hanging")
    assert len(hooks.call("discover")) == 2


def test_calls_one_after_the_other_share_one_thread() -> None:
    names: list[int] = []
    hooks = make(lambda: names.append(threading.get_ident()))
    for _ in range(50):
        hooks.call("allocate", [])
    assert len(set(names)) == 1
    hooks.close()


def test_calls_at_the_same_time_do_not_wait_for_each_other() -> None:
    together = threading.Barrier(8, timeout=10)
    hooks = make(together.wait)
    callers = [threading.Thread(target=hooks.call, args=("allocate", [])) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not together.broken
    hooks.close()


def test_no_thread_is_left_after_close(gate: threading.Event, told: Told) -> None:
    hooks = make(gate.wait, "closing")
    with pytest.raises(HookTimeout):
        hooks.call("allocate", [], deadline=SHORT)
    hooks.plugin.act = lambda: "done"  # type: ignore[attr-defined]
    for _ in range(3):
        hooks.call("allocate", [])
    alive = [thread for thread in threading.enumerate() if thread.name == "hook-closing"]
    assert alive
    hooks.close()
    assert hooks.call("allocate", []) == "done"  # a call that was on its way is still answered
    alive += [thread for thread in threading.enumerate() if thread.name == "hook-closing"]
    gate.set()
    told.of("closing")
    for thread in alive:
        thread.join(timeout=10)
    assert threads("closing") == 0


def test_a_machine_without_threads_left_is_a_failed_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hooks = make()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(HookFailed, match="not called: can't start new thread"):
        hooks.call("allocate", [])


def test_the_shorter_of_two_deadlines_counts(gate: threading.Event) -> None:
    hooks = Hooks(make(gate.wait).plugin, "acting", Tally(), {"allocate": SHORT})
    with pytest.raises(HookTimeout, match=r"within 0.02 s"):
        hooks.call("allocate", [], deadline=30)


def test_only_what_is_overridden_is_there() -> None:
    assert [make().has(hook) for hook in ("allocate", "prefer", "prepare", "watch")] == [True, False, False, False]
