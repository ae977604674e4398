/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE	/* asprintf */
#endif
#include "jobcomp_line.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#define TIME_SIZE 32
/* Names are asked for again after so long, as many users' and groups' as this are known at once. */
#define NAMES_KNOWN_S 3600
#define NAMES_MAX 256

typedef struct {
	uint32_t id;
	time_t until;	/* 0: no entry */
	char name[BANKING_NAME_BYTES + 1];
} known_name;

static known_name users[NAMES_MAX], groups[NAMES_MAX];

/* As C's printf, and so the plugin, shows a string that is not there. */
static const char *or_null(const char *text)
{
	return text ? text : "(null)";
}

static const char *or_nothing(const char *text)
{
	return text ? text : "";
}

/* Slurm calls jobcomp from one thread at a time. */
static const char *name_of(known_name *known, uint32_t id, char *(*look_up)(uid_t))
{
	known_name *entry = &known[id % NAMES_MAX];
	time_t now = time(NULL);

	if (!entry->until || (entry->id != id) || (now >= entry->until) || (now + NAMES_KNOWN_S < entry->until)) {
		char *name = look_up(id);

		entry->id = id;
		entry->until = now + NAMES_KNOWN_S;
		snprintf(entry->name, sizeof(entry->name), "%s", or_null(name));
		xfree(name);
	}
	return entry->name;
}

static const char *user_of(const job_record_t *job_ptr)
{
	if (banking_identity(job_ptr))
		return or_null(banking_identity(job_ptr)->pw_name);
	return name_of(users, job_ptr->user_id, banking_look_up_user);
}

static const char *group_of(const job_record_t *job_ptr)
{
	if (banking_identity(job_ptr) && banking_identity(job_ptr)->gr_names) {
		for (int i = 0; i < (int) banking_identity(job_ptr)->ngids; i++) {
			if (banking_identity(job_ptr)->gids[i] == job_ptr->group_id)
				return or_null(banking_identity(job_ptr)->gr_names[i]);
		}
	}
	return name_of(groups, job_ptr->group_id, banking_look_up_group);
}

/* 0 is no time, and called unknown. */
static const char *moment(time_t when, char *text, const char *unknown)
{
	struct tm local;

	if (!when)
		return unknown;
	localtime_r(&when, &local);
	strftime(text, TIME_SIZE, "%Y-%m-%dT%H:%M:%S", &local);
	return text;
}

static const char *limit(const job_record_t *job_ptr, char *text, size_t size)
{
	uint32_t limit_min = job_ptr->time_limit;

	if ((limit_min == NO_VAL) && job_ptr->part_ptr)
		limit_min = job_ptr->part_ptr->max_time;
	if (limit_min == INFINITE)
		return "UNLIMITED";
	snprintf(text, size, "%u", limit_min);
	return text;
}

static const char *started(const job_record_t *job_ptr, int resizing, char *text)
{
	if (job_ptr->resize_time)
		return moment(job_ptr->resize_time, text, "Unknown");
	/* cancelled while it waited: the start that was expected lies behind the end */
	if (!resizing && (job_ptr->start_time > job_ptr->end_time))
		return "Unknown";
	return moment(job_ptr->start_time, text, "Unknown");
}

/* Of a wait status: "CODE:SIGNAL". */
static const char *status(uint32_t wait_status, char *text, size_t size)
{
	int code = 0, number = 0;

	if (wait_status != NO_VAL) {
		if (WIFSIGNALED(wait_status))
			number = WTERMSIG(wait_status);
		else if (WIFEXITED(wait_status))
			code = WEXITSTATUS(wait_status);
	}
	snprintf(text, size, "%d:%d", code, number);
	return text;
}

static const char *array_part(const job_record_t *job_ptr, char *text, size_t size)
{
	if (job_ptr->array_task_id == NO_VAL)
		return "";
	snprintf(text, size, " ArrayJobId=%u ArrayTaskId=%u", job_ptr->array_job_id, job_ptr->array_task_id);
	return text;
}

static const char *het_part(const job_record_t *job_ptr, char *text, size_t size)
{
	if (!job_ptr->het_job_id)
		return "";
	snprintf(text, size, " HetJobId=%u HetJobOffset=%u", job_ptr->het_job_id, job_ptr->het_job_offset);
	return text;
}

/* One record is one line, whatever a user put into it. */
static void keep_one_line(char *line, size_t length)
{
	for (size_t i = 0; i + 1 < length; i++) {
		if (((unsigned char) line[i] < 0x20) || (line[i] == 0x7f))
			line[i] = '?';
	}
}

extern char *jobcomp_line(const job_record_t *job_ptr, size_t *length)
{
	int resizing = (job_ptr->job_state & JOB_RESIZING) != 0, written;
	char start[TIME_SIZE], end[TIME_SIZE], submit[TIME_SIZE], eligible[TIME_SIZE], limit_text[16];
	char array[64], het[64], derived[32], code[32], select[128], *line = NULL;

	banking_select_text(job_ptr, select, sizeof(select));
	written = asprintf(
		&line,
		"JobId=%u UserId=%s(%u) GroupId=%s(%u) Name=%s JobState=%s Partition=%s TimeLimit=%s"
		" StartTime=%s EndTime=%s NodeList=%s NodeCnt=%u ProcCnt=%u WorkDir=%s ReservationName=%s"
		" Tres=%s Account=%s QOS=%s WcKey=%s Cluster=%s SubmitTime=%s EligibleTime=%s%s%s"
		" DerivedExitCode=%s ExitCode=%s %s\n",
		job_ptr->job_id, user_of(job_ptr), job_ptr->user_id, group_of(job_ptr), job_ptr->group_id,
		or_null(job_ptr->name),
		job_state_string(resizing ? job_ptr->job_state : (job_ptr->job_state & JOB_STATE_BASE)),
		or_null(banking_logged_partition(job_ptr)), limit(job_ptr, limit_text, sizeof(limit_text)),
		started(job_ptr, resizing, start),
		moment(resizing ? time(NULL) : job_ptr->end_time, end, "Unknown"),
		or_null(job_ptr->nodes), job_ptr->node_cnt, job_ptr->total_cpus,
		(job_ptr->details && job_ptr->details->work_dir) ? job_ptr->details->work_dir : "unknown",
		or_nothing(job_ptr->resv_name), or_nothing(job_ptr->tres_fmt_req_str), or_nothing(job_ptr->account),
		job_ptr->qos_ptr ? or_null(job_ptr->qos_ptr->name) : "", or_nothing(job_ptr->wckey),
		job_ptr->assoc_ptr ? or_null(job_ptr->assoc_ptr->cluster) : "unknown",
		moment(job_ptr->details ? job_ptr->details->submit_time : 0, submit, "unknown"),
		moment(job_ptr->details ? job_ptr->details->begin_time : 0, eligible, "unknown"),
		array_part(job_ptr, array, sizeof(array)), het_part(job_ptr, het, sizeof(het)),
		status(job_ptr->derived_ec, derived, sizeof(derived)), status(job_ptr->exit_code, code, sizeof(code)),
		select);
	if (written < 0)
		return NULL;
	*length = (size_t) written;
	keep_one_line(line, *length);
	return line;
}
