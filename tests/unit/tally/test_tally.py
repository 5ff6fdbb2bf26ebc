# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from deviceplugin.tally import BUCKETS, Tally


def test_what_was_not_counted_is_nought() -> None:
    assert Tally().value("scans", plugin="a") == 0


def test_labels_tell_counters_apart_whatever_their_order() -> None:
    tally = Tally()
    tally.count("x", a="1", b="2")
    tally.count("x", 2, b="2", a="1")
    tally.count("x", a="1", b="3")
    assert tally.value("x", b="2", a="1") == 3
    assert list(tally.counters()) == [("x", {"a": "1", "b": "2"}, 3), ("x", {"a": "1", "b": "3"}, 1)]


@given(st.lists(st.one_of(st.sampled_from(BUCKETS), st.floats(0, 100)), min_size=1))
def test_each_duration_is_in_the_first_bucket_that_holds_it(durations: list[float]) -> None:
    tally = Tally()
    for one in durations:
        tally.time("t", one)
    ((_, _, histogram),) = tally.histograms()
    bounds = [*BUCKETS, float("inf")]
    for i, bound in enumerate(bounds):
        assert sum(histogram.counts[: i + 1]) == sum(one <= bound for one in durations)
    assert histogram.total == sum(durations)


def test_a_reader_keeps_what_it_has_while_counting_goes_on() -> None:
    tally = Tally()
    tally.count("x")
    tally.time("t", 1.0)
    counters, histograms = tally.counters(), tally.histograms()
    tally.count("x")
    tally.count("y")
    tally.time("t", 1.0)
    assert list(counters) == [("x", {}, 1)]
    assert [sum(histogram.counts) for _, _, histogram in histograms] == [1]


def test_no_count_is_lost_between_threads() -> None:
    tally = Tally()
    ready = threading.Barrier(4)

    def work() -> None:
        ready.wait()
        for _ in range(2000):
            tally.count("x")
            tally.time("t", 0.01)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.value("x") == 8000
    ((_, _, histogram),) = tally.histograms()
    assert sum(histogram.counts) == 8000
