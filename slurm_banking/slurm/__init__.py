# SPDX-License-Identifier: BSD-3-Clause
"""Reading Slurm from outside, through its own commands; for the relay and the command line, never inside slurmctld."""
