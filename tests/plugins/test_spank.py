# SPDX-License-Identifier: BSD-3-Clause
"""The real spank plugin, called as `slurmstepd spank prolog` calls it; a stand-in report writes down what it was given."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Optional

import pytest

from .conftest import ROOT, Built, Layout, compile_c, not_sanitized

#: As slurmd 22.05 makes it for the prolog, with what a user would like to add.
PROLOG = {
    "SLURMD_NODENAME": "n03",
    "SLURM_NODELIST": "n[03-05,9]",
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_UID": "1001",
    "SLURM_JOB_USER": "alice",
    "SLURM_JOB_ACCOUNT": "astro",
    "SLURM_JOB_PARTITION": "normal",
    "SLURM_JOB_RESTART_COUNT": "2",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_JOB_CPUS_PER_NODE": "4(x4)",
    "SLURM_CLUSTER_NAME": "testcluster",
    "SPANK_LD_PRELOAD": "/tmp/evil.so",
    "PYTHONPATH": "/tmp/evil",
    "PYTHONSTARTUP": "/tmp/evil.py",
    "SLURM_JOB_COMMENT": "$(evil)",
}


class Node:
    def __init__(self, layout: Layout, built: Built) -> None:
        self.layout = layout
        self.built = built
        self.token = layout.etc / "bank-node.token"
        self.token.write_text("Token 0123\n")
        self.token.chmod(0o600)
        self.configure(f'[API]\nurl = "http://127.0.0.1:1/api"\nnode_token_file = "{self.token}"\n')

    def configure(self, text: str) -> None:
        self.layout.config.write_text(text)

    def prolog(
        self, context: str = "job_script", *arguments: str, **changes: Optional[str]
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            "SLURM_CONF": str(self.layout.etc / "slurm.conf"),
            **self.built.environment,
            **PROLOG,
        }
        for name, value in changes.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        done = subprocess.run(
            [str(self.built.fake_slurmstepd), str(self.built.spank), context, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert done.returncode == 0 and done.stdout.startswith("rc=0 "), done
        return done

    def report(self, wait_s: float = 10.0) -> Optional[Dict[str, Any]]:
        path = self.layout.etc / "report.json"
        deadline = time.monotonic() + wait_s
        while not path.exists():
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        facts: Dict[str, Any] = json.loads(path.read_text())
        path.unlink()
        return facts

    def no_report(self) -> bool:
        return self.report(wait_s=0.5) is None


@pytest.fixture
def node(layout: Layout, built: Built) -> Node:
    return Node(layout, built)


def test_the_first_node_reports_what_slurmd_knows(node: Node) -> None:
    node.prolog()
    facts = node.report()
    assert facts is not None
    environment = facts["environment"]
    for name in ("SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_JOB_ACCOUNT", "SLURM_JOB_RESTART_COUNT"):
        assert environment[name] == PROLOG[name]
    assert environment["BANKING_CONFIG"] == str(node.layout.config)
    assert abs(int(environment["BANKING_NOW"]) - time.time()) < 60


def test_the_child_has_nothing_of_a_users_and_nothing_secret(node: Node) -> None:
    node.prolog()
    facts = node.report()
    assert facts is not None
    expected = set(PROLOG) - {name for name in PROLOG if "evil" in PROLOG[name]}
    own = {"PATH", "LANG", "BANKING_CONFIG", "BANKING_NOW", "SLURM_CONF"}
    assert set(facts["environment"]) - {"LC_CTYPE"} == expected | own
    assert "0123" not in json.dumps(facts)
    assert facts["arguments"] == ["-c"]
    assert facts["path"] == str(node.layout.lib)


def test_the_child_is_detached_and_has_a_deadline(node: Node) -> None:
    node.prolog()
    facts = node.report()
    assert facts is not None
    assert facts["session"] != os.getsid(0)
    assert facts["stdin"] == "/dev/null" and facts["descriptors"] == [0, 1, 2]
    assert 20 < facts["deadline_s"] <= 30
    assert facts["directory"] == "/"


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURMD_NODENAME": "n04"},
        {"SLURMD_NODENAME": "n3"},
        {"SLURM_NODELIST": None},
        {"SLURM_NODELIST": ""},
        {"SLURM_NODELIST": "n[03"},
        {"SLURM_JOB_NODELIST": "n[01-05]"},
    ],
)
def test_no_other_node_reports(changes: Dict[str, Optional[str]], node: Node) -> None:
    node.prolog(**changes)  # type: ignore[arg-type]
    assert node.no_report()


def test_newer_slurms_node_list_counts(node: Node) -> None:
    node.prolog(SLURM_NODELIST=None, SLURM_JOB_NODELIST="n03")
    assert node.report() is not None


def test_nothing_happens_in_a_step(node: Node) -> None:
    node.prolog("remote")
    assert node.no_report()


def test_a_node_without_a_token_reports_nothing_and_says_nothing(node: Node) -> None:
    node.token.unlink()
    assert node.prolog().stderr == ""
    assert node.no_report()


def test_without_a_key_for_the_token_nothing_is_reported(node: Node) -> None:
    node.configure('[API]\nurl = "http://127.0.0.1:1/api"\n')
    assert node.prolog().stderr == ""
    assert node.no_report()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_that_others_may_read_is_not_used(mode: int, node: Node) -> None:
    node.token.chmod(mode)
    assert f"{node.token}: expected a regular file of root's with mode 0600" in node.prolog().stderr
    assert node.no_report()


def test_a_users_token_is_not_used(node: Node) -> None:
    os.chown(node.token, 1001, 0)
    assert "owner uid 1001" in node.prolog().stderr
    assert node.no_report()


def test_switched_off_it_reports_nothing(node: Node) -> None:
    node.configure(node.layout.config.read_text() + "[Enable]\nenable_spank_plugin = false\n")
    node.prolog()
    assert node.no_report()


def test_a_package_that_others_may_write_is_not_run_as_root(node: Node) -> None:
    node.layout.package.chmod(0o777)
    assert "expected a directory owned by root" in node.prolog().stderr
    assert node.no_report()


def test_the_configuration_may_be_elsewhere(node: Node) -> None:
    elsewhere = node.layout.etc / "elsewhere.toml"
    node.layout.config.rename(elsewhere)
    node.prolog("job_script", f"config={elsewhere}")
    facts = node.report()
    assert facts is not None and facts["environment"]["BANKING_CONFIG"] == str(elsewhere)


def test_the_job_does_not_wait_for_the_report(node: Node) -> None:
    (node.layout.package / "node_start.py").write_text(
        "import time\n\ndef main():\n    time.sleep(3)\n"
    )
    started = time.monotonic()
    took_us = int(re.search(r"us=(\d+)", node.prolog().stdout)[1])  # type: ignore[index]
    assert time.monotonic() - started < 2
    assert took_us < 200_000


@not_sanitized
def test_no_python_is_mapped_by_the_plugin(built: Built) -> None:
    listing = subprocess.run(
        ["readelf", "-d", str(built.spank)], capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"NEEDED.*\[(.*)\]", listing) == ["libc.so.6"]


@pytest.fixture(scope="module")
def first_node(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library: Path = tmp_path_factory.mktemp("first_node") / "first_node.so"
    compile_c("-shared", "-fPIC", ROOT / "csrc" / "first_node.c", "-o", library)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-4]", "n1"),
        ("n[003-4,9],m1", "n003"),
        ("n[7]", "n7"),
        ("rack[0-1]node[08-15]", "rack0node08"),
        ("gpu-a[2,5]-ib", "gpu-a2-ib"),
        ("", None),
        ("n[1", None),
        ("n]1", None),
        (",n1", None),
        ("x" * 64, None),
        ("n[" + "1" * 64 + "]", None),
    ],
)
def test_the_first_host_of_a_node_list(
    node_list: str, first: Optional[str], first_node: ctypes.CDLL
) -> None:
    name = ctypes.create_string_buffer(64)
    rc = first_node.banking_first_node(node_list.encode(), name, len(name))
    assert (name.value.decode() if rc == 0 else None) == first
