/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * tres_alloc.h - what a job has been allocated, exactly.
 */
#ifndef BANKING_TRES_ALLOC_H
#define BANKING_TRES_ALLOC_H

#include "slurm_compat.h"

/*
 * "cpu=4,mem=8000M,node=1,billing=4,gres/gpu=2,gres/gpu:a100=2", to be freed with xfree; NULL: nothing is, or it is not
 * known. Needs slurmctld's job lock; takes the association manager's TRES lock after it, as Slurm does.
 */
extern char *banking_tres_alloc(const job_record_t *job_ptr);

#endif
