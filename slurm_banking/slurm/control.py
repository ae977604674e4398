# SPDX-License-Identifier: BSD-3-Clause
"""What slurmctld says about itself, and who has authority over it."""

from __future__ import annotations

import os
import pwd
import re
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, FrozenSet, Mapping, Optional

from slurm_banking.errors import SlurmUnavailable
from slurm_banking.slurm import commands
from slurm_banking.slurm.commands import Runner

#: Seconds for which slurmdbd's list of operators is good, and after which it is asked again when it did not answer.
OPERATORS_KEPT_S = 300.0
OPERATORS_AGAIN_S = 60.0

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
    #: Every key as ``scontrol show config`` prints it.
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

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
            settings=values,
        )
    except (KeyError, ValueError) as error:
        raise SlurmUnavailable(f"scontrol show config: unexpected answer: {error}") from None


def own_uid() -> int:
    return os.geteuid()


class Operators:
    """The users with authority over all jobs, by uid: root, SlurmUser, slurmdbd's operators and administrators.

    Those are whom slurmctld's validate_operator() lets pass. Remembered for some minutes; while slurmdbd cannot be
    asked, root and SlurmUser alone.
    """

    def __init__(
        self, *, run: Runner = commands.run, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run
        self._clock = clock
        self._slurm_user: Optional[int] = None
        self._known: FrozenSet[int] = frozenset()
        self._until = float("-inf")

    def __call__(self) -> FrozenSet[int]:
        if self._clock() >= self._until:
            try:
                self._known = self._owners() | self._look_up()
                self._until = self._clock() + OPERATORS_KEPT_S
            except SlurmUnavailable:
                self._known = self._owners()
                self._until = self._clock() + OPERATORS_AGAIN_S
        return self._known

    def _owners(self) -> FrozenSet[int]:
        if self._slurm_user is None:
            try:
                self._slurm_user = read_controller(run=self._run).slurm_user_id
            except SlurmUnavailable:
                return frozenset({0, own_uid()})  # the relay is SlurmUser's
        return frozenset({0, self._slurm_user})

    def _look_up(self) -> FrozenSet[int]:
        query = ["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "user"]
        found = set()
        for line in self._run([*query, "format=User,AdminLevel"]).splitlines():
            name, _, level = line.partition("|")
            if level.startswith(("Operator", "Administrator")):
                try:
                    found.add(pwd.getpwnam(name).pw_uid)
                except (KeyError, ValueError):
                    continue  # slurmctld does not know the uid either
        return frozenset(found)
