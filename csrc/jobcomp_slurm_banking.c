/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * jobcomp_slurm_banking.c - slurmctld tells that a run ended (from 25.05 on also that one started).
 *
 * Called with slurmctld's job write lock held. Nothing here may fail a job, and no failure may stop slurmctld: every
 * function returns success. What is not recorded here, the relay finds in slurmdbd.
 *
 * JobCompType holds one plugin, so a site's own line of each record is written here too, and another plugin gets whatever
 * this one gets, if [JobComp] says so: after the charge, with or without Python, and also while charging is switched off.
 */
#include "slurm_compat.h"

#include <stdio.h>
#include <stdlib.h>

#include "append_log.h"
#include "banking.h"
#include "jobcomp_line.h"
#include "jobcomp_next.h"
#include "policy_scan.h"
#include "shim.h"
#include "tres_alloc.h"

const char plugin_name[] = "Slurm banking: what a run cost";
const char plugin_type[] = "jobcomp/slurm_banking";
const uint32_t plugin_version = SLURM_VERSION_NUMBER;

/* in the generated module */
extern void banking_py_run_ended(const banking_run *run, banking_reply *reply);
extern void banking_py_run_started(const banking_run *run, banking_reply *reply);

/* How messages name a key; a wrong value is one line, and counts as none. */
static void name_key(char *what, size_t size, const char *path, const char *key, banking_text *value, const char *wrong)
{
	char line[2 * BANKING_WHY_SIZE];

	snprintf(what, size, "jobcomp: %.400s: [JobComp] %s = \"%.500s\"", path, key, value->text);
	if (!wrong)
		return;
	snprintf(line, sizeof(line), "%s: %s; taken as \"\"", what, wrong);
	banking_log(BANKING_LOG_ERROR, line);
	value->text[0] = '\0';
}

static void read_log_key(void)
{
	char *path = get_extra_conf_path("bank-config.toml"), what[BANKING_WHY_SIZE];
	banking_policy policy;
	const char *wrong;

	banking_policy_scan(path, &policy);
	wrong = banking_wrong_log(&policy.jobcomp_log);
	if (!wrong && slurm_conf.job_comp_loc && !strcmp(policy.jobcomp_pass_on.text, "jobcomp/filetxt") &&
	    !strcmp(policy.jobcomp_log.text, slurm_conf.job_comp_loc))
		wrong = "expected another file than JobCompLoc, which jobcomp/filetxt writes already";
	name_key(what, sizeof(what), path, "log", &policy.jobcomp_log, wrong);
	append_log_set(policy.jobcomp_log.text, what);
	xfree(path);
}

/* Also in the process of "sacct -c", which asks the other plugin. */
static void load_next(void)
{
	char *path = get_extra_conf_path("bank-config.toml"), what[BANKING_WHY_SIZE];
	banking_policy policy;

	banking_policy_scan(path, &policy);
	name_key(what, sizeof(what), path, "pass_on", &policy.jobcomp_pass_on,
		 banking_wrong_pass_on(&policy.jobcomp_pass_on));
	if (policy.jobcomp_pass_on.text[0])
		jobcomp_next_load(policy.jobcomp_pass_on.text, what);
	xfree(path);
}

extern int init(void)
{
	(void) shim_init("jobcomp", "ended runs are found later, in slurmdbd");
	load_next();
	return SLURM_SUCCESS;	/* from 23.02 on anything else would stop slurmctld */
}

extern int fini(void)
{
	jobcomp_next_unload();
	append_log_set("", "");
	if (!shim_off())
		banking_log(BANKING_LOG_DEBUG, "jobcomp: unloaded");
	return SLURM_SUCCESS;
}

/* At the start, at a reconfigure, and when logs were rotated (SIGUSR2). JobCompLoc is the other plugin's. */
extern int JOBCOMP_SET_LOCATION(JOBCOMP_SET_LOCATION_PARAMETERS);
extern int JOBCOMP_SET_LOCATION(JOBCOMP_SET_LOCATION_PARAMETERS)
{
	if (running_in_slurmctld())
		read_log_key();
	jobcomp_next_set_location(JOBCOMP_SET_LOCATION_ARGUMENT);
	return SLURM_SUCCESS;
}

/* "sacct -c": this plugin keeps nothing that could answer it; the other one may. */
extern banking_list JOBCOMP_GET_JOBS(slurmdb_job_cond_t *job_cond);
extern banking_list JOBCOMP_GET_JOBS(slurmdb_job_cond_t *job_cond)
{
	if (jobcomp_next_loaded())
		return jobcomp_next_get_jobs(job_cond);
	banking_log(BANKING_LOG_DEBUG, "jobcomp: keeps no job records; use sacct without -c");
	return NULL;
}

JOBCOMP_ARCHIVE_FUNCTION

/* Did somebody with authority over Slurm end it, and not its user? */
static bool cancelled_by_admin(const job_record_t *job_ptr)
{
	uint32_t requid = banking_requid(job_ptr);

	if (((job_ptr->job_state & JOB_STATE_BASE) != JOB_CANCELLED) || (requid == BANKING_NOBODY) ||
	    (requid == NO_VAL) || (requid == job_ptr->user_id))
		return false;
	return (requid == 0) || (requid == slurm_conf.slurm_user_id) || validate_operator(requid);
}

/* The caller frees run->tres_alloc. */
static void decode_run(const job_record_t *job_ptr, banking_run *run)
{
	memset(run, 0, sizeof(*run));
	run->account = job_ptr->account;
	run->partition = job_ptr->part_ptr ? job_ptr->part_ptr->name : job_ptr->partition;
	run->qos = job_ptr->qos_ptr ? job_ptr->qos_ptr->name : NULL;
	run->user_name = job_ptr->user_name;
	if (!run->user_name && job_ptr->assoc_ptr)
		run->user_name = job_ptr->assoc_ptr->user;
	run->admin_comment = job_ptr->admin_comment;
	run->name = job_ptr->name;
	if (job_ptr->nodes && job_ptr->nodes[0]) {
		run->nodes = job_ptr->nodes;
		/* at a resize Slurm tells before it changes anything: these are of the part that ended */
		run->tres_alloc = banking_tres_alloc(job_ptr);
		run->total_cpus = job_ptr->total_cpus;
		run->node_count = job_ptr->node_cnt ? job_ptr->node_cnt : job_ptr->total_nodes;
	}
	run->job_id = job_ptr->job_id;
	run->array_job_id = job_ptr->array_job_id;
	run->array_task_id = job_ptr->array_task_id;
	run->het_job_id = job_ptr->het_job_id;
	run->het_job_offset = job_ptr->het_job_id ? job_ptr->het_job_offset : NO_VAL;
	run->user_id = job_ptr->user_id;
	run->restart_count = job_ptr->restart_cnt;
	run->job_state = job_ptr->job_state;
	run->state_reason = job_ptr->state_reason;
	run->task_count = 1;
	if (job_ptr->array_recs && (job_ptr->array_task_id == NO_VAL) && job_ptr->array_recs->task_cnt)
		run->task_count = job_ptr->array_recs->task_cnt;
	run->time_limit_min = job_ptr->time_limit;
	if ((run->time_limit_min == NO_VAL) && job_ptr->part_ptr)
		run->time_limit_min = job_ptr->part_ptr->max_time;
	run->exit_code = job_ptr->exit_code;
	run->requeue = (job_ptr->job_state & (JOB_REQUEUE | JOB_REQUEUE_HOLD | JOB_SPECIAL_EXIT)) ? 1 : 0;
	run->cancelled_by_admin = cancelled_by_admin(job_ptr) ? 1 : 0;
	run->submit_time = job_ptr->details ? job_ptr->details->submit_time : 0;
	run->start_time = job_ptr->start_time;
	run->end_time = job_ptr->end_time;
	run->suspend_time = job_ptr->suspend_time;
	run->pre_suspend_s = job_ptr->pre_sus_time;
	run->resize_time = job_ptr->resize_time;
}

static void tell(const char *event, void (*python)(const banking_run *, banking_reply *), const job_record_t *job_ptr)
{
	banking_reply reply = { .verdict = BANKING_UNDECIDED };
	banking_run run;

	if (shim_off())
		return;
	if (shim_attached()) {
		decode_run(job_ptr, &run);
		python(&run, &reply);
		xfree(run.tres_alloc);
	}
	reply.message[sizeof(reply.message) - 1] = '\0';
	if (reply.verdict == BANKING_UNDECIDED)
		shim_log_undecided(event, "left_to_relay",
				   reply.message[0] ? reply.message :
				   shim_why()[0]    ? shim_why() :
						      "the policy engine gave no answer");
}

static void log_line(const job_record_t *job_ptr)
{
	size_t length;
	char *line;

	if (!append_log_on() || !(line = jobcomp_line(job_ptr, &length)))
		return;
	append_log_line(line, length);
	free(line);
}

extern int JOBCOMP_RECORD_END(JOBCOMP_RECORD_PARAMETERS);
extern int JOBCOMP_RECORD_END(JOBCOMP_RECORD_PARAMETERS)
{
	tell("run_end_unrecorded", banking_py_run_ended, job_ptr);
	log_line(job_ptr);
	jobcomp_next_record_end(JOBCOMP_RECORD_ARGUMENTS);
	return SLURM_SUCCESS;
}

#if JOBCOMP_HAS_START
extern int jobcomp_p_record_job_start(JOBCOMP_RECORD_PARAMETERS);
extern int jobcomp_p_record_job_start(JOBCOMP_RECORD_PARAMETERS)
{
	tell("run_start_unrecorded", banking_py_run_started, job_ptr);
	jobcomp_next_record_start(JOBCOMP_RECORD_ARGUMENTS);
	return SLURM_SUCCESS;
}
#endif
