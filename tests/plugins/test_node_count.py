# SPDX-License-Identifier: BSD-3-Clause
"""The number of hosts of a node list, as Slurm counts them, but in a time that does not depend on it."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import ROOT, Layout, compile_c, directory_of_libslurmfull
from .test_plugins import described, updated


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library: Path = tmp_path_factory.mktemp("node_count") / "node_count.so"
    compile_c("-shared", "-fPIC", ROOT / "csrc" / "node_count.c", "-o", library)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def slurms() -> ctypes.CDLL:
    library = ctypes.CDLL(str(directory_of_libslurmfull() / "libslurmfull.so"))
    library.slurm_hostlist_create.restype = ctypes.c_void_p
    library.slurm_hostlist_create.argtypes = [ctypes.c_char_p]
    library.slurm_hostlist_count.argtypes = [ctypes.c_void_p]
    library.slurm_hostlist_destroy.argtypes = [ctypes.c_void_p]
    return library


def ranges() -> st.SearchStrategy[str]:
    one = st.integers(0, 120).map(str) | st.tuples(st.integers(0, 60), st.integers(0, 60)).map(
        lambda pair: f"{min(pair):03d}-{max(pair):03d}"
    )
    return st.lists(one, min_size=1, max_size=4).map(lambda items: f"[{','.join(items)}]")


def names() -> st.SearchStrategy[str]:
    word = st.sampled_from(["n", "node", "rack-a", "gpu1", "x9y"])
    return st.one_of(
        word,
        st.tuples(word, ranges()).map("".join),
        st.tuples(word, ranges(), word, ranges()).map("".join),
    )


@given(st.lists(names(), max_size=5).map(",".join))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_list_has_as_many_hosts_as_slurm_finds(
    ours: ctypes.CDLL, slurms: ctypes.CDLL, node_list: str
) -> None:
    hosts = slurms.slurm_hostlist_create(node_list.encode())
    assert hosts
    count = slurms.slurm_hostlist_count(hosts)
    slurms.slurm_hostlist_destroy(hosts)
    assert ours.banking_node_count(node_list.encode()) == count


@pytest.mark.parametrize(
    "node_list", ["", ",", "n[", "n[1", "n[1-", "n[2-1]", "n[]", "n]", "n[1]]", "n[a]", "n[1,]"]
)
def test_a_list_that_is_none_has_no_hosts(node_list: str, ours: ctypes.CDLL) -> None:
    assert ours.banking_node_count(node_list.encode()) == 0


@pytest.mark.parametrize(
    "node_list", ["n[1-9]" * 5000, "n[0-999999999999999]" * 9, "n[1-999999],x" * 5000]
)
def test_a_list_of_more_hosts_than_there_are_is_many_at_once(
    node_list: str, ours: ctypes.CDLL
) -> None:
    started = time.monotonic()
    assert ours.banking_node_count(node_list.encode()) == 0x7FFFFFFF
    assert time.monotonic() - started < 0.1


def test_required_nodes_are_a_least_number_of_nodes(layout: Layout) -> None:
    assert described(layout, "req_nodes=n[1-4],m1")["min_nodes"] == 5
    assert described(layout, "req_nodes=n[1-4] min_nodes=9")["min_nodes"] == 9
    assert described(layout, "req_nodes=n[ min_nodes=2")["min_nodes"] == 2
    assert updated(layout, "", "req_nodes=r[1-2]n[0-3]")["wanted"]["min_nodes"] == 8
    assert described(layout, f"req_nodes={'n[1-9]' * 40}")["min_nodes"] == 0x7FFFFFFF
