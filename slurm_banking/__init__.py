# SPDX-License-Identifier: BSD-3-Clause
"""Bank the service units of a Slurm cluster: estimate, set aside, charge, reconcile."""

__version__ = "0.1.0"
