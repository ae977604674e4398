/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fake_slurmctld.c - opens the real plugins as slurmctld does, and speaks a line protocol.
 *
 * Linked to the distribution's libslurmfull.so: its log, its strings, its list and bitmap functions. What slurmctld itself
 * exports (partitions, rights) and what it takes from its database (users, associations, QOS) is made up here: see the
 * tables below.
 *
 *   load job_submit|jobcomp FILE      dlopen, check, init()
 *   unload job_submit|jobcomp         fini(), dlclose
 *   submit key=value ...              job_submit of a new job description
 *   job key=value ...                 sets the job record that update and end use (from scratch)
 *   conf key=value ...                changes slurm.conf: select_type, select_type_param, priority_flags, DefCpuPerGPU, ...
 *   part NAME key=value ...           changes a partition
 *   node INDEX key=value ...          changes a node's configuration
 *   age                               the partition table changed: what was decoded is too old
 *   unsettled                         as in the second of such a change: nothing that is decoded may be kept
 *   update uid=UID key=value ...      job_modify of that record
 *   start                             the start of that record, to jobcomp (from Slurm 25.05 on)
 *   end                               the end of that record, to jobcomp
 *   ends COUNT                        that many of them; answers with the time of one, in microseconds
 *   location                          jobcomp_p_set_location, as when logs were rotated
 *   get_jobs                          jobcomp_p_get_jobs, as sacct -c
 *   storm THREADS COUNT key=value ... that many submissions at once, without a mutex (as Slurm 23.02 and later)
 *   maps TEXT                         how many different files with TEXT in their path are mapped
 *   rss                               resident memory in kB
 *   sockets                           how many sockets this process has open
 *   open TEXT                         how many files with TEXT in their path it has open
 *
 * Values are percent-encoded; answers are one line each, newlines as \n.
 */
#include "slurm_compat.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

/* --- what slurmctld exports ------------------------------------------------------------------------------------------ */

void *acct_db_conn = NULL;
uint16_t accounting_enforce = ACCOUNTING_ENFORCE_ASSOCS;
time_t last_part_update = 1;
char *default_part_name = "normal";
part_record_t *default_part_loc = NULL;
banking_list job_list = NULL;

/* Which daemon this is: a word that each daemon has, in older releases a question. */
#ifdef IS_SLURMCTLD
uint32_t slurm_daemon = IS_SLURMCTLD;

static void be_sacct(void)
{
	slurm_daemon = 0;
}
#else
static bool in_slurmctld = true;

extern bool slurm_running_in_slurmctld(void);
extern bool slurm_running_in_slurmctld(void)
{
	return in_slurmctld;
}

static void be_sacct(void)
{
	in_slurmctld = false;
}
#endif

static part_record_t parts[] = {
	{ .name = "normal", .default_time = 60, .max_time = 2880, .max_share = 1, .max_cpus_per_node = INFINITE,
	  .max_nodes = INFINITE, .total_cpus = 16, .total_nodes = 4 },
	{ .name = "long", .default_time = NO_VAL, .max_time = INFINITE, .max_share = 1, .max_cpus_per_node = 6,
	  .max_nodes = INFINITE, .total_cpus = 24, .total_nodes = 4 },
	{ .name = "whole", .default_time = NO_VAL, .max_time = 60, .max_share = 0, .max_cpus_per_node = INFINITE,
	  .max_nodes = INFINITE, .total_cpus = 16, .total_nodes = 2 },
	{ .name = "many", .default_time = NO_VAL, .max_time = 60, .max_share = 1, .max_cpus_per_node = INFINITE,
	  .max_nodes = 5, .total_cpus = 1000, .total_nodes = 20 },	/* no two nodes alike */
};
#define PART_COUNT (sizeof(parts) / sizeof(parts[0]))

extern part_record_t *find_part_record(char *name)
{
	for (size_t i = 0; name && (i < PART_COUNT); i++) {
		if (!strcmp(parts[i].name, name))
			return &parts[i];
	}
	return NULL;
}

extern slurmctld_resv_t *find_resv_name(char *resv_name)
{
	static slurmctld_resv_t reservation = { .name = "workshop", .part_ptr = &parts[2] };

	return strcmp(resv_name, reservation.name) ? NULL : &reservation;
}

#if BANKING_HAS_SELECT_TEXT
/* Only Cray's has anything to say. */
extern char *select_g_select_jobinfo_sprint(dynamic_plugin_data_t *jobinfo, char *text, size_t size, int mode)
{
	(void) mode;
	snprintf(text, size, "%s", jobinfo ? "Blades=7" : "");
	return text;
}
#endif

#define SLURM_USER 64030
#define OPERATOR 900

extern bool validate_operator(uid_t uid)
{
	return (uid == 0) || (uid == SLURM_USER) || (uid == OPERATOR);
}

/* --- what slurmctld has from its database ----------------------------------------------------------------------------- */

static struct { uint32_t uid; char *name, *default_account, *coordinates; } users[] = {
	{ 1001, "alice", "astro", NULL },
	{ 1002, "bob", "bio", NULL },
	{ 1003, "carol", NULL, "astro" },
	{ 1004, "dave", "geo", NULL },
};
#define USER_COUNT (sizeof(users) / sizeof(users[0]))

static slurmdb_assoc_rec_t associations[] = {
	{ .id = 1, .uid = 1001, .user = "alice", .acct = "astro", .def_qos_id = 1 },
	{ .id = 2, .uid = 1001, .user = "alice", .acct = "bio", .def_qos_id = 2 },
	{ .id = 3, .uid = 1002, .user = "bob", .acct = "bio", .def_qos_id = 1 },
	{ .id = 4, .uid = 1003, .user = "carol", .acct = "astro", .def_qos_id = 1 },
	{ .id = 5, .uid = 1004, .user = "dave", .acct = "geo", .partition = "long", .def_qos_id = 1 },
};
#define ASSOCIATION_COUNT (sizeof(associations) / sizeof(associations[0]))

static pthread_rwlock_t assoc_lock = PTHREAD_RWLOCK_INITIALIZER;
static __thread int assoc_locked = 0;

extern void assoc_mgr_lock(assoc_mgr_lock_t *locks)
{
	(void) locks;
	if (assoc_locked++) {
		fprintf(stderr, "the association manager is locked twice\n");
		abort();
	}
	pthread_rwlock_rdlock(&assoc_lock);
}

extern void assoc_mgr_unlock(assoc_mgr_lock_t *locks)
{
	(void) locks;
	assoc_locked--;
	pthread_rwlock_unlock(&assoc_lock);
}

static void need_lock(bool locked)
{
	if (!locked || !assoc_locked) {
		fprintf(stderr, "the association manager's records are used without its locks\n");
		abort();
	}
}

extern int assoc_mgr_fill_in_user(void *db_conn, slurmdb_user_rec_t *user, int enforce, slurmdb_user_rec_t **user_pptr,
				  bool locked)
{
	(void) db_conn;
	(void) enforce;
	(void) user_pptr;
	need_lock(locked);
	for (size_t i = 0; i < USER_COUNT; i++) {
		if (users[i].uid == user->uid) {
			user->name = users[i].name;
			user->default_acct = users[i].default_account;
			return SLURM_SUCCESS;
		}
	}
	return SLURM_ERROR;
}

extern int assoc_mgr_fill_in_assoc(void *db_conn, slurmdb_assoc_rec_t *assoc, int enforce,
				   slurmdb_assoc_rec_t **assoc_pptr, bool locked)
{
	(void) db_conn;
	(void) enforce;
	need_lock(locked);
	for (size_t i = 0; i < ASSOCIATION_COUNT; i++) {
		slurmdb_assoc_rec_t *known = &associations[i];

		if ((known->uid == assoc->uid) && !strcmp(known->acct, assoc->acct) &&
		    (!known->partition || (assoc->partition && !strcmp(known->partition, assoc->partition)))) {
			*assoc_pptr = known;
			return SLURM_SUCCESS;
		}
	}
	return SLURM_ERROR;
}

extern void assoc_mgr_get_default_qos_info(slurmdb_assoc_rec_t *assoc_ptr, slurmdb_qos_rec_t *qos_rec)
{
	qos_rec->id = assoc_ptr->def_qos_id;
}

extern int assoc_mgr_fill_in_qos(void *db_conn, slurmdb_qos_rec_t *qos, int enforce, slurmdb_qos_rec_t **qos_pptr,
				 bool locked)
{
	(void) db_conn;
	(void) enforce;
	(void) qos_pptr;
	need_lock(locked);
	qos->name = (qos->id == 2) ? "high" : "standard";
	return SLURM_SUCCESS;
}

/* Newer releases also ask whether the caller holds the locks: an argument more, which is not looked at. */
__typeof__(assoc_mgr_is_user_acct_coord) assoc_mgr_is_user_acct_coord __attribute__((alias("coordinates")));

extern bool coordinates(void *db_conn, uint32_t uid, char *acct_name);
extern bool coordinates(void *db_conn, uint32_t uid, char *acct_name)
{
	(void) db_conn;
	for (size_t i = 0; acct_name && (i < USER_COUNT); i++) {
		if ((users[i].uid == uid) && users[i].coordinates && !strcmp(users[i].coordinates, acct_name))
			return true;
	}
	return false;
}

#define NODE_COUNT 26

static config_record_t configs[NODE_COUNT];
static node_record_t nodes[NODE_COUNT];

static void make_nodes(void)
{
	static const config_record_t small = { .cpus = 4, .tot_sockets = 1, .cores = 4, .threads = 1,
					       .real_memory = 8000 };
	static const config_record_t large = { .cpus = 8, .tot_sockets = 2, .cores = 2, .threads = 2,
					       .core_spec_cnt = 1, .real_memory = 64000, .mem_spec_limit = 1000,
					       .gres = "gpu:a100:4,craynetwork:4" };
	static node_record_t *table[NODE_COUNT];

	for (int i = 0; i < NODE_COUNT; i++) {
		configs[i] = (i < 4) ? small : large;
		if (i >= 6) {
			configs[i].cpus = (uint16_t) (2 * i);
			configs[i].real_memory = 1000 * (uint64_t) i;
			configs[i].gres = (i == 25) ? "gpu:t4:2" : "gpu:a100:4";
		}
		nodes[i].config_ptr = &configs[i];
		nodes[i].core_spec_cnt = configs[i].core_spec_cnt;
		table[i] = &nodes[i];
	}
	table[1] = NULL;	/* a node taken away leaves a hole */
	node_record_table_ptr = table;
	node_record_count = NODE_COUNT;
	for (size_t i = 0; i < PART_COUNT; i++)
		parts[i].node_bitmap = bit_alloc(NODE_COUNT);
	bit_nset(parts[0].node_bitmap, 0, 3);
	bit_nset(parts[1].node_bitmap, 2, 5);
	bit_nset(parts[2].node_bitmap, 4, 5);
	bit_nset(parts[3].node_bitmap, 6, NODE_COUNT - 1);
	default_part_loc = &parts[0];
}

/* As the database numbers them: the static ones, then in the order in which they were first configured. */
static void make_tres(void)
{
	static slurmdb_tres_rec_t all[] = {
		{ .id = 1, .type = "cpu" },	{ .id = 2, .type = "mem" },
		{ .id = 3, .type = "energy" },	{ .id = 4, .type = "node" },
		{ .id = 5, .type = "billing" }, { .id = 6, .type = "fs", .name = "disk" },
		{ .id = 1001, .type = "gres", .name = "gpu" },
		{ .id = 1002, .type = "gres", .name = "gpu:a100" },
		{ .id = 1003, .type = "license", .name = "matlab" },
	};

	assoc_mgr_tres_list = list_create(NULL);
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		list_append(assoc_mgr_tres_list, &all[i]);
}

/* --- the plugins, as src/common/plugin.c opens them -------------------------------------------------------------------- */

struct plugin {
	void *handle;
	int (*submit)(job_desc_msg_t *, uint32_t, char **);
	int (*modify)(JOB_MODIFY_PARAMETERS);
	int (*record_end)(JOBCOMP_RECORD_PARAMETERS);
	int (*record_start)(JOBCOMP_RECORD_PARAMETERS);	/* up to 24.11 there is none */
	banking_list (*get_jobs)(slurmdb_job_cond_t *);
	int (*set_location)(JOBCOMP_SET_LOCATION_PARAMETERS);
};
static struct plugin job_submit_plugin, jobcomp_plugin;

static struct plugin *plugin_of(const char *type)
{
	return strcmp(type, "jobcomp") ? &job_submit_plugin : &jobcomp_plugin;
}

static int set_location(const struct plugin *plugin)
{
	char *location = slurm_conf.job_comp_loc;

	(void) location;
	return plugin->set_location(JOBCOMP_SET_LOCATION_ARGUMENT);
}

static int record_end(job_record_t *job_ptr)
{
	const uint32_t event = 1;	/* of a job that has ended */

	(void) event;
	return jobcomp_plugin.record_end(JOBCOMP_RECORD_ARGUMENTS);
}

static int record_start(job_record_t *job_ptr)
{
	const uint32_t event = 2;	/* of a job that begins */

	(void) event;
	return jobcomp_plugin.record_start(JOBCOMP_RECORD_ARGUMENTS);
}

static const char *load(const char *type, const char *file)
{
	struct plugin *plugin = plugin_of(type);
	void *handle = dlopen(file, RTLD_LAZY);
	uint32_t *version;
	int (*init)(void);

	if (!handle) {
		fprintf(stderr, "%s\n", dlerror());
		return "dlopen failed";
	}
	version = dlsym(handle, "plugin_version");
	if (!dlsym(handle, "plugin_name") || !dlsym(handle, "plugin_type") || !version)
		return "name, type or version missing";
	if (*version != SLURM_VERSION_NUMBER)
		return "wrong version";
	if (strncmp(dlsym(handle, "plugin_type"), type, strlen(type)))
		return "wrong type";
	if ((init = dlsym(handle, "init")) && init()) {
		dlclose(handle);
		return "init failed";
	}
	plugin->handle = handle;
	plugin->submit = dlsym(handle, "job_submit");
	plugin->modify = dlsym(handle, "job_modify");
	plugin->record_end = dlsym(handle, BANKING_QUOTE(JOBCOMP_RECORD_END));
	plugin->record_start = dlsym(handle, "jobcomp_p_record_job_start");
	plugin->get_jobs = dlsym(handle, BANKING_QUOTE(JOBCOMP_GET_JOBS));
	plugin->set_location = dlsym(handle, BANKING_QUOTE(JOBCOMP_SET_LOCATION));
	if (!strcmp(type, "jobcomp") ? !(plugin->record_end && plugin->get_jobs && plugin->set_location) ||
					       (JOBCOMP_HAS_START && !plugin->record_start) :
				       !(plugin->submit && plugin->modify))
		return "symbols missing";
	if (plugin->set_location && set_location(plugin))
		return "set_location failed";
	return "loaded";
}

static const char *unload(const char *type)
{
	struct plugin *plugin = plugin_of(type);
	int (*fini)(void) = dlsym(plugin->handle, "fini");

	if (fini)
		fini();
	dlclose(plugin->handle);
	memset(plugin, 0, sizeof(*plugin));
	return "unloaded";
}

/* --- jobs -------------------------------------------------------------------------------------------------------------- */

static void decode_percent(char *text)
{
	char *to = text;

	for (char *from = text; *from; from++, to++) {
		unsigned int code;

		if ((*from == '%') && (sscanf(from + 1, "%2x", &code) == 1)) {
			*to = (char) code;
			from += 2;
		} else {
			*to = *from;
		}
	}
	*to = '\0';
}

static void print_escaped(const char *text)
{
	for (; text && *text; text++) {
		if (*text == '\n')
			fputs("\\n", stdout);
		else
			putchar(*text);
	}
}

static void init_job_desc(job_desc_msg_t *desc)
{
	slurm_init_job_desc_msg(desc);
	desc->user_id = 1001;
}

/* What set_desc copied; slurmctld frees its own descriptions too. */
static void free_job_desc(job_desc_msg_t *desc)
{
	xfree(desc->account);
	xfree(desc->partition);
	xfree(desc->qos);
	xfree(desc->array_inx);
	xfree(desc->admin_comment);
	xfree(desc->name);
	xfree(desc->reservation);
	xfree(desc->req_nodes);
	xfree(desc->tres_per_job);
	xfree(desc->tres_per_node);
	xfree(desc->cpus_per_tres);
	xfree(desc->mem_per_tres);
	xfree(desc->comment);
}

static uint32_t submit_uid;

static void set_desc(job_desc_msg_t *desc, const char *key, char *value)
{
	uint32_t number = (uint32_t) strtoul(value, NULL, 10);

#define TEXT(name) else if (!strcmp(key, #name)) desc->name = xstrdup(value)
#define NUMBER(name) else if (!strcmp(key, #name)) desc->name = number
	if (!strcmp(key, "uid")) {
		submit_uid = number;
	}
	TEXT(account);
	TEXT(partition);
	TEXT(qos);
	TEXT(array_inx);
	TEXT(admin_comment);
	TEXT(name);
	TEXT(reservation);
	TEXT(req_nodes);
	TEXT(tres_per_job);
	TEXT(tres_per_node);
	TEXT(cpus_per_tres);
	TEXT(mem_per_tres);
	TEXT(comment);
	NUMBER(user_id);
	NUMBER(time_limit);
	NUMBER(min_cpus);
	NUMBER(min_nodes);
	NUMBER(max_nodes);
	NUMBER(num_tasks);
	NUMBER(cpus_per_task);
	NUMBER(ntasks_per_node);
	NUMBER(ntasks_per_socket);
	NUMBER(ntasks_per_core);
	NUMBER(ntasks_per_tres);
	NUMBER(sockets_per_node);
	NUMBER(cores_per_socket);
	NUMBER(threads_per_core);
	NUMBER(core_spec);
	NUMBER(shared);
	NUMBER(priority);
	NUMBER(end_time);
	NUMBER(time_min);
	else {
		fprintf(stderr, "job description: no key %s\n", key);
		abort();
	}
}

static job_record_t job;
static banking_job_details details;
static multi_core_data_t layout;
static job_array_struct_t array_recs;
static slurmdb_qos_rec_t job_qos = { .name = "standard" };

static void new_job(void)
{
	memset(&job, 0, sizeof(job));
	memset(&details, 0, sizeof(details));
	memset(&array_recs, 0, sizeof(array_recs));
	memset(&layout, 0, sizeof(layout));
	layout.sockets_per_node = layout.cores_per_socket = layout.threads_per_core = NO_VAL16;
	layout.ntasks_per_socket = layout.ntasks_per_core = INFINITE16;	/* as slurmctld's _set_multi_core_data */
	job.details = &details;
	job.requid = -1;
	job.job_id = 42;
	job.user_id = 1001;
	job.account = "astro";
	job.partition = "normal,long";
	job.time_limit = 60;
	job.array_task_id = NO_VAL;
	job.qos_ptr = &job_qos;
	job.assoc_ptr = &associations[0];
	details.submit_time = 1000;
	details.min_cpus = 4;		/* slurmctld's own, for memory or GPUs; what was asked for is below */
	details.orig_min_cpus = 2;
	details.max_cpus = NO_VAL;
	details.min_nodes = 1;
	details.num_tasks = 2;
	details.cpus_per_task = 3;
	details.orig_cpus_per_task = 1;
	details.orig_max_cpus = NO_VAL;
	details.share_res = NO_VAL8;
	details.core_spec = NO_VAL16;
	details.pn_min_memory = 700;	/* the partition's default */
}

static void set_job(const char *key, char *value)
{
	uint32_t number = (uint32_t) strtoul(value, NULL, 10);

	if (!strcmp(key, "state"))
		job.job_state = number;
	else if (!strcmp(key, "part"))
		job.part_ptr = find_part_record(value);
	else if (!strcmp(key, "tasks")) {
		job.array_recs = &array_recs;
		job.array_job_id = job.job_id;
		array_recs.task_cnt = number;
	} else if (!strcmp(key, "num_tasks")) {
		details.num_tasks = number;
	} else if (!strcmp(key, "ntasks_per_socket")) {
		details.mc_ptr = &layout;
		layout.ntasks_per_socket = (uint16_t) number;
	} else if (!strcmp(key, "memory")) {	/* --mem */
		job.bit_flags |= JOB_MEM_SET;
		details.orig_pn_min_memory = number;
	} else if (!strcmp(key, "sockets_per_node")) {
		details.mc_ptr = &layout;
		layout.sockets_per_node = (uint16_t) number;
	} else if (!strcmp(key, "submit_time")) {
		details.submit_time = number;
	} else if (!strcmp(key, "begin_time")) {
		details.begin_time = number;
	} else if (!strcmp(key, "work_dir")) {
		details.work_dir = xstrdup(value);
	} else if (!strcmp(key, "cluster")) {
		static slurmdb_assoc_rec_t association;

		association.cluster = xstrdup(value);
		job.assoc_ptr = &association;
	} else if (!strcmp(key, "select")) {
#if BANKING_HAS_SELECT_TEXT
		job.select_jobinfo = (void *) &job;
#endif
	} else if (!strcmp(key, "bare")) {	/* whatever may be missing is missing */
		job.details = NULL;
		job.qos_ptr = NULL;
		job.assoc_ptr = NULL;
		job.part_ptr = NULL;
		job.account = NULL;
		job.partition = NULL;
	}
#undef TEXT
#undef NUMBER
#define TEXT(name) else if (!strcmp(key, #name)) job.name = xstrdup(value)
#define NUMBER(name) else if (!strcmp(key, #name)) job.name = number
	TEXT(account);
	TEXT(admin_comment);
	TEXT(nodes);
	TEXT(tres_alloc_str);
	TEXT(tres_fmt_alloc_str);
	TEXT(name);
	NUMBER(user_id);
	NUMBER(requid);
	NUMBER(resize_time);
	NUMBER(start_time);
	NUMBER(end_time);
	NUMBER(time_min);
	NUMBER(suspend_time);
	NUMBER(pre_sus_time);
	NUMBER(restart_cnt);
	NUMBER(total_cpus);
	NUMBER(node_cnt);
	NUMBER(array_task_id);
	NUMBER(array_job_id);
	NUMBER(job_id);
	NUMBER(group_id);
	NUMBER(het_job_id);
	NUMBER(het_job_offset);
	NUMBER(exit_code);
	NUMBER(derived_ec);
	NUMBER(time_limit);
	TEXT(partition);
	TEXT(resv_name);
	TEXT(tres_fmt_req_str);
	TEXT(wckey);
	else {
		fprintf(stderr, "job record: no key %s\n", key);
		abort();
	}
}

static void for_each_pair(char *text, void (*set)(void *, const char *, char *), void *what)
{
	char *save = NULL;

	for (char *pair = strtok_r(text, " ", &save); pair; pair = strtok_r(NULL, " ", &save)) {
		char *value = strchr(pair, '=');

		if (!value) {
			fprintf(stderr, "expected key=value: %s\n", pair);
			abort();
		}
		*value++ = '\0';
		decode_percent(value);
		set(what, pair, value);
	}
}

static void set_desc_pair(void *what, const char *key, char *value)
{
	set_desc(what, key, value);
}

static void set_job_pair(void *what, const char *key, char *value)
{
	(void) what;
	set_job(key, value);
}

/* --- what an administrator changes ------------------------------------------------------------------------------------- */

static void add_default(banking_list *list, uint16_t type, uint64_t value)
{
	job_defaults_t *element = xmalloc(sizeof(*element));

	if (!*list)
		*list = list_create(xfree_ptr);
	element->type = type;
	element->value = value;
	list_append(*list, element);
}

#undef TEXT
#undef NUMBER
#define TEXT(name) else if (!strcmp(key, #name)) what->name = xstrdup(value)
#define NUMBER(name) else if (!strcmp(key, #name)) what->name = number
#define DEFAULTS \
	if (!strcmp(key, "DefCpuPerGPU")) \
		add_default(&what->job_defaults_list, JOB_DEF_CPU_PER_GPU, number); \
	else if (!strcmp(key, "DefMemPerGPU")) \
		add_default(&what->job_defaults_list, JOB_DEF_MEM_PER_GPU, number)
#define NO_SUCH_KEY \
	else \
	{ \
		fprintf(stderr, "no key %s\n", key); \
		abort(); \
	}

static void set_conf(void *ignored, const char *key, char *value)
{
	uint32_t number = (uint32_t) strtoul(value, NULL, 10);
	slurm_conf_t *what = &slurm_conf;

	(void) ignored;
	DEFAULTS;
	TEXT(select_type);
	NUMBER(select_type_param);
	NUMBER(priority_flags);
	NUMBER(def_mem_per_cpu);
	NUMBER(max_mem_per_cpu);
	NUMBER(conf_flags);
	NUMBER(max_job_cnt);
	NUMBER(max_array_sz);
	NO_SUCH_KEY
}

/* A table of two jobs, one of them an array with so many tasks waiting. */
static void fill_queue(uint32_t waiting)
{
	static job_array_struct_t tasks;
	static job_record_t alone = { .array_task_id = NO_VAL };
	static job_record_t array = { .array_task_id = NO_VAL, .array_recs = &tasks };

	tasks.task_cnt = waiting;
	job_list = list_create(NULL);
	list_append(job_list, &alone);
	list_append(job_list, &array);
}

static void set_part(void *part, const char *key, char *value)
{
	uint32_t number = (uint32_t) strtoul(value, NULL, 10);
	part_record_t *what = part;
	static double weights[8];

	DEFAULTS;
	else if (!strcmp(key, "billing_weights_str"))
	{
		what->billing_weights_str = xstrdup(value);
		what->billing_weights = weights;
	}
	else if (!strcmp(key, "unread_weights")) what->billing_weights_str = xstrdup(value);
	NUMBER(cr_type);
	NUMBER(max_time);
	NUMBER(max_nodes);
	NUMBER(def_mem_per_cpu);
	NO_SUCH_KEY
}

static void set_node(void *node, const char *key, char *value)
{
	uint32_t number = (uint32_t) strtoul(value, NULL, 10);
	node_record_t *record = node;
	config_record_t *what = record->config_ptr;

	if (!strcmp(key, "node_gres"))
		record->gres = xstrdup(value);
	NUMBER(cpus);
	NUMBER(real_memory);
	TEXT(gres);
	NO_SUCH_KEY
}

static char *first_word(char *text)
{
	char *rest = strchr(text, ' ');

	if (!rest)
		return text + strlen(text);
	*rest++ = '\0';
	return rest;
}

static void print_result(int rc, const char *admin_comment, const char *message)
{
	printf("rc=%d admin_comment=[", rc);
	print_escaped(admin_comment);
	printf("] message=[");
	print_escaped(message);
	printf("]\n");
}

static void submit(char *pairs)
{
	job_desc_msg_t desc;
	char *message = NULL;
	int rc;

	init_job_desc(&desc);
	submit_uid = desc.user_id;
	for_each_pair(pairs, set_desc_pair, &desc);
	if (desc.comment)
		message = xstrdup(desc.comment);	/* what an earlier plugin said */
	rc = job_submit_plugin.submit(&desc, submit_uid, &message);
	print_result(rc, desc.admin_comment, message);
	xfree(message);
	free_job_desc(&desc);
}

static int modify(job_desc_msg_t *job_desc, job_record_t *job_ptr, uint32_t submit_uid, char **err_msg)
{
	(void) err_msg;	/* older releases have none */
	return job_submit_plugin.modify(JOB_MODIFY_ARGUMENTS);
}

static void update(char *pairs)
{
	job_desc_msg_t desc;
	char *message = NULL;
	int rc;

	slurm_init_job_desc_msg(&desc);
	desc.user_id = job.user_id;
	submit_uid = job.user_id;
	for_each_pair(pairs, set_desc_pair, &desc);
	rc = modify(&desc, &job, submit_uid, &message);
	print_result(rc, desc.admin_comment, message);
	xfree(message);
}

static struct {
	pthread_barrier_t barrier;
	int count;
	char *pairs;
	int accepted, refused;
} storm_state;

static void *storm_thread(void *ignored)
{
	(void) ignored;
	pthread_barrier_wait(&storm_state.barrier);
	for (int i = 0; i < storm_state.count; i++) {
		job_desc_msg_t desc;
		char *message = NULL, *pairs = xstrdup(storm_state.pairs);

		init_job_desc(&desc);
		for_each_pair(pairs, set_desc_pair, &desc);
		if (job_submit_plugin.submit(&desc, 1001, &message) == SLURM_SUCCESS)
			__atomic_add_fetch(&storm_state.accepted, 1, __ATOMIC_RELAXED);
		else
			__atomic_add_fetch(&storm_state.refused, 1, __ATOMIC_RELAXED);
		xfree(message);
		free_job_desc(&desc);
		xfree(pairs);
	}
	return NULL;
}

static void storm(char *text)
{
	pthread_t threads[64];
	pthread_attr_t attributes;
	int count = 0, used = 0;

	storm_state.accepted = storm_state.refused = 0;
	if ((sscanf(text, "%d %d %n", &count, &storm_state.count, &used) < 2) || (count > 64))
		abort();
	storm_state.pairs = text + used;
	pthread_barrier_init(&storm_state.barrier, NULL, (unsigned) count);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 1024 * 1024);	/* slurmctld's, up to 24.11 */
	for (int i = 0; i < count; i++)
		pthread_create(&threads[i], &attributes, storm_thread, NULL);
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	printf("accepted=%d refused=%d\n", storm_state.accepted, storm_state.refused);
}

static void ends(int count)
{
	struct timespec begun, ended;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (int i = 0; i < count; i++)
		record_end(&job);
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("us=%.3f\n", ((double) (ended.tv_sec - begun.tv_sec) * 1e6 +
			     (double) (ended.tv_nsec - begun.tv_nsec) / 1e3) / count);
}

static void maps(const char *text)
{
	char line[4096], seen[64][512];
	FILE *file = fopen("/proc/self/maps", "r");
	int count = 0;

	while (fgets(line, sizeof(line), file)) {
		char *path = strchr(line, '/');
		bool known = false;

		if (!path || !strstr(path, text))
			continue;
		for (int i = 0; i < count; i++)
			known = known || !strncmp(seen[i], path, 511);
		if (!known && (count < 64))
			snprintf(seen[count++], 512, "%s", path);
	}
	fclose(file);
	printf("maps=%d\n", count);
}

static void open_files(const char *answer, const char *text)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	int count = 0;

	while ((entry = readdir(dir))) {
		char path[300], target[300];
		ssize_t length;

		snprintf(path, sizeof(path), "/proc/self/fd/%s", entry->d_name);
		length = readlink(path, target, sizeof(target) - 1);
		if (length > 0) {
			target[length] = '\0';
			count += strstr(target, text) != NULL;
		}
	}
	closedir(dir);
	printf("%s=%d\n", answer, count);
}

static void rss(void)
{
	char line[256];
	FILE *file = fopen("/proc/self/status", "r");
	long kb = 0;

	while (fgets(line, sizeof(line), file))
		sscanf(line, "VmRSS: %ld", &kb);
	fclose(file);
	printf("rss=%ld\n", kb);
}

static void run_line(char *line)
{
	char *rest = strchr(line, ' '), *more;

	if (rest)
		*rest++ = '\0';
	else
		rest = line + strlen(line);
	if (!strcmp(line, "load") && (more = strchr(rest, ' '))) {
		*more++ = '\0';
		printf("%s\n", load(rest, more));
	} else if (!strcmp(line, "unload")) {
		printf("%s\n", unload(rest));
	} else if (!strcmp(line, "submit")) {
		submit(rest);
	} else if (!strcmp(line, "job")) {
		new_job();
		for_each_pair(rest, set_job_pair, NULL);
		printf("job\n");
	} else if (!strcmp(line, "conf")) {
		for_each_pair(rest, set_conf, NULL);
		printf("conf\n");
	} else if (!strcmp(line, "waiting")) {
		fill_queue((uint32_t) atoi(rest));
		printf("waiting\n");
	} else if (!strcmp(line, "pause")) {
		struct timespec some = { .tv_sec = atol(rest) / 1000, .tv_nsec = atol(rest) % 1000 * 1000000 };

		nanosleep(&some, NULL);
		printf("pause\n");
	} else if (!strcmp(line, "part")) {
		more = first_word(rest);
		for_each_pair(more, set_part, find_part_record(rest));
		printf("part\n");
	} else if (!strcmp(line, "node")) {
		more = first_word(rest);
		for_each_pair(more, set_node, &nodes[atoi(rest)]);
		printf("node\n");
	} else if (!strcmp(line, "age")) {
		last_part_update++;
		printf("age\n");
	} else if (!strcmp(line, "unsettled")) {
		last_part_update = time(NULL) + 3600;
		printf("unsettled\n");
	} else if (!strcmp(line, "update")) {
		update(rest);
	} else if (!strcmp(line, "start")) {
		printf("rc=%d\n", record_start(&job));
	} else if (!strcmp(line, "end")) {
		printf("rc=%d\n", record_end(&job));
	} else if (!strcmp(line, "ends")) {
		ends(atoi(rest));
	} else if (!strcmp(line, "location")) {
		printf("rc=%d\n", set_location(&jobcomp_plugin));
	} else if (!strcmp(line, "get_jobs")) {
		printf("%s\n", jobcomp_plugin.get_jobs(NULL) ? "some" : "none");
	} else if (!strcmp(line, "storm")) {
		storm(rest);
	} else if (!strcmp(line, "maps")) {
		maps(rest);
	} else if (!strcmp(line, "rss")) {
		rss();
	} else if (!strcmp(line, "sockets")) {
		open_files("sockets", "socket:");
	} else if (!strcmp(line, "open")) {
		open_files("open", rest);
	} else {
		fprintf(stderr, "no such command: %s\n", line);
		abort();
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	log_options_t options = LOG_OPTS_STDERR_ONLY;
	static char line[65536];

	if ((argc > 1) && !strcmp(argv[1], "--as-sacct"))
		be_sacct();
	options.stderr_level = LOG_LEVEL_DEBUG;
	slurm_conf.cluster_name = "testcluster";
	slurm_conf.slurm_user_id = SLURM_USER;
	slurm_conf.select_type = "select/cons_tres";
	slurm_conf.select_type_param = BANKING_CR_CORE | BANKING_CR_MEMORY;
	slurm_conf.job_submit_plugins = getenv("FAKE_JOB_SUBMIT_PLUGINS");
	slurm_conf.plugindir = getenv("FAKE_PLUGIN_DIR");
	slurm_conf.job_comp_loc = getenv("FAKE_JOB_COMP_LOC");
	assoc_mgr_user_list = list_create(NULL);
	assoc_mgr_assoc_list = list_create(NULL);
	assoc_mgr_qos_list = list_create(NULL);
	log_init("slurmctld", options, SYSLOG_FACILITY_DAEMON, NULL);
	make_nodes();
	make_tres();
	new_job();
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		run_line(line);
	}
	return 0;	/* with threads and an interpreter alive, as slurmctld ends */
}
