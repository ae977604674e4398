/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * timed_slurmctld.c - the fake slurmctld of tests/plugins, with commands that repeat a call and say how long each took.
 *
 *   submits COUNT PAUSE_US key=value ...   that many submissions of one job description; their tokens are kept for `ends`
 *                                     -> accepted=N refused=N tokens=N ns=N,N,... held=N,N,...
 *   unlike COUNT PAUSE_US key=value ...   the same, each with another --mem
 *   ends COUNT FIRST_JOB_ID           as many ends of the record that `job` set, with the tokens kept, oldest first
 *                                     -> ended=N ns=N,N,... held=N,N,...
 *
 * Each call comes from a thread of its own, as slurmctld's RPCs do, and is timed alone: without making the thread. `held` is
 * how long it held Python's lock: the functions that take and give it are this program's, and hand on to libpython's.
 */
#define _GNU_SOURCE
#define main fake_slurmctld_main
#include "../plugins/fake_slurmctld.c"
#undef main

#include <link.h>
#include <time.h>
#include <unistd.h>

#define COUNT_MAX 100000

static char *tokens[COUNT_MAX];
static int token_first, token_end;
static uint64_t took_ns[COUNT_MAX], held_ns[COUNT_MAX];

struct call {
	job_desc_msg_t *desc;	/* NULL: the end of the job record */
	int rc;
	uint64_t ns, held_ns;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}

/* --- Python's lock ------------------------------------------------------------------------------------------------- */

static __thread uint64_t taken_at_ns, this_held_ns;
static __thread int takes;

static int find_libpython(struct dl_phdr_info *info, size_t size, void *found)
{
	(void) size;
	if (!strstr(info->dlpi_name, "/libpython"))
		return 0;
	*(void **) found = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
	return 1;
}

static void *python_function(const char *name)
{
	static void *libpython;
	void *function;

	if (!libpython)
		dl_iterate_phdr(find_libpython, &libpython);
	function = libpython ? dlsym(libpython, name) : NULL;
	if (!function) {
		fprintf(stderr, "libpython has no %s\n", name);
		abort();
	}
	return function;
}

extern int PyGILState_Ensure(void);
extern void PyGILState_Release(int state);
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *thread);

extern int PyGILState_Ensure(void)
{
	static int (*real)(void);
	int state;

	if (!real)
		real = (int (*)(void)) python_function("PyGILState_Ensure");
	state = real();
	if (!takes++)
		taken_at_ns = now_ns();
	return state;
}

extern void PyGILState_Release(int state)
{
	static void (*real)(int);

	if (!real)
		real = (void (*)(int)) python_function("PyGILState_Release");
	if (!--takes)
		this_held_ns += now_ns() - taken_at_ns;
	real(state);
}

extern void *PyEval_SaveThread(void)
{
	static void *(*real)(void);

	if (!real)
		real = (void *(*)(void)) python_function("PyEval_SaveThread");
	if (takes)
		this_held_ns += now_ns() - taken_at_ns;
	return real();
}

extern void PyEval_RestoreThread(void *thread)
{
	static void (*real)(void *);

	if (!real)
		real = (void (*)(void *)) python_function("PyEval_RestoreThread");
	real(thread);
	taken_at_ns = now_ns();
}

/* --- calls ----------------------------------------------------------------------------------------------------------- */

static void *call_plugin(void *arg)
{
	struct call *call = arg;
	char *message = NULL;
	uint64_t begun = now_ns();

	if (call->desc)
		call->rc = job_submit_plugin.submit(call->desc, call->desc->user_id, &message);
	else
		call->rc = record_end(&job);
	call->ns = now_ns() - begun;
	call->held_ns = this_held_ns;
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

static void print_list(const char *name, const uint64_t *list, int count)
{
	fputs(name, stdout);
	for (int i = 0; i < count; i++)
		printf(i ? ",%llu" : "%llu", (unsigned long long) list[i]);
}

static void print_times(int count)
{
	print_list(" ns=", took_ns, count);
	print_list(" held=", held_ns, count);
	putchar('\n');
}

static void submits(char *text, bool unlike)
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
		if (unlike)
			desc.pn_min_memory = 1 + (uint64_t) i;
		call_in_thread(&call);
		took_ns[i] = call.ns;
		held_ns[i] = call.held_ns;
		accepted += (call.rc == SLURM_SUCCESS);
		if (desc.admin_comment) {
			with_token++;
			tokens[token_end++] = desc.admin_comment;
		}
	}
	printf("accepted=%d refused=%d tokens=%d", accepted, count - accepted, with_token);
	print_times(count);
}

static void timed_ends(char *text)
{
	int count = read_count(&text);
	uint32_t first_job_id = (uint32_t) strtoul(text, &text, 10);
	int ended = 0;

	for (int i = 0; i < count; i++) {
		struct call call = { .desc = NULL };

		if (token_first == token_end)
			abort();
		job.job_id = first_job_id + (uint32_t) i;
		job.admin_comment = tokens[token_first];
		call_in_thread(&call);
		took_ns[i] = call.ns;
		held_ns[i] = call.held_ns;
		ended += (call.rc == SLURM_SUCCESS);
		job.admin_comment = NULL;
		xfree(tokens[token_first]);
		token_first++;
	}
	printf("ended=%d", ended);
	print_times(count);
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
			submits(rest + 1, false);
		} else if (rest && !strncmp(line, "unlike ", 7)) {
			submits(rest + 1, true);
		} else if (rest && !strncmp(line, "ends ", 5)) {
			timed_ends(rest + 1);
		} else {
			run_line(line);
			continue;
		}
		fflush(stdout);
	}
	return 0;
}
