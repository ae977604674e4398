# SPDX-License-Identifier: BSD-3-Clause
"""What slurmctld says about itself."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Dict, FrozenSet

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner

_USER = re.compile(r"(.*)\((\d{1,10})\)\Z")


@dataclass(frozen=True)
class Controller:
    """slurmctld's own account of its configuration, the few keys that matter here."""

    cluster: str
    boot_time: int  #: unix seconds when this slurmctld started; another value, another process
    version: str
    slurm_user_id: int
    private_data: FrozenSet[str]  #: what users may not see of others: "jobs", "usage", ...
    select_type: str

    def shows_all_jobs(self, uid: int) -> bool:
        """Whether ``uid`` surely gets every job from squeue."""
        return uid in (0, self.slurm_user_id) or "jobs" not in self.private_data


def read_controller(*, run: Runner = commands.run) -> Controller:
    """:raises SlurmUnavailable: slurmctld does not answer, or not as expected."""
    values: Dict[str, str] = {}
    for line in run(["scontrol", "show", "config"]).splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values.setdefault(key.strip(), value.strip())
    try:
        user = _USER.match(values["SlurmUser"])
        boot_time = commands.parse_time(values["BOOT_TIME"])
        if user is None or boot_time is None:
            raise ValueError("SlurmUser or BOOT_TIME is missing")
        return Controller(
            cluster=values["ClusterName"],
            boot_time=boot_time,
            version=values.get("SLURM_VERSION", ""),
            slurm_user_id=int(user[2]),
            private_data=frozenset(values.get("PrivateData", "none").split(",")) - {"none"},
            select_type=values.get("SelectType", ""),
        )
    except (KeyError, ValueError) as error:
        raise SlurmUnavailable(f"scontrol show config: unexpected answer: {error}") from None


def own_uid() -> int:
    return os.geteuid()
