# SPDX-License-Identifier: BSD-3-Clause
"""The token that ties a job in Slurm's queue to its lien, carried in ``admin_comment`` under a key of ours.

``slurm_banking=<lien id>:<cost per task in csu>:<price version>``, after whatever else is there, separated by ``;``.
Users cannot set ``admin_comment`` at submission, but what one can read one can copy elsewhere: a token alone proves
nothing. It counts only together with cluster, user and account, and while its lien is not bound to another job.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

KEY = "slurm_banking"
_TOKEN = re.compile(r"(?:^|;)" + KEY + r"=([0-9a-f]{32}):(\d{1,15}):([0-9A-Za-z._-]{1,32})(?=;|$)")


@dataclass(frozen=True)
class Token:
    lien_id: str
    per_task_csu: int
    price_version: str

    def __str__(self) -> str:
        return f"{KEY}={self.lien_id}:{self.per_task_csu}:{self.price_version}"


def parse(admin_comment: str) -> Optional[Token]:
    """The token in a comment; None if there is none, it is malformed, or there is more than one."""
    found = _TOKEN.findall(admin_comment or "")
    if len(found) != 1:
        return None
    lien_id, cost, version = found[0]
    return Token(lien_id=lien_id, per_task_csu=int(cost), price_version=version)
