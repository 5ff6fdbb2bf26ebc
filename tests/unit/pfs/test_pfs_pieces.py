# SPDX-License-Identifier: Apache-2.0
"""Mount tables, tags, rates and what is believed: the pure parts."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deviceplugin import Health, Host
from deviceplugin.plugins.pfs import advice, mounts, rates, tags
from deviceplugin.plugins.pfs.config import amount
from deviceplugin.plugins.pfs.debounce import Debounce
from deviceplugin.testing import SimulatedHost
from deviceplugin.testing.pfs import SimulatedPfs, TokenBuckets
from tests.unit.pfs.rig import T1, config

# Mount tables


NAMES = st.text(st.characters(min_codepoint=1, codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20)


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, st.sampled_from(["gpfs", "nfs4"])), max_size=8))
def test_a_table_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, str]]) -> None:
    host = SimulatedHost(tmp_path_factory.mktemp("root"))
    pfs = SimulatedPfs(host)
    for name, fstype in made:
        pfs.mount(fstype, f"10.0.0.1@tcp:/{fstype}", f"/mnt/{name}")
    table = mounts.read(Host(host.root), "/proc/1")
    assert [(one.target, one.fstype) for one in table[1:]] == [(f"/mnt/{name}", fstype) for name, fstype in made]


@given(st.text(alphabet=string.printable, max_size=400))
def test_no_text_is_too_odd_for_a_table(text: str) -> None:
    assert all(isinstance(one.device, str) for one in mounts.parse(text))


def test_optional_fields_vary_in_number_and_the_last_mount_at_a_place_counts() -> None:
    lines = [
        "1 0 0:1 / /a rw - lustre s:/x rw",
        "2 0 0:2 / /a rw shared:1 master:2 unbindable - nfs4 s:/y rw,nconnect=4",
        "3 0 0:3 / /b\\134c\\040d rw shared:1 - lustre s:/z rw",
    ]
    table = mounts.parse("\n".join(lines))
    last = mounts.at(table, "/a")
    assert last is not None
    assert (last.device, last.source, last.option("nconnect"), last.option("vers")) == ("0:2", "s:/y", "4", None)
    assert mounts.at(table, "/b\\c d") is not None
    assert mounts.at(table, "/c") is None


# Tags


@given(
    st.text(alphabet=string.ascii_lowercase + string.digits + ".-", min_size=1, max_size=63),
    st.integers(1, 1000),
    st.integers(0, 999),
    st.sampled_from(["kdp", "a", "abcde"]),
)
def test_a_tag_always_fits_into_a_jobid(node: str, slots: int, slot: int, prefix: str) -> None:
    tags.check_prefix(prefix)
    tag = tags.tag(prefix, slots, node, slot)
    assert len(tag) <= tags.MAX_JOBID
    assert set(tag) <= set(string.ascii_lowercase + string.digits + ".-")
    assert tag.count(".") == 2


def test_nodes_that_look_alike_have_labels_of_their_own() -> None:
    names = ["gke-training-pool-a1", "gke-training-pool-a2", "node-1", "node.1", "Node-1", "n" * 16, "n" * 17]
    assert len({tags.node_label(name) for name in names}) == len(names)
    assert tags.node_label("node-1") == "node-1"


# Rates, against a token bucket

PER_SLOT, RPC, OSS, CPTS = 10**9, 4 << 20, 8, 2


def test_the_published_rules_give_each_container_what_its_slots_stand_for() -> None:
    """The very lines that are printed, on a simulated OSS of as many CPTs: of each container its own bucket, and none gets more than it should."""
    options = config(T1)
    lines = list(advice.of(options, options.filesystems[0], 4, "node1"))
    buckets = TokenBuckets(CPTS)
    rules = [line.split('"')[1] for line in lines if "nrs_tbf_rule" in line]
    assert rules[0] == "start kdp_1 jobid={kdp1.*} rate=14"
    for rule in rules:
        buckets.start(rule)
    held = {"a": (1, tags.tag("kdp", 1, "node1", 0)), "b": (1, tags.tag("kdp", 1, "node2", 0)), "c": (3, tags.tag("kdp", 3, "node1", 1))}
    seconds = 20
    served = buckets.serve([tag for _, tag in held.values()], seconds)
    for slots, tag in held.values():
        wanted = slots * PER_SLOT
        got = served[tag] * RPC * OSS / seconds  # of one OSS, so of all of them together
        burst = 3 * CPTS * RPC * OSS / seconds
        assert wanted * (1 - 1 / 14) <= got <= wanted + burst
    assert served[held["a"][1]] == served[held["b"][1]]


def test_what_has_no_tag_or_another_file_systems_is_not_limited_and_small_rpcs_get_less() -> None:
    buckets = TokenBuckets()
    buckets.start("start kdp_1 jobid={kdp1.*} rate=10")
    served = buckets.serve(["kdp1.n.0", "kdp10.n.0", "bash.0"], 10)
    assert served == {"kdp1.n.0": 102, "kdp10.n.0": 10_000, "bash.0": 10_000}
    assert served["kdp1.n.0"] * 4096 < served["kdp1.n.0"] * RPC / 1000, "a bucket counts RPCs, whatever their size"
    with pytest.raises(ValueError, match="Invalid argument"):
        buckets.start("start a_name_of_sixteen jobid={x.*} rate=10")


@given(st.integers(1, 1000), st.integers(1, 10**11), st.integers(1 << 20, 16 << 20), st.integers(1, 200), st.integers(1, 16))
def test_a_rate_is_the_largest_that_does_not_pass_what_the_slots_stand_for(slots: int, per_slot: int, rpc: int, oss: int, cpts: int) -> None:
    one = rates.tbf(slots, per_slot, rpc_size=rpc, oss=oss, cpts=cpts)
    share = rpc * oss * cpts
    assert 1 <= one.rate <= rates.MAX_RATE
    assert one.ceiling == one.rate * share
    if one.exact:
        assert one.ceiling <= slots * per_slot < one.ceiling + share or one.rate == rates.MAX_RATE
    else:
        assert one.rate == 1


def test_amounts() -> None:
    assert [amount(one) for one in (5, "7", "500M", "1.5Gi", "2k")] == [5, 7, 500_000_000, 3 << 29, 2000]
    for wrong in ("", "0", "-1", "5MB", "1e9", "M", "0.4"):
        with pytest.raises(ValueError, match="is not an amount of bytes"):
            amount(wrong)


def test_littles_law() -> None:
    assert rates.concurrency(4, 4 << 20, 0.001) == pytest.approx(16.8e9, rel=0.01)
    assert [rates.decimal(one) for one in (1, 1500, 469_762_048, 2e12, 5e16)] == ["1 B", "1.5 kB", "469.8 MB", "2 TB", "5e+04 TB"]


# Debounce


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_a_belief_changes_after_as_many_looks_in_a_row_as_it_takes(looks: list[bool], failures: int, successes: int) -> None:
    one = Debounce()
    believed = looks[0]
    against = 0
    for well in looks:
        found = one.see("x", Health.HEALTHY if well else Health.UNHEALTHY, "" if well else "ill", failures=failures, successes=successes)
        against = against + 1 if well is not believed else 0
        if against >= (successes if well else failures):
            believed, against = well, 0
        assert (found.health is Health.HEALTHY) is believed
        assert one.unsettled is (against > 0)
    one.keep(())
    assert not one.unsettled


def test_the_fixtures_are_all_used() -> None:
    folder = Path(__file__).parents[2] / "fixtures" / "pfs"
    text = (Path(__file__).parent / "test_pfs_discovery.py").read_text()
    assert all(f'"{one.stem}"' in text for one in folder.glob("*.yaml"))
