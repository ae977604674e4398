/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * shim.h - what the two slurmctld plugins share: starting, the log, and what "undecided" means.
 */
#ifndef BANKING_SHIM_H
#define BANKING_SHIM_H

#include "banking.h"

#define BANKING_WHY_SIZE 1024

/*
 * At init(): read the few keys of C, start Python, attach the package, ask it whether it is ready. Outside slurmctld, and
 * where the configuration switches this plugin off, nothing is started. Returns 0, or -1 if on_plugin_error is "abort"
 * and something failed (all of it logged).
 */
extern int shim_init(const char *plugin, const char *what_happens_instead);

/* May Python be called? 0: switched off, not in slurmctld, or it could not be loaded. */
extern int shim_attached(void);

/* Is this plugin switched off, or not in slurmctld? Then it lets everything through and says nothing. */
extern int shim_off(void);

/* BANKING_ON_ERROR_* as configured. */
extern int shim_on_error(void);

/* What made this plugin unusable at init(); "" is nothing. */
extern const char *shim_why(void);

/* One line: the first at once, then at most one in a minute, with the number of those left out. */
extern void shim_log_undecided(const char *event, const char *outcome, const char *reason);

/*
 * One line "slurm_banking: ..." in slurmctld's log, whatever is in it; the one place that calls Slurm's variadic log
 * functions.
 */
extern void banking_log(int level, const char *line);

#endif
