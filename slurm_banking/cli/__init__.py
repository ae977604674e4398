# SPDX-License-Identifier: BSD-3-Clause
"""``slurm-banking``: what users and operators ask on a host of the cluster, and the relay and the bank it starts.

Exit status: 0 yes, 1 no (it would be refused, there is nothing, not allowed, something needs an operator), 2 not a
command that makes sense, 3 the relay cannot be asked or cannot answer now. ``docs/commands.md`` has every command; a test
holds the two together.
"""

from __future__ import annotations

from slurm_banking.cli.program import main

__all__ = ["main"]
