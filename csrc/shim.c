/* SPDX-License-Identifier: BSD-3-Clause */
#include "slurm_compat.h"

#include <stdio.h>

#include "policy_scan.h"
#include "python_start.h"
#include "shim.h"
#include "text.h"

#define UNDECIDED_LOG_INTERVAL_S 60
#define LOG_LINE_MAX 65536

static struct {
	int off;
	int attached;
	int on_error;
	char *config_path;
	char why[BANKING_WHY_SIZE];
} shim = { .off = 1 };

/* in the generated module */
extern void banking_py_start(const banking_host *host, banking_reply *reply);

extern void banking_log(int level, const char *line)
{
	char *clean = xstrndup(line, LOG_LINE_MAX);

	banking_clean_line(clean);
	switch (level) {
	case BANKING_LOG_ERROR:
		error("slurm_banking: %s", clean);
		break;
	case BANKING_LOG_INFO:
		info("slurm_banking: %s", clean);
		break;
	default:
		debug("slurm_banking: %s", clean);
	}
	xfree(clean);
}

static void log_line(int level, const char *plugin, const char *text, const char *more)
{
	char line[2 * BANKING_WHY_SIZE + BANKING_MESSAGE_SIZE];

	snprintf(line, sizeof(line), "%s: %s%s", plugin, text, more);
	banking_log(level, line);
}

extern int shim_attached(void)
{
	return shim.attached;
}

extern int shim_off(void)
{
	return shim.off;
}

extern int shim_on_error(void)
{
	return shim.on_error;
}

extern const char *shim_why(void)
{
	return shim.why;
}

extern void shim_log_undecided(const char *event, const char *outcome, const char *reason)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static time_t logged = 0;
	static uint64_t unlogged = 0;
	char line[BANKING_WHY_SIZE + BANKING_MESSAGE_SIZE];
	uint64_t before = 0;
	time_t now = time(NULL);
	int quiet;

	pthread_mutex_lock(&mutex);
	quiet = logged && (now >= logged) && (now - logged < UNDECIDED_LOG_INTERVAL_S);
	if (quiet) {
		unlogged++;
	} else {
		before = unlogged;
		unlogged = 0;
		logged = now;
	}
	pthread_mutex_unlock(&mutex);
	if (quiet)
		return;
	snprintf(line, sizeof(line), "%s outcome=%s unlogged_before=%llu reason=%s", event, outcome,
		 (unsigned long long) before, reason);
	banking_log(BANKING_LOG_ERROR, line);
}

static void read_policy(const char *plugin, banking_policy *policy)
{
	char text[BANKING_WHY_SIZE];

	xfree(shim.config_path);
	shim.config_path = get_extra_conf_path("bank-config.toml");
	banking_policy_scan(shim.config_path, policy);
	shim.on_error = policy->on_plugin_error;
	if (policy->bad_value[0]) {
		snprintf(text, sizeof(text),
			 "%.400s: [Policy] on_plugin_error = \"%.100s\": expected \"accept\", \"reject\" or \"abort\"; using ",
			 shim.config_path, policy->bad_value);
		log_line(BANKING_LOG_ERROR, plugin, text, "\"accept\"");
	}
}

/* Each of the three steps that can fail leaves its one line in shim.why. */
static void start(const char *plugin)
{
	banking_reply reply = { .verdict = BANKING_UNDECIDED };
	banking_host host = {
		.config_path = shim.config_path,
		.cluster = slurm_conf.cluster_name,
		.plugin = plugin,
		.slurm_user_id = slurm_conf.slurm_user_id,
		.slurm_version = SLURM_VERSION_NUMBER,
	};

	shim.why[0] = '\0';
	if (!shim.attached) {
		if (banking_python_start(shim.why, sizeof(shim.why)) ||
		    banking_attach(shim.why, sizeof(shim.why)))
			return;
		shim.attached = 1;
	}
	banking_py_start(&host, &reply);
	if (reply.verdict != BANKING_ACCEPTED)
		snprintf(shim.why, sizeof(shim.why), "%.1000s", reply.message[0] ? reply.message :
			 "the policy engine raised an exception while it started");
}

extern int shim_init(const char *plugin, const char *what_happens_instead)
{
	banking_policy policy;
	int is_job_submit = !strcmp(plugin, "job_submit");
	char text[2 * BANKING_WHY_SIZE];

	/* sacct -c opens jobcomp in a user's process: no Python there */
	if (!running_in_slurmctld())
		return 0;

	read_policy(plugin, &policy);
	shim.off = is_job_submit ? !policy.enable_job_submit : !policy.enable_job_complete;
	if (shim.off) {
		log_line(BANKING_LOG_INFO, plugin, "switched off in ", shim.config_path);
		return 0;
	}

	start(plugin);
	if (!shim.why[0]) {
		log_line(BANKING_LOG_INFO, plugin, "ready, configuration ", shim.config_path);
		return 0;
	}
	if (is_job_submit && (shim.on_error == BANKING_ON_ERROR_ABORT)) {
		snprintf(text, sizeof(text), "%s; on_plugin_error=abort: ", shim.why);
		log_line(BANKING_LOG_ERROR, plugin, text, "slurmctld does not start");
		return -1;
	}
	snprintf(text, sizeof(text), "%s; on_plugin_error=%s: ", shim.why, banking_on_error_name(shim.on_error));
	log_line(BANKING_LOG_ERROR, plugin, text,
		 is_job_submit && (shim.on_error == BANKING_ON_ERROR_REJECT) ? "new jobs are refused" :
									      what_happens_instead);
	return 0;
}
