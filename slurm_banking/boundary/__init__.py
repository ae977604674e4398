# SPDX-License-Identifier: BSD-3-Clause
"""The only code that sees cffi. Slurm's sentinels, flags and NULLs end here; exceptions never leave.

``convert`` turns structs into records, ``embedded`` holds the entry points, ``engine`` decides and writes, ``asker`` asks
the relay. All of it runs inside slurmctld, under its locks: no network, no threads, no imports at call time.
"""
