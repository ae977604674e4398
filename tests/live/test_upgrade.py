# SPDX-License-Identifier: BSD-3-Clause
"""Why plugins are built anew before a new Slurm starts: slurmctld stops at a plugin of another version."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.banked import BankedCluster
from tests.rig.cluster import Cluster, RigError

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def site() -> Iterator[BankedCluster]:
    """Without a relay: what is looked at is slurmctld alone."""
    made = BankedCluster(relay='start = "none"')
    try:
        Cluster.start(made)
        yield made
    finally:
        made.stop()


def set_version(plugin: Path, version: int) -> int:
    """Write another Slurm version into a built plugin, as if it had been built for that; the one before."""
    tables = subprocess.run(
        ["readelf", "--wide", "--symbols", "--segments", str(plugin)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (address,) = {
        int(found, 16)
        for found in re.findall(r"\b([0-9a-f]{16})\s+4 OBJECT\s.*\bplugin_version$", tables, re.M)
    }
    for offset, start, size in re.findall(
        r"LOAD\s+0x([0-9a-f]+) 0x([0-9a-f]+) 0x[0-9a-f]+ 0x([0-9a-f]+)", tables
    ):
        if int(start, 16) <= address < int(start, 16) + int(size, 16):
            at = int(offset, 16) + address - int(start, 16)
    content = bytearray(plugin.read_bytes())
    (before,) = struct.unpack_from("<I", content, at)
    struct.pack_into("<I", content, at, version)
    plugin.write_bytes(content)
    return int(before)


def test_slurmctld_does_not_start_with_a_plugin_of_another_slurm_and_does_without_it(
    site: BankedCluster,
) -> None:
    site.stop_daemon("slurmctld")
    plugin = site.stage_dir / "plugins" / "job_submit_slurm_banking.so"
    version = set_version(plugin, 23 << 16 | 2 << 8)
    with pytest.raises(RigError, match="slurmctld"):
        site.start_slurmctld()
    assert "ncompatible" in site.log("slurmctld"), "it says which plugin, and why"
    assert set_version(plugin, version) == 23 << 16 | 2 << 8
    text = site.slurm_conf.read_text()
    without = re.sub(r"(?m)^(JobSubmitPlugins|JobCompType)=.*slurm_banking.*\n", "", text)
    assert without != text
    set_version(plugin, 23 << 16 | 2 << 8)
    site.slurm_conf.write_text(without)
    site.start_slurmctld()
    job_id = int(site.sbatch("sb-alice", "--time=1"))
    site.wait_job(job_id, timeout_s=30)
