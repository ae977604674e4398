# SPDX-License-Identifier: BSD-3-Clause
"""A whole Slurm cluster on loopback, in a scratch directory, for the demo and the live tests."""
