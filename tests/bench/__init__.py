# SPDX-License-Identifier: BSD-3-Clause
"""The budgets of docs/architecture.md, measured: ``make bench``; see docs/benchmarks.md."""
