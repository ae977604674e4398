# SPDX-License-Identifier: BSD-3-Clause
"""The relay: the process that does everything slow, so that slurmctld need not.

This file stays empty of imports: ``client`` is loaded inside slurmctld.
"""
