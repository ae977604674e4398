/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobcomp_next.h"

#include <dlfcn.h>
#include <stdio.h>
#include <sys/stat.h>

#include "shim.h"

static const char *names[] = { JOBCOMP_SYMBOLS };
#define NAME_COUNT ((int) (sizeof(names) / sizeof(names[0])))

static struct {
	plugin_handle_t handle;	/* NULL: none */
	int location_refused;
	char what[BANKING_WHY_SIZE];
	/* in the order of names */
	struct {
		int (*set_location)(JOBCOMP_SET_LOCATION_PARAMETERS);
		banking_list (*get_jobs)(slurmdb_job_cond_t *);
		int (*record_end)(JOBCOMP_RECORD_PARAMETERS);
#if JOBCOMP_HAS_START
		int (*record_start)(JOBCOMP_RECORD_PARAMETERS);
#endif
	} call;
} next;

_Static_assert(sizeof(next.call) == NAME_COUNT * sizeof(void *), "a function for each name");

static void tell(const char *text, const char *more)
{
	char line[3 * BANKING_WHY_SIZE];

	snprintf(line, sizeof(line), "%s: %s%s", next.what, text, more);
	banking_log(BANKING_LOG_ERROR, line);
}

/* The plugin's file in the first directory of PluginDir that has it; the caller frees it with xfree. */
static char *find(const char *type)
{
	char *dirs = xstrdup(slurm_conf.plugindir), *save = NULL, *found = NULL;

	for (char *dir = dirs ? strtok_r(dirs, ":", &save) : NULL; dir && !found; dir = strtok_r(NULL, ":", &save)) {
		char path[PATH_MAX];
		struct stat status;
		int length = snprintf(path, sizeof(path), "%s/jobcomp_%s.so", dir, strchr(type, '/') + 1);

		if ((length < (int) sizeof(path)) && !stat(path, &status) && S_ISREG(status.st_mode))
			found = xstrdup(path);
	}
	xfree(dirs);
	return found;
}

/* Before its init() is called: a file of another name could be this plugin itself, which would load it again. */
static int is_of_type(const char *path, const char *type)
{
	void *handle = dlopen(path, RTLD_LAZY);
	const char *own = handle ? dlsym(handle, "plugin_type") : NULL;
	int same = own && !strcmp(own, type);

	if (!handle)
		tell("cannot be loaded: ", dlerror());
	else if (!same)
		tell("not loaded: expected a plugin of that type, and the file says ", own ? own : "nothing");
	if (handle)
		dlclose(handle);
	return same;
}

static void load(const char *path)
{
	void *found[NAME_COUNT];
	plugin_handle_t handle = NULL;
	int rc = banking_plugin_load(&handle, path);

	if (rc) {
		tell("cannot be loaded: ", banking_plugin_error(rc));
		return;
	}
	/* slurmctld itself would stop here */
	if (plugin_get_syms(handle, NAME_COUNT, names, found) < NAME_COUNT) {
		tell("cannot be used: it has not all the functions of a jobcomp plugin of this release", "");
		plugin_unload(handle);
		return;
	}
	memcpy(&next.call, found, sizeof(found));
	next.handle = handle;
}

extern void jobcomp_next_load(const char *type, const char *what)
{
	char *path;

	if (next.handle)
		return;
	snprintf(next.what, sizeof(next.what), "%s", what);
	next.location_refused = 0;
	path = find(type);
	if (!path)
		tell("cannot be loaded: no such plugin in ", slurm_conf.plugindir ? slurm_conf.plugindir : "PluginDir");
	else if (is_of_type(path, type))
		load(path);
	xfree(path);
}

extern void jobcomp_next_unload(void)
{
	if (next.handle)
		plugin_unload(next.handle);
	next.handle = NULL;
}

extern int jobcomp_next_loaded(void)
{
	return next.handle != NULL;
}

extern void jobcomp_next_set_location(JOBCOMP_SET_LOCATION_PARAMETERS)
{
	int rc;

	JOBCOMP_SET_LOCATION_IGNORE;
	if (!next.handle)
		return;
	rc = next.call.set_location(JOBCOMP_SET_LOCATION_ARGUMENT);
	if (rc && !next.location_refused)
		tell("does not take JobCompLoc, and may record nothing", "");
	next.location_refused = rc != 0;
}

/* What they answer is nothing to slurmctld either; each logs its own failures. */
extern void jobcomp_next_record_end(JOBCOMP_RECORD_PARAMETERS)
{
	JOBCOMP_RECORD_IGNORE;
	if (next.handle)
		(void) next.call.record_end(JOBCOMP_RECORD_ARGUMENTS);
}

#if JOBCOMP_HAS_START
extern void jobcomp_next_record_start(JOBCOMP_RECORD_PARAMETERS)
{
	if (next.handle)
		(void) next.call.record_start(JOBCOMP_RECORD_ARGUMENTS);
}
#endif

extern banking_list jobcomp_next_get_jobs(slurmdb_job_cond_t *job_cond)
{
	return next.handle ? next.call.get_jobs(job_cond) : NULL;
}
