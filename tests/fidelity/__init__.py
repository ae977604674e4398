# SPDX-License-Identifier: BSD-3-Clause
"""The money against Slurm itself: what was estimated, what slurmctld allocated, what was charged."""
