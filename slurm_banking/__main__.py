# SPDX-License-Identifier: BSD-3-Clause
"""``python3 -m slurm_banking``: the same as ``slurm-banking``."""

from __future__ import annotations

import sys

from slurm_banking.cli import main

if __name__ == "__main__":
    sys.exit(main())
