# SPDX-License-Identifier: BSD-3-Clause
"""The bank's word on accounts that nobody has used yet, so that their first submission need not wait for it."""

from __future__ import annotations

import pwd
from typing import Callable, List, Sequence, Tuple

from slurm_banking import policy
from slurm_banking.config import Config
from slurm_banking.ledger import Ledger
from slurm_banking.slurm.topology import members

#: More pairs than this are left to their first submission: the bank is not to be flooded by a relay's start.
MAX_PAIRS = 20_000


def unknown_pairs(
    ledger: Ledger,
    config: Config,
    cluster: str,
    *,
    read_members: Callable[[str], Sequence[Tuple[str, str]]] = members,
) -> Sequence[Tuple[str, int]]:
    """(account, user id) pairs that Slurm associates and the ledger has no funds of.

    :raises SlurmUnavailable: slurmdbd cannot be asked.
    """
    pairs: List[Tuple[str, int]] = []
    for account, user_name in read_members(cluster)[:MAX_PAIRS]:
        try:
            user_id = pwd.getpwnam(user_name).pw_uid
        except KeyError:
            continue
        if user_id == 0 or policy.is_exempt(
            config, account=account, user_name=user_name, user_id=user_id, qos=None
        ):
            continue
        pairs.append((account, user_id))
    unknown: List[Tuple[str, int]] = []
    for at in range(0, len(pairs), 50):
        with ledger.transaction(write=False) as tx:
            for account, user_id in pairs[at : at + 50]:
                of_account, of_user = tx.funds(account, user_id)
                if of_account is None or of_user is None:
                    unknown.append((account, user_id))
    return unknown
