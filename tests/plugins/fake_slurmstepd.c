/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fake_slurmstepd.c - opens the spank plugin as "slurmstepd spank prolog" does, calls it, and says how long it took:
 *
 *   fake_slurmstepd FILE.so CONTEXT [plugin argument ...]
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <slurm/spank.h>

static spank_context_t context;

extern spank_context_t spank_context(void)
{
	return context;
}

extern void slurm_error(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
}

int main(int argc, char **argv)
{
	int (*prolog)(spank_t, int, char **);
	struct timespec before, after;
	void *handle;
	int rc;

	(void) argc;
	/* once to look, once to use: Slurm does both */
	handle = dlopen(argv[1], RTLD_LAZY);
	if (!handle || !dlsym(handle, "plugin_version") || strcmp(dlsym(handle, "plugin_type"), "spank")) {
		fprintf(stderr, "not a spank plugin: %s\n", handle ? argv[1] : dlerror());
		return 2;
	}
	dlclose(handle);
	handle = dlopen(argv[1], RTLD_LAZY);
	prolog = dlsym(handle, "slurm_spank_job_prolog");
	context = !strcmp(argv[2], "job_script") ? S_CTX_JOB_SCRIPT : S_CTX_REMOTE;
	clock_gettime(CLOCK_MONOTONIC, &before);
	rc = prolog(NULL, argc - 3, argv + 3);
	clock_gettime(CLOCK_MONOTONIC, &after);
	printf("rc=%d us=%ld\n", rc,
	       (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000);
	return 0;
}
