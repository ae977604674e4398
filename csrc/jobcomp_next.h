/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * jobcomp_next.h - another jobcomp plugin, loaded by ours, that gets whatever ours gets.
 *
 * It is loaded from PluginDir and called just as slurmctld would: under the same locks, from the same threads, with what
 * slurm.conf has for it. One that cannot be loaded is one line in the log.
 */
#ifndef BANKING_JOBCOMP_NEXT_H
#define BANKING_JOBCOMP_NEXT_H

#include "slurm_compat.h"

/* type: as JobCompType would name it; what: how messages name it. Does nothing if one is loaded. */
extern void jobcomp_next_load(const char *type, const char *what);
extern void jobcomp_next_unload(void);

extern int jobcomp_next_loaded(void);
extern void jobcomp_next_set_location(JOBCOMP_SET_LOCATION_PARAMETERS);
extern void jobcomp_next_record_end(JOBCOMP_RECORD_PARAMETERS);
extern banking_list jobcomp_next_get_jobs(slurmdb_job_cond_t *job_cond);
#if JOBCOMP_HAS_START
extern void jobcomp_next_record_start(JOBCOMP_RECORD_PARAMETERS);
#endif

#endif
