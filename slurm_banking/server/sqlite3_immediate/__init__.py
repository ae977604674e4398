# SPDX-License-Identifier: BSD-3-Clause
"""Django's SQLite backend in write-ahead mode, whose transactions take the write lock first."""
