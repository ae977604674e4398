/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * timed_slurmctld.c - the fake slurmctld of tests/plugins, with commands that repeat a call and say how long each took.
 *
 *   submits COUNT PAUSE_US key=value ...   that many submissions of one job description; their tokens are kept for `ends`
 *                                     -> accepted=N refused=N tokens=N ns=N,N,...
 *   ends COUNT FIRST_JOB_ID           as many ends of the record that `job` set, with the tokens kept, oldest first
 *                                     -> ended=N ns=N,N,...
 *   lives COUNT FIRST_JOB_ID key=value ...   submission and end, that many times over
 *                                     -> lives=N rss=KB
 *
 * Each call comes from a thread of its own, as slurmctld's RPCs do, and is timed alone: without making the thread.
 */
#define main fake_slurmctld_main
#include "../plugins/fake_slurmctld.c"
#undef main

#include <time.h>
#include <unistd.h>

#define COUNT_MAX 100000

static char *tokens[COUNT_MAX];
static int token_first, token_end;
static uint64_t took_ns[COUNT_MAX];

struct call {
	job_desc_msg_t *desc;	/* NULL: the end of the job record */
	int rc;
	uint64_t ns;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}

static void *call_plugin(void *arg)
{
	struct call *call = arg;
	char *message = NULL;
	uint64_t begun = now_ns();

	if (call->desc)
		call->rc = job_submit_plugin.submit(call->desc, call->desc->user_id, &message);
	else
		call->rc = jobcomp_plugin.log_record(&job);
	call->ns = now_ns() - begun;
	xfree(message);
	return NULL;
}

static void call_in_thread(struct call *call)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 1024 * 1024);	/* slurmctld's, up to 24.11 */
	if (pthread_create(&thread, &attributes, call_plugin, call))
		abort();
	pthread_join(thread, NULL);
	pthread_attr_destroy(&attributes);
}

static int read_count(char **text)
{
	long count = strtol(*text, text, 10);

	if ((count < 1) || (count > COUNT_MAX)) {
		fprintf(stderr, "expected a count from 1 to %d\n", COUNT_MAX);
		abort();
	}
	while (**text == ' ')
		(*text)++;
	return (int) count;
}

static void print_times(int count)
{
	fputs(" ns=", stdout);
	for (int i = 0; i < count; i++)
		printf(i ? ",%llu" : "%llu", (unsigned long long) took_ns[i]);
	putchar('\n');
}

static void submits(char *text)
{
	job_desc_msg_t described, desc;
	int count = read_count(&text), accepted = 0, with_token = 0;
	useconds_t pause_us = (useconds_t) strtoul(text, &text, 10);

	while (*text == ' ')
		text++;
	init_job_desc(&described);
	for_each_pair(text, set_desc_pair, &described);
	while (token_first < token_end)
		xfree(tokens[token_first++]);
	token_first = token_end = 0;
	for (int i = 0; i < count; i++) {
		struct call call = { .desc = &desc };

		if (pause_us)
			usleep(pause_us);
		desc = described;
		call_in_thread(&call);
		took_ns[i] = call.ns;
		accepted += (call.rc == SLURM_SUCCESS);
		if (desc.admin_comment) {
			with_token++;
			tokens[token_end++] = desc.admin_comment;
		}
	}
	printf("accepted=%d refused=%d tokens=%d", accepted, count - accepted, with_token);
	print_times(count);
}

static void ends(char *text)
{
	int count = read_count(&text);
	uint32_t first_job_id = (uint32_t) read_count(&text);
	int ended = 0;

	for (int i = 0; i < count; i++) {
		struct call call = { .desc = NULL };

		if (token_first == token_end)
			abort();
		job.job_id = first_job_id + (uint32_t) i;
		job.admin_comment = tokens[token_first];
		call_in_thread(&call);
		took_ns[i] = call.ns;
		ended += (call.rc == SLURM_SUCCESS);
		job.admin_comment = NULL;
		xfree(tokens[token_first]);
		token_first++;
	}
	printf("ended=%d", ended);
	print_times(count);
}

static void lives(char *text)
{
	job_desc_msg_t described, desc;
	int count = read_count(&text), lived = 0;
	uint32_t first_job_id = (uint32_t) strtoul(text, &text, 10);

	while (*text == ' ')
		text++;
	init_job_desc(&described);
	for_each_pair(text, set_desc_pair, &described);
	for (int i = 0; i < count; i++) {
		struct call submission = { .desc = &desc }, end = { .desc = NULL };

		desc = described;
		call_in_thread(&submission);
		job.job_id = first_job_id + (uint32_t) i;
		job.admin_comment = desc.admin_comment;
		call_in_thread(&end);
		lived += (submission.rc == SLURM_SUCCESS) && desc.admin_comment && (end.rc == SLURM_SUCCESS);
		job.admin_comment = NULL;
		xfree(desc.admin_comment);
	}
	printf("lives=%d ", lived);
	rss();
}

int main(void)
{
	log_options_t options = LOG_OPTS_STDERR_ONLY;
	static char line[65536];

	(void) fake_slurmctld_main;
	options.stderr_level = LOG_LEVEL_INFO;	/* slurmctld's default */
	slurm_conf.cluster_name = "testcluster";
	slurm_conf.slurm_user_id = SLURM_USER;
	slurm_conf.job_submit_plugins = "slurm_banking";
	assoc_mgr_user_list = list_create(NULL);
	assoc_mgr_assoc_list = list_create(NULL);
	assoc_mgr_qos_list = list_create(NULL);
	log_init("slurmctld", options, SYSLOG_FACILITY_DAEMON, NULL);
	make_nodes();
	new_job();
	while (fgets(line, sizeof(line), stdin)) {
		char *rest = strchr(line, ' ');

		line[strcspn(line, "\n")] = '\0';
		if (rest && !strncmp(line, "submits ", 8)) {
			submits(rest + 1);
		} else if (rest && !strncmp(line, "ends ", 5)) {
			ends(rest + 1);
		} else if (rest && !strncmp(line, "lives ", 6)) {
			lives(rest + 1);
		} else {
			run_line(line);
			continue;
		}
		fflush(stdout);
	}
	return 0;
}
