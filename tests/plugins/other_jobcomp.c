/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * other_jobcomp.c - a jobcomp plugin that writes each call down, in the file that OTHER_JOBCOMP names.
 *
 * OTHER_TYPE: its type; OTHER_INIT: what init() answers; OTHER_LOCATION: what set_location answers; OTHER_VERSION and
 * OTHER_INCOMPLETE: as a plugin for another release, and one that lacks a function.
 */
#include "slurm_compat.h"

#include <stdio.h>
#include <stdlib.h>

#ifndef OTHER_TYPE
#define OTHER_TYPE "jobcomp/other"
#endif
#ifndef OTHER_INIT
#define OTHER_INIT 0
#endif
#ifndef OTHER_LOCATION
#define OTHER_LOCATION 0
#endif
#ifndef OTHER_VERSION
#define OTHER_VERSION SLURM_VERSION_NUMBER
#endif

const char plugin_name[] = "Another one";
const char plugin_type[] = OTHER_TYPE;
const uint32_t plugin_version = OTHER_VERSION;

static void note(const char *what, const char *text, uint32_t number)
{
	FILE *file = fopen(getenv("OTHER_JOBCOMP"), "a");

	fprintf(file, "%s %s %u\n", what, text ? text : "-", number);
	fclose(file);
}

extern int init(void)
{
	note("init", NULL, 0);
	return OTHER_INIT;
}

extern int fini(void)
{
	note("fini", NULL, 0);
	return SLURM_SUCCESS;
}

extern int JOBCOMP_SET_LOCATION(JOBCOMP_SET_LOCATION_PARAMETERS)
{
	JOBCOMP_SET_LOCATION_IGNORE;
	note("location", slurm_conf.job_comp_loc, 0);
	return OTHER_LOCATION;
}

extern int JOBCOMP_RECORD_END(JOBCOMP_RECORD_PARAMETERS)
{
	JOBCOMP_RECORD_IGNORE;
	note("end", job_ptr->name, job_ptr->job_id);
	return SLURM_ERROR;	/* slurmctld does not look at it, and so must ours */
}

#ifndef OTHER_INCOMPLETE
extern banking_list JOBCOMP_GET_JOBS(slurmdb_job_cond_t *job_cond)
{
	(void) job_cond;
	note("jobs", NULL, 0);
	return list_create(NULL);
}
#endif

#if JOBCOMP_HAS_START
extern int jobcomp_p_record_job_start(JOBCOMP_RECORD_PARAMETERS)
{
	JOBCOMP_RECORD_IGNORE;
	note("start", job_ptr->name, job_ptr->job_id);
	return SLURM_SUCCESS;
}
#endif
