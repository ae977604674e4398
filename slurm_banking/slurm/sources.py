# SPDX-License-Identifier: BSD-3-Clause
"""The ways to ask slurmdbd, by name; all give equal runs (see docs/slurmrestd.md for what Slurm itself tells otherwise)."""

from __future__ import annotations

from typing import Tuple

from slurm_banking.config import Config
from slurm_banking.errors import ConfigError
from slurm_banking.slurm import commands
from slurm_banking.slurm.accounting import AccountingSource, OperatorUids, only_root
from slurm_banking.slurm.commands import Runner
from slurm_banking.slurm.sacct import Sacct

SACCT, SACCT_JSON, SLURMRESTD = "sacct", "sacct-json", "slurmrestd"

#: The first is the one to use where nothing speaks against it.
SOURCES: Tuple[str, ...] = (SACCT, SACCT_JSON, SLURMRESTD)


def make_source(
    name: str,
    config: Config,
    cluster: str,
    *,
    operators: OperatorUids = only_root,
    run: Runner = commands.run,
) -> AccountingSource:
    """``operators``: whose cancellations of others' jobs are the system's. Nothing is asked yet, no token looked for.

    :raises ConfigError: there is no source of that name, or [slurmrestd] does not say where it is.
    """
    if name == SACCT:
        return Sacct(cluster, run=run, operators=operators)
    if name == SACCT_JSON:
        from slurm_banking.slurm.sacct_json import SacctJson

        return SacctJson(cluster, run=run, operators=operators)
    if name == SLURMRESTD:
        # Only who asks slurmrestd needs requests.
        from slurm_banking.slurm.rest import from_config
        from slurm_banking.slurm.slurmdb_rest import SlurmdbRest

        return SlurmdbRest(cluster, from_config(config), operators=operators)
    raise ConfigError([f"source {name[:60]!r}: expected one of {', '.join(SOURCES)}"])
