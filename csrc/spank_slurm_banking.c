/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * spank_slurm_banking.c - the first node of a run reports its start to the bank, once.
 *
 * One callback only: slurm_spank_job_prolog, run by slurmd as root once per job and node. Nothing per step, nothing in
 * srun or slurmstepd, no Python in this object. The report is made by a detached child with a deadline; whatever
 * happens to it, the job starts at once and normally. The relay finds every start that nobody reports.
 *
 * plugstack.conf:   optional spank_slurm_banking.so [config=/path/of/bank-config.toml]
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <slurm/slurm_version.h>
#include <slurm/spank.h>

#include "first_node.h"
#include "policy_scan.h"

SPANK_PLUGIN(slurm_banking, 1)

extern int slurm_spank_job_prolog(spank_t spank, int argc, char **argv);

#define DEFAULT_CONFIG "/etc/slurm/bank-config.toml"
#define CONFIG_NAME "bank-config.toml"
#define DEADLINE_S 30
#define PATH_SIZE 1024
#define ENTRY_SIZE 2048

/* What the child is told: slurmd made all of these for the prolog; no user can set them. */
static const char *const forwarded[] = {
	"SLURM_CLUSTER_NAME",
	"SLURM_CONF",
	"SLURM_JOB_ACCOUNT",
	"SLURM_JOB_CPUS_PER_NODE",
	"SLURM_JOB_ID",
	"SLURM_JOB_NODELIST",
	"SLURM_JOB_NUM_NODES",
	"SLURM_JOB_PARTITION",
	"SLURM_JOB_QOS",
	"SLURM_JOB_RESTART_COUNT",
	"SLURM_JOB_START_TIME",
	"SLURM_JOB_UID",
	"SLURM_JOB_USER",
	"SLURM_NODELIST",
	"SLURMD_NODENAME",
};
#define FORWARDED_COUNT (sizeof(forwarded) / sizeof(forwarded[0]))
#define OWN_COUNT 4	/* PATH, LANG, the configuration's path, the time now */

typedef struct {
	char text[FORWARDED_COUNT + OWN_COUNT][ENTRY_SIZE];
	char *entries[FORWARDED_COUNT + OWN_COUNT + 1];
	size_t count;
} child_environment;

static void find_config(int argc, char **argv, char *path, size_t size)
{
	const char *slurm_conf = getenv("SLURM_CONF"), *slash;

	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "config=", 7)) {
			snprintf(path, size, "%s", argv[i] + 7);
			return;
		}
	}
	if (slurm_conf && (slash = strrchr(slurm_conf, '/'))) {
		snprintf(path, size, "%.*s/" CONFIG_NAME, (int) (slash - slurm_conf), slurm_conf);
		if (!access(path, R_OK))
			return;
	}
	snprintf(path, size, "%s", DEFAULT_CONFIG);
}

static int is_first_node(void)
{
	const char *nodes = getenv("SLURM_JOB_NODELIST"), *self = getenv("SLURMD_NODENAME");
	char first[256], host[256];

	if (!nodes)
		nodes = getenv("SLURM_NODELIST");
	if (!self && !gethostname(host, sizeof(host))) {
		host[sizeof(host) - 1] = '\0';
		host[strcspn(host, ".")] = '\0';
		self = host;
	}
	return self && !banking_first_node(nodes, first, sizeof(first)) && !strcmp(first, self);
}

/* A node without a token reports nothing; a token that others may read is not used. */
static int has_token(const char *path)
{
	struct stat st;

	if (!path[0] || lstat(path, &st))
		return 0;
	if (S_ISREG(st.st_mode) && (st.st_uid == 0) && !(st.st_mode & 077))
		return 1;
	slurm_error("slurm_banking: %s: expected a regular file of root's with mode 0600, found owner uid %u, mode %04o; "
		    "the start is not reported",
		    path, (unsigned) st.st_uid, (unsigned) (st.st_mode & 07777));
	return 0;
}

/* What root is about to run must be root's. */
static int package_is_roots(void)
{
	static const char *const directories[] = { BANKING_LIBDIR, BANKING_LIBDIR "/slurm_banking" };

	for (size_t i = 0; i < sizeof(directories) / sizeof(directories[0]); i++) {
		struct stat st;

		if (!stat(directories[i], &st) && S_ISDIR(st.st_mode) && (st.st_uid == 0) && !(st.st_mode & 022))
			continue;
		slurm_error("slurm_banking: %s: expected a directory owned by root that group and others cannot write to; "
			    "the start is not reported",
			    directories[i]);
		return 0;
	}
	return 1;
}

static void add_entry(child_environment *environment, const char *name, const char *value)
{
	char *text = environment->text[environment->count];
	int length = snprintf(text, ENTRY_SIZE, "%s=%s", name, value);

	if ((length > 0) && (length < ENTRY_SIZE)) {	/* a very long node list is left out: only its first name matters */
		environment->entries[environment->count++] = text;
		environment->entries[environment->count] = NULL;
	}
}

static void fill_environment(child_environment *environment, const char *config)
{
	char now[32];

	environment->count = 0;
	environment->entries[0] = NULL;
	snprintf(now, sizeof(now), "%lld", (long long) time(NULL));
	add_entry(environment, "PATH", "/usr/bin:/bin");
	add_entry(environment, "LANG", "C.UTF-8");
	add_entry(environment, "BANKING_CONFIG", config);
	add_entry(environment, "BANKING_NOW", now);
	for (size_t i = 0; i < FORWARDED_COUNT; i++) {
		const char *value = getenv(forwarded[i]);

		if (value)
			add_entry(environment, forwarded[i], value);
	}
}

/* Between fork and exec: only calls that are safe there. */
static void become_reporter(char *const *environment)
{
	static char *const arguments[] = {
		BANKING_PYTHON, "-I", "-c",
		"import sys; sys.path.insert(0, '" BANKING_LIBDIR "'); "
		"from slurm_banking.node_start import main; sys.exit(main())",
		NULL,
	};
	struct rlimit no_core = { 0, 0 };
	sigset_t none;
	int null;

	for (int number = 1; number < 32; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	umask(077);
	setrlimit(RLIMIT_CORE, &no_core);
	if (chdir("/"))
		_exit(1);
	null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
#ifdef SYS_close_range
	if (syscall(SYS_close_range, 3U, ~0U, 0U))
#endif
		for (int fd = 3; fd < 65536; fd++)
			close(fd);
	alarm(DEADLINE_S);	/* outlives exec: whatever the child does, it ends then */
	execve(arguments[0], arguments, environment);
	_exit(127);
}

static void report_start(const char *config)
{
	static child_environment environment;
	pid_t child;

	fill_environment(&environment, config);
	child = fork();
	if (child == 0) {
		setsid();
		if (fork() == 0)
			become_reporter(environment.entries);
		_exit(0);
	}
	if (child > 0)
		while ((waitpid(child, NULL, 0) < 0) && (errno == EINTR))
			;
}

extern int slurm_spank_job_prolog(spank_t spank, int argc, char **argv)
{
	char config[PATH_SIZE];
	banking_policy policy;

	(void) spank;
	if ((spank_context() != S_CTX_JOB_SCRIPT) || !is_first_node())
		return ESPANK_SUCCESS;
	find_config(argc, argv, config, sizeof(config));
	banking_policy_scan(config, &policy);
	if (policy.file_found && policy.enable_spank && has_token(policy.node_token_file) && package_is_roots())
		report_start(config);
	return ESPANK_SUCCESS;	/* nothing here may delay or fail a job */
}
