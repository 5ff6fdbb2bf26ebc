# SPDX-License-Identifier: Apache-2.0
"""Signals are told whichever thread the kernel gives them to, and afterwards everything is as it was."""

from __future__ import annotations

import os
import queue
import signal
import threading

import pytest

from deviceplugin.signals import Signals


def test_signal_that_another_thread_takes_is_told_while_the_main_thread_waits() -> None:
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    with Signals((signal.SIGUSR1,), told.put):
        other = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
        other.start()
        assert told.get(timeout=10) == signal.SIGUSR1
        other.join()


def test_main_thread_that_never_waits_does_not_keep_a_signal() -> None:
    told = threading.Event()
    with Signals((signal.SIGUSR1,), lambda _number: told.set()):
        os.kill(os.getpid(), signal.SIGUSR1)
        while not told.is_set():  # busy in Python all the time; the test's own limit ends it
            pass


def test_signals_and_bytes_of_the_processs_own_come_in_order() -> None:
    told: list[int] = []
    with Signals((signal.SIGUSR1, signal.SIGUSR2), told.append) as signals:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
            signal.raise_signal(number)
        signals.tell(254)
    assert told == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1, 254]


@pytest.mark.parametrize("ours", [signal.SIGUSR1, signal.SIGUSR2])
def test_afterwards_every_handler_is_as_it_was(ours: signal.Signals) -> None:
    got: list[int] = []
    before = signal.signal(ours, lambda number, _frame: got.append(number))
    descriptors = sorted(os.listdir("/proc/self/fd"))
    try:
        with Signals((ours,), lambda _number: None):
            signal.raise_signal(ours)
        assert got == []
        signal.raise_signal(ours)
        assert got == [ours]
        assert sorted(os.listdir("/proc/self/fd")) == descriptors
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(ours, before)


def test_signal_that_was_not_asked_for_keeps_its_handler_and_is_not_told() -> None:
    got: list[int] = []
    told: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _frame: got.append(number))
    try:
        with Signals((signal.SIGUSR1,), told.append):
            signal.raise_signal(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (got, told) == ([signal.SIGUSR2], [])
