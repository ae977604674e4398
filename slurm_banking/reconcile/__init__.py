# SPDX-License-Identifier: BSD-3-Clause
"""slurmdbd, ledger and bank held against each other: what each of them has of every run, and what differs."""
