# SPDX-License-Identifier: BSD-3-Clause
"""The proof of ``slurm-banking reconcile``: a history on real daemons, injuries to its books, and a million jobs."""
