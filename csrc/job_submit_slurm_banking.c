/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * job_submit_slurm_banking.c - slurmctld asks before it takes a job, and before it changes one.
 *
 * slurmctld holds its locks during every call; from 23.02 on several threads are in here at once.
 */
#include <stdio.h>

#include "decode.h"
#include "shim.h"
#include "text.h"
#include "token.h"

const char plugin_name[] = "Slurm banking: what a job could cost, against what its account has";
const char plugin_type[] = "job_submit/slurm_banking";
const uint32_t plugin_version = SLURM_VERSION_NUMBER;

/* in the generated module; void, so that there is no return value to misread when Python raises */
extern void banking_py_submit(const banking_submission *submission, banking_reply *reply);
extern void banking_py_update(const banking_update *update, banking_reply *reply);

#define MESSAGE_WHEN_REJECTING \
	"The cost of this job could not be checked, and this cluster does not accept jobs without that check. " \
	"Please try again later; if it stays so, contact the cluster's support."

static void append_line(char **text, const char *line)
{
	if (!text || !line[0])
		return;
	if (*text && (*text)[0])
		xstrcat(*text, "\n");
	xstrcat(*text, line);
}

static void append_token(char **admin_comment, const char *token)
{
	if (!token[0])
		return;
	if (*admin_comment && (*admin_comment)[0])
		xstrcat(*admin_comment, ";");
	xstrcat(*admin_comment, token);
}

/* Undecided is not accepted by accident: what it means is configured. */
static int settle_undecided(const char *event, const banking_reply *reply, bool may_reject, char **err_msg)
{
	bool reject = may_reject && (shim_on_error() != BANKING_ON_ERROR_ACCEPT);
	const char *reason = reply->message;

	if (!reason[0])
		reason = shim_why()[0] ? shim_why() : "the policy engine gave no verdict";
	shim_log_undecided(event, reject ? "refused" : "accepted", reason);
	if (!reject)
		return SLURM_SUCCESS;
	append_line(err_msg, MESSAGE_WHEN_REJECTING);
	return ESLURM_ACCOUNTING_POLICY;
}

static int settle(const char *event, banking_reply *reply, bool may_reject, char **err_msg)
{
	reply->message[sizeof(reply->message) - 1] = '\0';
	reply->token[sizeof(reply->token) - 1] = '\0';
	banking_clean_message(reply->message);
	switch (reply->verdict) {
	case BANKING_ACCEPTED:
		append_line(err_msg, reply->message);
		return SLURM_SUCCESS;
	case BANKING_NO_ROOM:
		return EAGAIN;
	case BANKING_REFUSED:
		append_line(err_msg, reply->message);
		return ESLURM_ACCOUNTING_POLICY;
	default:
		return settle_undecided(event, reply, may_reject, err_msg);
	}
}

/* As Slurm would refuse it a moment later. The text itself is not told: it would fill the log. */
static int refuse_text(const char *event, const char *hook, uint32_t job_user)
{
	char line[128];

	snprintf(line, sizeof(line), "%s job_user=%u hook=%s reason=text_too_long", event, job_user, hook);
	banking_log(BANKING_LOG_INFO, line);
	return ESLURM_PATHNAME_TOO_LONG;
}

/* Ours has to see the job as the plugins before it leave it. */
static void check_last_in_list(void)
{
	const char *list = slurm_conf.job_submit_plugins, *last;

	if (!list)
		return;
	last = strrchr(list, ',');
	last = last ? last + 1 : list;
	if (!strstr(last, "slurm_banking"))
		banking_log(BANKING_LOG_ERROR, "job_submit: expected slurm_banking as the last of JobSubmitPlugins: "
					       "what a later plugin changes is not priced");
}

extern int init(void)
{
	if (shim_init("job_submit", "jobs are accepted without a check"))
		return SLURM_ERROR;
	if (!shim_off())
		check_last_in_list();
	return SLURM_SUCCESS;
}

/* No finalisation: slurmctld ends with threads alive, and may load us again. */
extern int fini(void)
{
	if (!shim_off())
		banking_log(BANKING_LOG_DEBUG, "job_submit: unloaded");
	return SLURM_SUCCESS;
}

extern int job_submit(job_desc_msg_t *job_desc, uint32_t submit_uid, char **err_msg)
{
	banking_reply reply = { .verdict = BANKING_UNDECIDED };
	int rc;

	if (shim_off())
		return SLURM_SUCCESS;
	/* somebody else's token, or one that came along from another cluster, is worth nothing here */
	if (job_desc->admin_comment)
		banking_token_strip(job_desc->admin_comment);
	if (text_too_long(job_desc))
		return refuse_text("submission_refused", "submit", job_desc->user_id);
	if (shim_attached()) {
		banking_submission submission;
		decoded_job owned;

		decode_submission(job_desc, submit_uid, &owned, &submission);
		banking_py_submit(&submission, &reply);
		decoded_job_free(&owned);
	}
	rc = settle("submission_undecided", &reply, true, err_msg);
	if (rc == SLURM_SUCCESS)
		took_room_in_job_table(reply.tasks);
	if ((rc == SLURM_SUCCESS) && (reply.verdict == BANKING_ACCEPTED))
		append_token(&job_desc->admin_comment, reply.token);
	return rc;
}

/* Only an administrator gets here with an admin_comment; one that replaces our token keeps it. */
static void keep_token(job_desc_msg_t *job_desc, const job_record_t *job_ptr)
{
	const char *found;
	char token[BANKING_TOKEN_SIZE];
	size_t length;

	if (!job_desc->admin_comment)
		return;
	banking_token_strip(job_desc->admin_comment);
	found = banking_token_find(job_ptr->admin_comment, &length);
	if (!found || (length >= sizeof(token)))
		return;
	memcpy(token, found, length);
	token[length] = '\0';
	append_token(&job_desc->admin_comment, token);
}

extern int job_modify(JOB_MODIFY_PARAMETERS)
{
	banking_reply reply = { .verdict = BANKING_UNDECIDED };
	bool operator_caller = false;

	if (shim_off() || IS_JOB_FINISHED(job_ptr))
		return SLURM_SUCCESS;
	/* whoever may not change this job is refused by Slurm, and must not leave a trace here either */
	if ((!job_desc->admin_comment && !update_could_cost(job_desc)) ||
	    !may_update(job_desc, job_ptr, submit_uid, &operator_caller))
		return SLURM_SUCCESS;
	if (text_too_long(job_desc))
		return refuse_text("update_refused", "update", job_ptr->user_id);
	keep_token(job_desc, job_ptr);
	if (!update_could_cost(job_desc))
		return SLURM_SUCCESS;
	if (shim_attached()) {
		banking_update update;
		decoded_job owned;

		decode_update(job_desc, job_ptr, submit_uid, operator_caller, &owned, &update);
		banking_py_update(&update, &reply);
		decoded_job_free(&owned);
	}
	/* scontrol shows what it is told as an error, also of an update that is done */
	if (reply.verdict == BANKING_ACCEPTED)
		reply.message[0] = '\0';
	return settle("update_undecided", &reply, !operator_caller, JOB_MODIFY_ERR_MSG);
}
