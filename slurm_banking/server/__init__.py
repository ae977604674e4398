# SPDX-License-Identifier: BSD-3-Clause
"""The bundled bank: a REST service that serves the portal's API from an append-only ledger.

::

    cli.py         slurm-banking bank …            serve.py      one process: migrate, listen, stop
    options.py     data directory, database URL, bank.toml
    settings.py    Django's view of the options    urls.py, views.py, job_fields.py, tokens.py
    models.py      tables                          operations.py every change of money, each one transaction
    verify.py      counters against entries        admin.py      /admin/, read-only where money is
"""
