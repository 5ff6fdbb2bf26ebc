# SPDX-License-Identifier: Apache-2.0
"""What is done to a card before a container starts, within the time that there is."""

from __future__ import annotations

import errno
import os
import select
import threading
from pathlib import Path

import pytest

from deviceplugin import Health, Host, Sharing
from deviceplugin.plugins.mic import boot
from deviceplugin.plugins.mic.boot import NotReady
from tests.unit.mic.conftest import Make
from tests.unit.mic.rig import Rig

IMAGE = {"image": "/usr/share/mpss/boot/bzImage", "initramfs": "/var/mpss/{card}.image.gz"}
BOOT = {"mpss3": "boot:linux:/usr/share/mpss/boot/bzImage:/var/mpss/mic0.image.gz", "kernel": "boot", "mpss4": "boot"}
FLAVOURS = tuple(BOOT)


def prepare(rig: Rig, tries: int = 20) -> tuple[int, str]:
    """As the kubelet does: again and again. How many tries it took, and what the last failure said."""
    held = rig.devices()
    said = ""
    for n in range(1, tries + 1):
        try:
            rig.plugin.prepare(held)
        except NotReady as error:
            said = str(error)
            continue
        return n, said
    raise AssertionError(f"not prepared after {tries} tries: {said}")


def test_by_default_nothing_is_done_to_a_card(make: Make) -> None:
    for flavour in FLAVOURS:
        rig = make(flavour)
        card = rig.mics.add()
        assert prepare(rig) == (1, "")
        held = rig.devices()
        rig.mics.set(card, "ready")
        with pytest.raises(NotReady, match=r"mic0 \(mic-.*\) is not online: 'ready'; boot it \(micctrl -b\), or .* prepare: boot"):
            rig.plugin.prepare(held)
        rig.mics.set(card, "reset failed" if flavour == "mpss3" else "reset_failed" if flavour == "kernel" else "error")
        with pytest.raises(NotReady, match=r"reset it \(micctrl -r\), or .* prepare: reset"):
            rig.plugin.prepare(held)
        assert (rig.mics.commands, rig.mics.refused) == ([], [])


def test_nothing_is_even_looked_at_if_so_configured(make: Make) -> None:
    rig = make("kernel", prepare="none")
    card = rig.mics.add()
    held = rig.devices()
    rig.mics.set(card, "reset_failed")
    rig.plugin.prepare(held)


def test_a_card_that_comes_online_is_waited_for(make: Make) -> None:
    rig = make("kernel")
    card = rig.mics.add()
    held = rig.devices()
    rig.mics.set(card, "booting")
    card.due = [(rig.clock.now + 12, "online")]
    began = rig.clock.now
    rig.plugin.prepare(held)
    assert 12 <= rig.clock.now - began < 12.5


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_ready_card_is_booted_over_two_tries(make: Make, flavour: str) -> None:
    rig = make(flavour, prepare="boot", boot=IMAGE)
    card = rig.mics.add(word="ready")
    tries, said = prepare(rig)
    assert tries == 2  # 30 s in steps of 20
    assert "mic0" in said
    assert "is 'booting', and not online after 20 s; the kubelet tries again" in said
    assert rig.mics.commands == [(card.address, BOOT[flavour])]
    assert prepare(rig) == (1, "")
    assert len(rig.mics.commands) == 1


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_container_gets_a_card_that_was_reset(make: Make, flavour: str) -> None:
    rig = make(flavour, prepare="reset", boot=IMAGE)
    card = rig.mics.add()
    for n in (1, 2):
        assert prepare(rig)[0] == 3  # 40 s and what the looks take
        assert rig.mics.commands == [(card.address, "reset"), (card.address, BOOT[flavour])] * n
    assert rig.mics.refused == []


def test_a_card_that_is_only_waited_for_is_as_ill_as_it_is(make: Make) -> None:
    rig = make("kernel")
    card = rig.mics.add()
    held = rig.devices()
    rig.mics.set(card, "resetting")
    card.due = []
    with pytest.raises(NotReady):
        rig.plugin.prepare(held)
    assert list(rig.health().values()) == ["unhealthy:state: resetting"]


def test_a_card_is_well_while_it_is_reset_for_its_own_container_and_not_for_ever(make: Make) -> None:
    rig = make("kernel", prepare="reset", boot={"timeout": 100})
    card = rig.mics.add()
    held = rig.devices()
    with pytest.raises(NotReady):
        rig.plugin.prepare(held)
    assert card.word == "booting"
    assert list(rig.health().values()) == ["healthy"]
    card.due = []  # it hangs
    for _ in range(3):
        with pytest.raises(NotReady):
            rig.plugin.prepare(held)
    assert list(rig.health().values()) == ["healthy"]
    rig.clock.advance(41)
    assert list(rig.health().values()) == ["unhealthy:state: booting"]


def test_a_start_that_was_given_up_long_ago_counts_for_nothing(make: Make) -> None:
    rig = make("kernel", prepare="reset", boot={"timeout": 100})
    rig.mics.add()
    with pytest.raises(NotReady):
        rig.plugin.prepare(rig.devices())  # and the pod is deleted
    rig.clock.advance(200)
    rig.mics.step()
    rig.mics.step()
    assert list(rig.health().values()) == ["healthy"]
    prepare(rig)
    assert [command for _, command in rig.mics.commands] == ["reset", "boot", "reset", "boot"]


@pytest.mark.parametrize("word", ["boot failed", "lost", "no response", "reset failed", "invalid"])
def test_a_failed_card_is_reset_only_where_that_is_wanted(make: Make, word: str) -> None:
    rig = make("mpss3", prepare="boot", boot=IMAGE)
    card = rig.mics.add()
    held = rig.devices()
    rig.mics.set(card, word)
    with pytest.raises(NotReady, match=f"is not online: '{word}'"):
        rig.plugin.prepare(held)
    assert rig.mics.commands == []
    rig.configure(prepare="reset", boot=IMAGE)
    assert prepare(rig)[0] == 3
    assert card.word == "online"


def test_a_reset_that_fails_is_tried_again(make: Make) -> None:
    rig = make("kernel", prepare="reset")
    card = rig.mics.add()
    held = rig.devices()
    with pytest.raises(NotReady, match="booting"):
        rig.plugin.prepare(held)
    rig.mics.set(card, "reset_failed")
    with pytest.raises(NotReady, match="its reset or boot has failed, and is tried again"):
        rig.plugin.prepare(held)
    assert prepare(rig)[0] == 3
    assert [command for _, command in rig.mics.commands] == ["reset", "boot", "reset", "boot"]


def test_several_cards_go_at_once(make: Make) -> None:
    rig = make("mpss4", prepare="reset", prepareTimeout=24)
    for _ in range(8):
        rig.mics.add()
    began = rig.clock.now
    assert prepare(rig)[0] == 2
    assert rig.clock.now - began < 45


def test_a_restart_of_the_daemon_in_between_costs_a_reset_at_most(make: Make) -> None:
    rig = make("kernel", prepare="reset")
    rig.mics.add()
    held = rig.devices()
    with pytest.raises(NotReady):
        rig.plugin.prepare(held)
    rig.configure(prepare="reset")
    assert prepare(rig)[0] <= 5
    assert [command for _, command in rig.mics.commands] == ["reset", "boot", "reset", "boot"]


@pytest.mark.parametrize("number", [errno.EALREADY, errno.EBUSY, errno.EINVAL])
def test_somebody_else_boots_the_card_first(make: Make, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    rig = make("kernel", prepare="boot")
    card = rig.mics.add(word="ready")

    def other(_path: str, _command: str) -> None:
        rig.mics.set(card, "booting")
        card.due = [(rig.clock.now + 5, "online")]
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(boot, "_write", other)
    assert prepare(rig) == (1, "")


def test_a_reset_that_the_driver_was_too_busy_for_does_not_count(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make("mpss4", prepare="reset")
    rig.mics.add()
    real, refusals = boot._write, [2]

    def busy(path: str, command: str) -> None:
        if refusals[0]:
            refusals[0] -= 1
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        real(path, command)

    monkeypatch.setattr(boot, "_write", busy)
    assert prepare(rig)[0] == 3  # a refusal costs a look, not a try
    assert [command for _, command in rig.mics.commands] == ["reset", "boot"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EROFS, "must be privileged, and /sys writable"), (errno.EACCES, "must be privileged"), (errno.EINVAL, "see the kernel's log")],
)
def test_a_driver_that_refuses_is_quoted(make: Make, monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    rig = make("kernel", prepare="boot")
    rig.mics.add(word="ready")

    def refuse(_path: str, _command: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(boot, "_write", refuse)
    with pytest.raises(NotReady, match=f"'boot' cannot be written to /sys/class/mic/mic0/state: {os.strerror(number)}; .*{advice}"):
        rig.plugin.prepare(rig.devices())


def test_mpss3_must_be_told_what_to_boot(make: Make) -> None:
    rig = make("mpss3", prepare="boot")
    card = rig.mics.add()
    held = rig.devices()
    rig.mics.set(card, "ready")
    with pytest.raises(NotReady, match="set boot: image"):
        rig.plugin.prepare(held)
    rig.configure(prepare="boot", boot={"image": "/boot/bz"})
    prepare(rig)
    assert rig.mics.commands == [(card.address, "boot:linux:/boot/bz")]


def test_a_shared_card_is_never_reset(make: Make) -> None:
    rig = make("kernel", prepare="reset")
    rig.mics.add()
    held = rig.devices()
    rig.plugin.sharing = {"intel.com/mic": Sharing(replicas=4)}
    with pytest.raises(NotReady, match="would reset a card under the containers that share it"):
        rig.plugin.prepare(held)
    assert rig.mics.commands == []
    rig.plugin.sharing = {"intel.com/mic": Sharing()}
    assert prepare(rig)[0] == 3


def test_a_state_that_cannot_be_told_is_not_acted_upon(make: Make) -> None:
    rig = make("kernel", prepare="reset")
    card = rig.mics.add()
    held = rig.devices()
    for text in ("", "weird\n"):
        rig.mics.say(card, "state", text)
        with pytest.raises(NotReady, match="its state cannot be told"):
            rig.plugin.prepare(held)
    rig.machine.remove(f"{card.directory}/state")
    with pytest.raises(NotReady, match="there is none"):
        rig.plugin.prepare(held)
    assert rig.mics.commands == []


def test_two_calls_for_one_card_drive_it_one_at_a_time(make: Make) -> None:
    rig = make("kernel", prepare="reset")
    rig.mics.add()
    held = rig.devices()
    booter = rig.plugin._booter
    entered, leave = threading.Event(), threading.Event()
    real = booter._wait

    def wait(*arguments: object) -> None:
        entered.set()
        assert leave.wait(10)
        real(*arguments)  # type: ignore[arg-type]

    booter._wait = wait
    failures: list[str] = []

    def first() -> None:
        try:
            rig.plugin.prepare(held)
        except NotReady as error:
            failures.append(str(error))

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    booter._limit = 0.05
    with pytest.raises(NotReady, match="still being brought online by an earlier call"):
        rig.plugin.prepare(held)
    leave.set()
    thread.join(10)
    assert len(failures) == 1
    assert len(rig.mics.commands) >= 1


def test_an_ordinary_file_never_wakes_and_a_missing_one_does_no_harm(make: Make, tmp_path: Path) -> None:
    rig = make("kernel")
    card = rig.mics.add()
    boot.wait_for_change(rig.host, [f"{card.directory}/state", "/no/such/file"], 0.01)
    boot.wait_for_change(rig.host, [], 0.01)


def test_a_change_told_by_sysfs_notify_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    class Poll:
        def register(self, fd: int, mask: int) -> None:
            assert mask == select.POLLPRI | select.POLLERR
            assert os.fstat(fd)

        def poll(self, milliseconds: float) -> None:
            asked.append(milliseconds)

    monkeypatch.setattr(select, "poll", Poll)
    before = len(os.listdir("/proc/self/fd"))
    boot.wait_for_change(Host(), ["/proc/self/mountinfo"], 0.25)
    assert asked == [250.0]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_card_that_was_renumbered_since_is_not_touched(make: Make) -> None:
    rig = make("kernel", prepare="reset")
    for _ in range(2):
        rig.mics.add()
    held = rig.devices()[:1]
    rig.mics.renumber(1, 0)
    with pytest.raises(NotReady, match=r"was mic0 at 0000:05:00\.0, and mic0 is at 0000:06:00\.0 now"):
        rig.plugin.prepare(held)
    assert rig.mics.commands == []
    rig.mics.remove(rig.mics.cards[1])
    with pytest.raises(NotReady, match="mic0 is at no address now"):
        rig.plugin.prepare(held)


def test_health_of_a_card_in_somebody_elses_hands(make: Make) -> None:
    rig = make("kernel", prepare="reset")
    card = rig.mics.add()
    rig.mics.set(card, "resetting")
    assert [device.health for device in rig.devices()] == [Health.UNHEALTHY]
