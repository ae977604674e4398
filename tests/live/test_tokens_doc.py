# SPDX-License-Identifier: BSD-3-Clause
"""docs/slurmrestd.md, section Tokens: its blocks are run in order on a cluster that knew no tokens before."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.test_tokens import part, with_signature
from tests.rig.cluster import CHECKOUT, SLURM_USER, Cluster
from tests.rig.restd import Slurmrestd

pytestmark = pytest.mark.live

PAGE = CHECKOUT / "docs" / "slurmrestd.md"


def section(name: str) -> str:
    text = PAGE.read_text()
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


class Admin:
    """Does what the page says, with the rig's places in the place of the page's."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.restd: Slurmrestd | None = None
        self.token = ""
        self.bin = cluster.root / "bin"
        self.bin.mkdir()
        self._script("slurm-banking", f'PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={CHECKOUT} exec /usr/bin/python3 -m slurm_banking "$@"')  # fmt: skip
        self._script("systemctl", f'echo "$@" >> {self.bin}/asked')

    def _script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def configure(self, block: str) -> None:
        """The lines into slurm.conf and slurmdbd.conf, in the place of those of the same keys."""
        lines = dict(line.split("=", 1) for line in self.places(block).splitlines())
        self.cluster.extra_slurm_conf.update(lines)
        self.cluster.write_slurm_conf()
        path = self.cluster.etc_dir / "slurmdbd.conf"
        kept = [line for line in path.read_text().splitlines() if line.split("=")[0] not in lines]
        kept += [f"{key}={value}" for key, value in lines.items()]
        self.cluster.write_file(path, "\n".join(kept) + "\n", owner=SLURM_USER, mode=0o600)

    def run(self, block: str) -> str:
        """Line by line; what is exported is still there in the next block."""
        printed = ""
        for line in self.places(block).splitlines():
            script = f"{line}\nprintf '\\n#%s' \"$SLURM_JWT\""
            env = {"PATH": f"{self.bin}:{self.cluster.env()['PATH']}"}
            # Only a shell that has a token hands one on: scontrol of 22.05 takes it for its own.
            env |= {"SLURM_JWT": self.token} if self.token else {}
            result = self.cluster.run_as("root", ["sh", "-e", "-c", script], env=env)
            assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
            shown, _, self.token = result.stdout.rpartition("\n#")
            printed += shown
            self.restart_if_asked()
        return printed

    def restart_if_asked(self) -> None:
        asked = self.bin / "asked"
        if not asked.exists():
            return
        assert asked.read_text() == "restart slurmdbd slurmctld\n"
        asked.unlink()
        self.cluster.stop_daemon("slurmdbd")
        self.cluster.start_daemon("slurmdbd")
        self.cluster.restart_slurmctld()
        if self.restd is None:
            self.restd = Slurmrestd(self.cluster)
            self.restd.start()

    def places(self, text: str) -> str:
        ours = {"/etc/slurm/": f"{self.cluster.etc_dir}/", "/root/": f"{self.cluster.home('root')}/", "alice": "sb-alice"}  # fmt: skip
        if self.restd is not None:
            ours |= {"http://127.0.0.1:6820": self.restd.url}
            ours |= {"/run/slurmrestd/socket": str(self.restd.socket)}
            ours |= {"v0.0.38": self.restd.newest}
        for theirs, here in ours.items():
            text = text.replace(theirs, here)
        return text


@pytest.fixture(scope="module")
def admin() -> Iterator[Admin]:
    with Cluster() as cluster:
        yield Admin(cluster)


def test_the_blocks_about_tokens_do_what_they_say(admin: Admin) -> None:
    printed = []
    for kind, block in re.findall(r"^```(sh|conf)\n(.*?)^```", section("Tokens"), re.MULTILINE | re.DOTALL):  # fmt: skip
        if kind == "conf":
            admin.configure(block)
        else:
            printed.append(admin.run(block))
    everything = "\n".join(printed)
    assert re.search(r'"ping(ed)?": "UP"', everything)
    assert '"qos": [' in everything
    assert everything.count("GOOD: ") == section("Tokens").count("\nslurm-banking token verify")
    assert "NOT GOOD" not in everything
    assert not re.search(r'"error_number": (-1|1007)', everything)
    algorithms = re.findall(r"^algorithm +(\w+)", everything, re.MULTILINE)
    assert algorithms == ["HS256", "HS256", "RS256", "RS256", "RS256", "HS256"]


def test_the_logs_say_what_the_page_says_they_do(admin: Admin) -> None:
    """Every row of the table: what verify says of a token, and what slurmctld writes of it."""
    assert admin.restd is not None
    table = section("Tokens").split("slurmctld.log, slurmdbd.log |")[1].split("\n\n")[0]
    columns = re.findall(r"^\|[^|]+\|([^|]+)\|$", table, re.MULTILINE)
    documented = {text for logs in columns for text in re.findall(r"`([^`]+)`", logs)}
    assert len(documented) == 8
    minting = f"{shlex.quote(str(admin.bin))}/slurm-banking token mint --user"
    key = admin.cluster.etc_dir / "jwt_hs256.key"
    pem = admin.cluster.etc_dir / "bank-jwt.pem"
    other = admin.cluster.root / "other.key"
    other.write_bytes(b"o" * 32)
    other.chmod(0o600)
    made = {
        name: admin.cluster.run_as("root", ["sh", "-c", f"{minting} {options} | cut -d= -f2"], check=True).stdout.strip()
        for name, options in {
            "ended": f"sb-alice --lifespan 1s --key {key}",
            "key": f"sb-alice --key {other}",
            "kid": f"sb-alice --key {pem} --kid nobodys",
            "user": f"sb-bob --key {key}",
        }.items()
    }  # fmt: skip
    time.sleep(2.1)
    header, body, signature = made["user"].split(".")
    tokens = list(made.values())
    tokens.append(f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{body}.{signature}")
    tokens.append(f"{part({'alg': 'HS512', 'typ': 'JWT'})}.{body}.{signature}")
    tokens.append("garbage")
    tokens.append(_nobodys(key))
    diag = admin.restd.path("slurm/diag")
    for token in tokens:
        status, answer = admin.restd.ask("GET", diag, user="sb-alice", token=token)
        assert status in (500, 511)  # 22.05 and 24.11
        assert answer["errors"][0]["error"] in (
            "Unspecified error",
            "Protocol authentication error",
        )
    log = admin.cluster.log("slurmctld")
    missing = {text for text in documented if text not in log}
    assert not missing
    assert admin.restd.ask("GET", diag, user="sb-alice") == (
        401,
        "Authentication failure",
    )


def _nobodys(key: Path) -> str:
    text = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'exp': int(time.time()) + 60})}"
    return with_signature(text, key.read_bytes())
