/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * python_start.h - one isolated CPython in this process, started once and never stopped.
 *
 * No Slurm type and, towards the callers, no Python type.
 */
#ifndef BANKING_PYTHON_START_H
#define BANKING_PYTHON_START_H

#include <stddef.h>

/*
 * Check the import path, start Python unless one of our plugins has done so, make libpython's symbols global, give the
 * GIL back. Returns 0, or -1 with one line in why.
 */
extern int banking_python_start(char *why, size_t size);

/*
 * Create the cffi module with its init function (the generated PyInit_...), and hand its ffi and lib to
 * slurm_banking.boundary.embedded.attach(). Returns 0, or -1 with one line in why.
 */
extern int banking_python_attach(void *(*module_init)(void), char *why, size_t size);

/* In the generated file (build_plugins.py): the two above, and then calls go straight to Python. */
extern int banking_attach(char *why, size_t size);

#endif
