/* SPDX-License-Identifier: BSD-3-Clause */
#include "decode.h"

#include "node_count.h"
#include "tres_alloc.h"

#include <ctype.h>
#include <time.h>

#define PARTITIONS_MAX 1000
#define PARTITIONS_CACHED 256
#define FACTS_AGE_S 300
#define MERGED_GRES_MAX 4096
#define TEXT_MAX 16384

static char *lower_copy(const char *text)
{
	char *copy = (text && text[0]) ? xstrdup(text) : NULL;

	for (char *c = copy; c && *c; c++)
		*c = (char) tolower((unsigned char) *c);
	return copy;
}

/*
 * What is known of a partition. Made once and never changed, strings and all; whoever uses it holds a reference, since
 * another thread may put a newer one into the cache meanwhile.
 */
struct partition_facts {
	uint32_t references;
	time_t last_update;		/* of slurmctld's partition table, when this was made */
	time_t made;
	banking_partition plain;	/* its numbers alone, to compare */
	banking_partition partition;
	banking_node_shape shapes[BANKING_SHAPES_MAX];
};

static void release_facts(partition_facts *facts)
{
	if (!facts || __atomic_sub_fetch(&facts->references, 1, __ATOMIC_ACQ_REL))
		return;
	for (uint32_t i = 0; i < facts->partition.shape_count; i++)
		xfree(facts->shapes[i].gres);
	xfree(facts->partition.name);
	xfree(facts->partition.billing_weights);
	xfree(facts);
}

static bool same_text(const char *one, const char *other)
{
	return (one && other) ? !strcmp(one, other) : (one == other);
}

/* --- nodes that are alike ---------------------------------------------------------------------------------------------- */

/* Its GRES is the node's own text if it has one, as in "scontrol show node": the types that gres.conf names are in it. */
static void shape_of_node(const node_record_t *node_ptr, banking_node_shape *shape)
{
	const config_record_t *config_ptr = node_ptr->config_ptr;
	const char *gres = node_ptr->gres ? node_ptr->gres : config_ptr->gres;

	memset(shape, 0, sizeof(*shape));
	shape->count = 1;
	shape->cpus = config_ptr->cpus;
	shape->sockets = config_ptr->tot_sockets;
	shape->cores = config_ptr->cores;
	shape->threads = config_ptr->threads;
	shape->core_spec = node_ptr->core_spec_cnt;
	shape->memory_mb = config_ptr->real_memory;
	shape->memory_spec_mb = config_ptr->mem_spec_limit;
	shape->gres = (gres && gres[0]) ? gres : NULL;
}

static bool same_shape(const banking_node_shape *one, const banking_node_shape *other)
{
	return (one->cpus == other->cpus) && (one->sockets == other->sockets) && (one->cores == other->cores) &&
	       (one->threads == other->threads) && (one->core_spec == other->core_spec) &&
	       (one->memory_mb == other->memory_mb) && (one->memory_spec_mb == other->memory_spec_mb) &&
	       same_text(one->gres, other->gres);
}

/*
 * One shape that has as much of everything as either: what an estimate takes from it is never too little. Different GRES
 * are put one behind the other, so that it seems to have all of them.
 */
static void merge_shape(banking_node_shape *into, const banking_node_shape *other)
{
	into->count += other->count;
	into->cpus = MAX(into->cpus, other->cpus);
	into->sockets = MAX(into->sockets, other->sockets);
	into->cores = MAX(into->cores, other->cores);
	into->threads = MAX(into->threads, other->threads);
	into->core_spec = MIN(into->core_spec, other->core_spec);
	into->memory_mb = MAX(into->memory_mb, other->memory_mb);
	into->memory_spec_mb = MIN(into->memory_spec_mb, other->memory_spec_mb);
	if (other->gres && (!into->gres || !strstr(into->gres, other->gres))) {
		char *both = (char *) into->gres;

		if (!both || (strlen(both) + strlen(other->gres) < MERGED_GRES_MAX))
			xstrfmtcat(both, "%s%s", both ? "," : "", other->gres);
		into->gres = both;
	}
}

static void add_shape(partition_facts *facts, const banking_node_shape *shape, uint32_t *last)
{
	uint32_t count = facts->partition.shape_count;
	banking_node_shape *shapes = facts->shapes;

	if ((*last < count) && same_shape(&shapes[*last], shape)) {	/* most often */
		shapes[*last].count++;
		return;
	}
	for (uint32_t i = 0; i < count; i++) {
		if (same_shape(&shapes[i], shape)) {
			shapes[i].count++;
			*last = i;
			return;
		}
	}
	if (count == BANKING_SHAPES_MAX) {
		merge_shape(&shapes[count - 1], shape);
		return;
	}
	shapes[count] = *shape;
	shapes[count].gres = xstrdup(shape->gres);
	*last = count;
	facts->partition.shape_count++;
}

static void walk_nodes(const part_record_t *part_ptr, partition_facts *facts)
{
	int64_t first, end;
	uint32_t last = 0;

	if (!part_ptr->node_bitmap || ((first = bit_ffs(part_ptr->node_bitmap)) < 0))
		return;
	end = bit_fls(part_ptr->node_bitmap);
	for (int64_t i = first; (i <= end) && (i < node_record_count); i++) {
		const node_record_t *node_ptr;
		banking_node_shape shape;

		if (!bit_test(part_ptr->node_bitmap, i))
			continue;
		node_ptr = BANKING_NODE(i);
		if (!node_ptr || !node_ptr->config_ptr)
			continue;
		shape_of_node(node_ptr, &shape);
		add_shape(facts, &shape, &last);
	}
}

/* --- a partition ------------------------------------------------------------------------------------------------------- */

/* What select hands out there (as cons_tres' _setup_cr_type). */
static void decode_select(const part_record_t *part_ptr, banking_partition *partition)
{
	uint32_t type = slurm_conf.select_type_param;

	partition->one_task_per_core = (type & BANKING_CR_ONE_TASK_PER_CORE) ? 1 : 0;
	if (banking_select_linear()) {
		partition->unit = BANKING_UNIT_NODE;
		partition->memory_tracked = (type & BANKING_CR_MEMORY) ? 1 : 0;
		return;
	}
	if (part_ptr->cr_type && (type & (BANKING_CR_SOCKET | BANKING_CR_CORE)))
		type = (type & ~(uint32_t) (BANKING_CR_SOCKET | BANKING_CR_CORE | BANKING_CR_MEMORY)) |
		       part_ptr->cr_type;
	if (type & BANKING_CR_SOCKET)
		partition->unit = BANKING_UNIT_SOCKET;
	else if ((type & BANKING_CR_CPU) && !(type & BANKING_CR_CORE))
		partition->unit = BANKING_UNIT_CPU;
	else
		partition->unit = BANKING_UNIT_CORE;
	partition->memory_tracked = (type & BANKING_CR_MEMORY) ? 1 : 0;
}

static int is_default_of_type(void *element, void *type)
{
	return ((job_defaults_t *) element)->type == *(uint16_t *) type;
}

/* JobDefaults: the partition's, else the cluster's. */
static uint64_t job_default(const part_record_t *part_ptr, uint16_t type)
{
	banking_list lists[] = { part_ptr->job_defaults_list, slurm_conf.job_defaults_list };

	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
		job_defaults_t *found = lists[i] ? list_find_first(lists[i], is_default_of_type, &type) : NULL;

		if (found)
			return found->value;
	}
	return NO_VAL64;
}

/* All that is no text and needs no walk over the nodes. */
static void decode_numbers(const part_record_t *part_ptr, banking_partition *partition)
{
	memset(partition, 0, sizeof(*partition));
	partition->found = 1;
	partition->default_time_min = part_ptr->default_time;
	partition->max_time_min = part_ptr->max_time;
	partition->exclusive = (part_ptr->max_share == 0) || banking_select_linear();
	partition->max_cpus_per_node = part_ptr->max_cpus_per_node;
	partition->max_nodes = part_ptr->max_nodes;
	partition->total_cpus = part_ptr->total_cpus;
	partition->total_nodes = part_ptr->total_nodes;
	decode_select(part_ptr, partition);
	partition->def_mem_per_cpu =
		part_ptr->def_mem_per_cpu ? part_ptr->def_mem_per_cpu : slurm_conf.def_mem_per_cpu;
	partition->max_mem_per_cpu =
		part_ptr->max_mem_per_cpu ? part_ptr->max_mem_per_cpu : slurm_conf.max_mem_per_cpu;
	partition->def_cpu_per_gpu = job_default(part_ptr, JOB_DEF_CPU_PER_GPU);
	partition->def_mem_per_gpu = job_default(part_ptr, JOB_DEF_MEM_PER_GPU);
	partition->billing_max = (slurm_conf.priority_flags & PRIORITY_FLAGS_MAX_TRES) ? 1 : 0;
	partition->slurm_version = SLURM_VERSION_NUMBER;
}

static const char *weights_of(const part_record_t *part_ptr)
{
	/* a text that Slurm itself could not read leaves no weights */
	return (part_ptr->billing_weights && part_ptr->billing_weights_str) ? part_ptr->billing_weights_str : NULL;
}

/* Differs from all others that any thread of this process, or a copy of this plugin loaded earlier, has given. */
static uint64_t next_generation(void)
{
	static uint64_t generation = 0;
	struct timespec now;

	if (!generation) {
		clock_gettime(CLOCK_REALTIME, &now);
		generation = (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
	}
	return ++generation;
}

static partition_facts *make_facts(const part_record_t *part_ptr, const banking_partition *plain, time_t now)
{
	partition_facts *facts = xmalloc(sizeof(*facts));

	facts->references = 1;
	facts->last_update = last_part_update;
	facts->made = now;
	memcpy(&facts->plain, plain, sizeof(facts->plain));
	memcpy(&facts->partition, plain, sizeof(facts->partition));
	facts->partition.generation = next_generation();
	facts->partition.name = xstrdup(part_ptr->name);
	facts->partition.billing_weights = xstrdup(weights_of(part_ptr));
	facts->partition.shapes = facts->shapes;
	walk_nodes(part_ptr, facts);
	return facts;
}

/*
 * The table's time has whole seconds: what was made in the second of a change may not have seen all of it. A node's
 * configuration may change without the table; that is seen when the facts are too old.
 */
static bool still_true(const partition_facts *facts, const part_record_t *part_ptr, const banking_partition *plain,
		       time_t now)
{
	return (facts->last_update == last_part_update) && (facts->made > last_part_update) && (now >= facts->made) &&
	       (now - facts->made < FACTS_AGE_S) && !memcmp(&facts->plain, plain, sizeof(*plain)) &&
	       same_text(facts->partition.billing_weights, weights_of(part_ptr));
}

/* From the cache, since a submission should not walk thousands of nodes. The caller releases what it gets. */
static partition_facts *facts_of(const part_record_t *part_ptr)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static partition_facts *cache[PARTITIONS_CACHED];
	static unsigned int used = 0, next = 0;
	partition_facts *facts = NULL;
	banking_partition plain;
	time_t now = time(NULL);
	unsigned int slot = 0;

	decode_numbers(part_ptr, &plain);
	pthread_mutex_lock(&mutex);
	while ((slot < used) && strcmp(cache[slot]->partition.name, part_ptr->name))
		slot++;
	if ((slot < used) && still_true(cache[slot], part_ptr, &plain, now)) {
		facts = cache[slot];
	} else {
		facts = make_facts(part_ptr, &plain, now);
		if ((slot == used) && (used < PARTITIONS_CACHED))
			used++;
		else if (slot == used)
			slot = next++ % PARTITIONS_CACHED;
		release_facts(cache[slot]);
		cache[slot] = facts;
	}
	__atomic_add_fetch(&facts->references, 1, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&mutex);
	return facts;
}

static partition_facts *decode_partition(char *name, const part_record_t *part_ptr, banking_partition *partition)
{
	partition_facts *facts;

	if (!part_ptr) {
		memset(partition, 0, sizeof(*partition));
		partition->name = name;
		return NULL;
	}
	facts = facts_of(part_ptr);
	*partition = facts->partition;
	return facts;
}

/* Without a partition: the reservation's, else the default one (as Slurm's _get_job_parts). */
static part_record_t *partition_when_none_asked(const char *reservation)
{
	slurmctld_resv_t *resv_ptr;

	if (reservation && reservation[0] && (resv_ptr = find_resv_name((char *) reservation)) && resv_ptr->part_ptr)
		return resv_ptr->part_ptr;
	return default_part_loc;
}

static void decode_partitions(const char *names, const char *reservation, decoded_job *owned,
			      banking_submission *submission)
{
	banking_partition *partitions = owned->few;
	partition_facts **facts = owned->few_facts;
	uint32_t count = 0, most = 1;
	char *save = NULL;

	submission->partitions = partitions;
	submission->partition_count = 1;
	owned->facts_count = 1;
	if (!names || !names[0]) {
		part_record_t *part_ptr = partition_when_none_asked(reservation);

		facts[0] = decode_partition("", part_ptr, partitions);
		return;
	}
	for (const char *c = names; *c; c++)
		most += (*c == ',');
	if (most > PARTITIONS_MAX)
		most = PARTITIONS_MAX;
	if (most > BANKING_FEW_PARTITIONS) {
		partitions = owned->many = xcalloc(most, sizeof(banking_partition));
		facts = owned->many_facts = xcalloc(most, sizeof(partition_facts *));
	}
	owned->partition_names = xstrdup(names);
	for (char *name = strtok_r(owned->partition_names, ",", &save); name && (count < most);
	     name = strtok_r(NULL, ",", &save), count++)
		facts[count] = decode_partition(name, find_part_record(name), &partitions[count]);
	owned->facts_count = count;
	if (!count)
		decode_partition("", NULL, &partitions[count++]);
	submission->partitions = partitions;
	submission->partition_count = count;
}

/* The user's record: name, and default account if none is given. Needs the association manager's user lock. */
static void look_up_user(uint32_t user_id, decoded_job *owned)
{
	slurmdb_user_rec_t user = { .uid = user_id };

	if (!assoc_mgr_user_list ||
	    (assoc_mgr_fill_in_user(acct_db_conn, &user, ACCOUNTING_ENFORCE_ASSOCS, NULL, true) != SLURM_SUCCESS))
		return;
	if (!owned->user_name && user.name)
		owned->user_name = xstrdup(user.name);
	if (!owned->account)
		owned->account = lower_copy(user.default_acct);
}

/*
 * The association of user and account for one partition. A partition of its own goes before the general one; Slurm falls
 * back itself. Needs the association manager's association lock.
 */
static slurmdb_assoc_rec_t *find_association(uint32_t user_id, char *account, const char *partition)
{
	slurmdb_assoc_rec_t wanted = { .uid = user_id, .acct = account, .partition = (char *) partition };
	slurmdb_assoc_rec_t *assoc_ptr = NULL;

	if (!account || !assoc_mgr_assoc_list ||
	    (assoc_mgr_fill_in_assoc(acct_db_conn, &wanted, ACCOUNTING_ENFORCE_ASSOCS, &assoc_ptr, true) !=
	     SLURM_SUCCESS))
		return NULL;
	return assoc_ptr;
}

static char *qos_when_none_asked(slurmdb_assoc_rec_t *assoc_ptr)
{
	slurmdb_qos_rec_t qos = { 0 };

	if (!assoc_ptr || !assoc_mgr_qos_list)
		return NULL;
	banking_default_qos(assoc_ptr, &qos);
	if (!qos.name && (!qos.id || (assoc_mgr_fill_in_qos(acct_db_conn, &qos, 0, NULL, true) != SLURM_SUCCESS)))
		return NULL;
	return qos.name ? xstrdup(qos.name) : NULL;
}

/* User, account, QOS and whether they belong together: all in one hold of the association manager's locks. */
static void decode_association(const char *account, const char *qos, decoded_job *owned,
			       banking_submission *submission)
{
	assoc_mgr_lock_t locks = { .assoc = READ_LOCK, .qos = READ_LOCK, .user = READ_LOCK };
	slurmdb_assoc_rec_t *first = NULL;
	uint32_t associated = 1;

	owned->account = lower_copy(account);
	assoc_mgr_lock(&locks);
	if (!owned->account)
		look_up_user(submission->job_user_id, owned);
	for (uint32_t i = 0; i < submission->partition_count; i++) {
		slurmdb_assoc_rec_t *assoc_ptr =
			find_association(submission->job_user_id, owned->account, submission->partitions[i].name);

		if (!assoc_ptr)
			associated = 0;
		else if (!first)
			first = assoc_ptr;
	}
	if (first && first->user && !owned->user_name)
		owned->user_name = xstrdup(first->user);
	if (!owned->user_name)
		look_up_user(submission->job_user_id, owned);
	owned->qos = (qos && qos[0]) ? xstrdup(qos) : qos_when_none_asked(first);
	assoc_mgr_unlock(&locks);

	submission->user_name = owned->user_name;
	submission->account = owned->account;
	submission->qos = owned->qos;
	submission->associated = associated;
}

/* A list of required nodes is a least number of nodes (as Slurm's validate_job_create_req). */
static uint32_t at_least_required_nodes(uint32_t min_nodes, const char *req_nodes)
{
	uint32_t count = banking_node_count(req_nodes);

	if (!count)
		return min_nodes;
	return ((min_nodes == NO_VAL) || (min_nodes < count)) ? count : min_nodes;
}

extern bool text_too_long(const job_desc_msg_t *job_desc)
{
	/* not req_nodes, which Slurm takes of any length, nor admin_comment, which only administrators and plugins set */
	const char *const texts[] = {
		job_desc->account, job_desc->partition, job_desc->qos, job_desc->array_inx, job_desc->name,
		job_desc->reservation, job_desc->tres_per_job, job_desc->tres_per_node, job_desc->tres_per_socket,
		job_desc->tres_per_task, job_desc->cpus_per_tres, job_desc->mem_per_tres,
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		if (texts[i] && (strnlen(texts[i], TEXT_MAX + 1) > TEXT_MAX))
			return true;
	}
	return false;
}

extern void decode_submission(const job_desc_msg_t *job_desc, uint32_t submit_uid, decoded_job *owned,
			      banking_submission *submission)
{
	memset(owned, 0, sizeof(*owned));
	memset(submission, 0, sizeof(*submission));
	submission->array_inx = job_desc->array_inx;
	submission->admin_comment = job_desc->admin_comment;
	submission->name = job_desc->name;
	submission->submit_user_id = submit_uid;
	submission->job_user_id = job_desc->user_id;
	submission->room = room_in_job_table();
	submission->time_limit_min = job_desc->time_limit;
	submission->time_min_min = job_desc->time_min;
	submission->min_cpus = job_desc->min_cpus;
	submission->max_cpus = job_desc->max_cpus;
	submission->min_nodes = at_least_required_nodes(job_desc->min_nodes, job_desc->req_nodes);
	submission->max_nodes = job_desc->max_nodes;
	submission->num_tasks = job_desc->num_tasks;
	submission->het_job_offset = job_desc->het_job_offset;
	submission->cpus_per_task = job_desc->cpus_per_task;
	submission->ntasks_per_node = job_desc->ntasks_per_node;
	submission->ntasks_per_socket = job_desc->ntasks_per_socket;
	submission->ntasks_per_core = job_desc->ntasks_per_core;
	submission->ntasks_per_tres = job_desc->ntasks_per_tres;
	submission->sockets_per_node = job_desc->sockets_per_node;
	submission->cores_per_socket = job_desc->cores_per_socket;
	submission->pn_min_cpus = job_desc->pn_min_cpus;
	submission->shared = job_desc->shared;
	submission->threads_per_core = job_desc->threads_per_core;
	/* Slurm forgets it unless AllowSpecResourcesUsage is on */
	submission->core_spec = (slurm_conf.conf_flags & BANKING_CONF_SPEC_CORES) ? job_desc->core_spec : NO_VAL16;
	submission->overcommit = job_desc->overcommit;
	submission->pn_min_memory = job_desc->pn_min_memory;
	submission->tres_per_job = job_desc->tres_per_job;
	submission->tres_per_node = job_desc->tres_per_node;
	submission->tres_per_socket = job_desc->tres_per_socket;
	submission->tres_per_task = job_desc->tres_per_task;
	submission->cpus_per_tres = job_desc->cpus_per_tres;
	submission->mem_per_tres = job_desc->mem_per_tres;
	decode_partitions(job_desc->partition, job_desc->reservation, owned, submission);
	decode_association(job_desc->account, job_desc->qos, owned, submission);
}

extern bool update_could_cost(const job_desc_msg_t *job_desc)
{
	/* not array_inx: in an update it is the array's throttle */
	return job_desc->account || job_desc->partition || job_desc->qos || job_desc->req_nodes ||
	       job_desc->tres_per_job || job_desc->tres_per_node || job_desc->tres_per_socket ||
	       job_desc->tres_per_task || job_desc->cpus_per_tres || job_desc->mem_per_tres ||
	       job_desc->end_time || (job_desc->time_limit != NO_VAL) || (job_desc->time_min != NO_VAL) ||
	       (job_desc->min_cpus != NO_VAL) || (job_desc->max_cpus != NO_VAL) ||
	       (job_desc->min_nodes != NO_VAL) || (job_desc->max_nodes != NO_VAL) ||
	       (job_desc->num_tasks != NO_VAL) || (job_desc->cpus_per_task != NO_VAL16) ||
	       (job_desc->ntasks_per_node != NO_VAL16) || (job_desc->ntasks_per_socket != NO_VAL16) ||
	       (job_desc->ntasks_per_core != NO_VAL16) || (job_desc->ntasks_per_tres != NO_VAL16) ||
	       (job_desc->sockets_per_node != NO_VAL16) || (job_desc->cores_per_socket != NO_VAL16) ||
	       (job_desc->pn_min_cpus != NO_VAL16) || (job_desc->shared != NO_VAL16) ||
	       (job_desc->threads_per_core != NO_VAL16) || (job_desc->core_spec != NO_VAL16) ||
	       (job_desc->overcommit != NO_VAL8) || (job_desc->pn_min_memory != NO_VAL64);
}

extern bool may_update(const job_desc_msg_t *job_desc, const job_record_t *job_ptr, uint32_t submit_uid,
		       bool *operator_caller)
{
	*operator_caller = validate_operator(submit_uid);
	if (*operator_caller || (job_ptr->user_id == submit_uid))
		return true;
	/* a coordinator: of the job's account, and of the new one if it changes */
	*operator_caller = banking_is_coordinator(submit_uid, job_ptr->account) &&
			   (!job_desc->account || banking_is_coordinator(submit_uid, job_desc->account));
	return *operator_caller;
}

/* A record says 0 where a job description says NO_VAL. */
#define UNSET_IF_ZERO(value, unset) ((value) ? (value) : (unset))
#define OVERLAY(wanted, unset, current) (((wanted) != (unset)) ? (wanted) : (current))

/*
 * EndTime=... moves the limit by the difference. A limit below the least time is refused, but only after the rest of the
 * update (more nodes, another partition) was done: the limit stays (both as Slurm's _update_job).
 */
static uint32_t time_limit_of_update(const job_desc_msg_t *job_desc, const job_record_t *job_ptr)
{
	uint32_t limit = OVERLAY(job_desc->time_limit, NO_VAL, job_ptr->time_limit);
	uint32_t least = OVERLAY(job_desc->time_min, NO_VAL, job_ptr->time_min);

	if ((least != NO_VAL) && (limit < least) && (limit < job_ptr->time_limit))
		limit = job_ptr->time_limit;
	if (job_desc->end_time && (job_desc->time_limit == NO_VAL) && (limit != INFINITE) && (limit != NO_VAL) &&
	    (job_desc->end_time > job_ptr->end_time))
		limit += (uint32_t) ((job_desc->end_time - job_ptr->end_time + 59) / 60);
	return limit;
}

static uint16_t sharing_of_record(const banking_job_details *details)
{
	if ((details->whole_node == WHOLE_NODE_REQUIRED) || (details->share_res == 0))
		return 0;
	if (details->whole_node == WHOLE_NODE_USER)
		return 2;
	if (details->whole_node == WHOLE_NODE_MCS)
		return 3;
	return (details->share_res == 1) ? 1 : NO_VAL16;
}

/* Sockets, cores and threads; what they are not asked for is NO_VAL16 or INFINITE16 in both. */
static void overlay_layout(const job_desc_msg_t *job_desc, const banking_job_details *details,
			   banking_submission *wanted)
{
	static const multi_core_data_t none = {
		.sockets_per_node = NO_VAL16, .cores_per_socket = NO_VAL16, .threads_per_core = NO_VAL16,
		.ntasks_per_socket = NO_VAL16, .ntasks_per_core = NO_VAL16,
	};
	const multi_core_data_t *current = (details && details->mc_ptr) ? details->mc_ptr : &none;

	wanted->ntasks_per_socket = OVERLAY(job_desc->ntasks_per_socket, NO_VAL16, current->ntasks_per_socket);
	wanted->ntasks_per_core = OVERLAY(job_desc->ntasks_per_core, NO_VAL16, current->ntasks_per_core);
	wanted->sockets_per_node = OVERLAY(job_desc->sockets_per_node, NO_VAL16, current->sockets_per_node);
	wanted->cores_per_socket = OVERLAY(job_desc->cores_per_socket, NO_VAL16, current->cores_per_socket);
	wanted->threads_per_core = OVERLAY(job_desc->threads_per_core, NO_VAL16, current->threads_per_core);
}

/* An update of the number of nodes sees to the CPUs of the tasks, and of each node, overcommitted or not (as Slurm's _update_job). */
static void cpus_of_more_nodes(const job_desc_msg_t *job_desc, const banking_job_details *details,
			       banking_submission *wanted)
{
	uint32_t tasks = OVERLAY(job_desc->num_tasks, NO_VAL, details->num_tasks);
	uint32_t each = OVERLAY(job_desc->cpus_per_task, NO_VAL16, details->cpus_per_task);
	uint32_t on_a_node = OVERLAY(job_desc->pn_min_cpus, NO_VAL16, details->pn_min_cpus);
	uint64_t cpus;

	if ((job_desc->min_nodes == NO_VAL) || (job_desc->min_nodes == INFINITE))
		return;
	if (tasks < job_desc->min_nodes)
		tasks = job_desc->min_nodes;
	cpus = MAX((uint64_t) tasks * each, (uint64_t) on_a_node * job_desc->min_nodes);
	if ((wanted->min_cpus == NO_VAL) || (cpus > wanted->min_cpus))
		wanted->min_cpus = (uint32_t) MIN(cpus, NO_VAL - 1);
	/* more nodes than the job's most is refused, but only after part of it was done: up to 22.05 the CPUs stay */
	if (wanted->max_nodes && (wanted->max_nodes < wanted->min_nodes))
		wanted->max_nodes = wanted->min_nodes;
}

/*
 * As the user asked for it: what slurmctld made of that for one partition (CPUs for memory and GPUs, the partition's default
 * memory) it makes anew for another.
 */
static void overlay_details(const job_desc_msg_t *job_desc, const job_record_t *job_ptr, banking_submission *wanted)
{
	const banking_job_details *details = job_ptr->details;
	uint64_t memory = (job_ptr->bit_flags & JOB_MEM_SET) ? details->orig_pn_min_memory : NO_VAL64;

	wanted->min_cpus = OVERLAY(job_desc->min_cpus, NO_VAL, details->orig_min_cpus);
	wanted->max_cpus = OVERLAY(job_desc->max_cpus, NO_VAL, details->orig_max_cpus);
	wanted->min_nodes = at_least_required_nodes(OVERLAY(job_desc->min_nodes, NO_VAL, details->min_nodes),
						    job_desc->req_nodes ? job_desc->req_nodes : details->req_nodes);
	wanted->max_nodes = OVERLAY(job_desc->max_nodes, NO_VAL, UNSET_IF_ZERO(details->max_nodes, NO_VAL));
	wanted->num_tasks = OVERLAY(job_desc->num_tasks, NO_VAL, UNSET_IF_ZERO(details->num_tasks, NO_VAL));
	wanted->cpus_per_task = OVERLAY(job_desc->cpus_per_task, NO_VAL16, details->orig_cpus_per_task);
	wanted->ntasks_per_node = OVERLAY(job_desc->ntasks_per_node, NO_VAL16, UNSET_IF_ZERO(details->ntasks_per_node, NO_VAL16));
	wanted->ntasks_per_tres = OVERLAY(job_desc->ntasks_per_tres, NO_VAL16, UNSET_IF_ZERO(details->ntasks_per_tres, NO_VAL16));
	wanted->pn_min_cpus = OVERLAY(job_desc->pn_min_cpus, NO_VAL16,
				      UNSET_IF_ZERO((uint16_t) details->orig_pn_min_cpus, NO_VAL16));
	wanted->shared = OVERLAY(job_desc->shared, NO_VAL16, sharing_of_record(details));
	wanted->core_spec = OVERLAY(job_desc->core_spec, NO_VAL16, details->core_spec);
	wanted->overcommit = OVERLAY(job_desc->overcommit, NO_VAL8, details->overcommit);
	wanted->pn_min_memory = OVERLAY(job_desc->pn_min_memory, NO_VAL64, memory);
}

/* The record of an array stands for all its tasks that have no record of their own. */
static uint32_t tasks_of_record(const job_record_t *job_ptr)
{
	if (job_ptr->array_recs && (job_ptr->array_task_id == NO_VAL) && job_ptr->array_recs->task_cnt)
		return job_ptr->array_recs->task_cnt;
	return 1;
}

static int count_tasks(void *record, void *count)
{
	*(uint64_t *) count += tasks_of_record(record);
	return 0;
}

/*
 * How old a walk may be. Jobs leave the table unseen, but come into it only by way of us: with what was accepted since,
 * a walk says too much, never too little. While there is room for the largest array, that is good enough.
 */
#define RECOUNT_AMPLE_MS 60000
#define RECOUNT_MS 1000
#define RECOUNT_FULL_MS 50

static struct {
	pthread_mutex_t mutex;
	int64_t walked_at_ms;	/* monotonic; 0: never */
	uint64_t walked;	/* jobs and array tasks that the last walk found */
	uint64_t taken;		/* accepted since */
} job_table = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static int64_t monotonic_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000 + 1;
}

/* the table is full with one less than its number */
static uint32_t room_beside(uint64_t count)
{
	return (count + 1 >= slurm_conf.max_job_cnt) ? 0 : (uint32_t) (slurm_conf.max_job_cnt - 1 - count);
}

static int64_t recount_after_ms(uint32_t room)
{
	if (!room)
		return RECOUNT_FULL_MS;
	return (slurm_conf.max_array_sz && (room > slurm_conf.max_array_sz)) ? RECOUNT_AMPLE_MS : RECOUNT_MS;
}

extern uint32_t room_in_job_table(void)
{
	int64_t now = monotonic_ms(), age_ms;
	uint32_t room;

	if (!job_list || !slurm_conf.max_job_cnt)
		return NO_VAL;
	pthread_mutex_lock(&job_table.mutex);
	age_ms = now - job_table.walked_at_ms;
	room = room_beside(job_table.walked + job_table.taken);
	if (!job_table.walked_at_ms || (age_ms >= recount_after_ms(room))) {
		job_table.walked = job_table.taken = 0;
		banking_list_walk(job_list, count_tasks, &job_table.walked);
		job_table.walked_at_ms = now;
		room = room_beside(job_table.walked);
	}
	pthread_mutex_unlock(&job_table.mutex);
	return room;
}

extern void took_room_in_job_table(uint32_t tasks)
{
	pthread_mutex_lock(&job_table.mutex);
	job_table.taken += tasks ? tasks : 1;
	pthread_mutex_unlock(&job_table.mutex);
}

extern void decode_update(const job_desc_msg_t *job_desc, const job_record_t *job_ptr, uint32_t submit_uid,
			  bool operator_caller, decoded_job *owned, banking_update *update)
{
	banking_submission *wanted = &update->wanted;
	const char *partition = job_desc->partition, *qos = job_desc->qos;

	memset(owned, 0, sizeof(*owned));
	memset(update, 0, sizeof(*update));
	update->job_id = job_ptr->job_id;
	update->array_job_id = job_ptr->array_job_id;
	update->array_task_id = job_ptr->array_task_id;
	update->het_job_id = job_ptr->het_job_id;
	update->restart_count = job_ptr->restart_cnt;
	update->job_state = job_ptr->job_state;
	update->task_count = tasks_of_record(job_ptr);
	update->total_cpus = IS_JOB_PENDING(job_ptr) ? 0 : job_ptr->total_cpus;
	update->tres_alloc = owned->tres_alloc = IS_JOB_PENDING(job_ptr) ? NULL : banking_tres_alloc(job_ptr);
	update->operator_caller = operator_caller;
	update->submit_time = job_ptr->details ? job_ptr->details->submit_time : 0;
	update->start_time = job_ptr->start_time;

	wanted->room = NO_VAL;
	wanted->admin_comment = job_ptr->admin_comment;
	wanted->name = job_ptr->name;
	wanted->submit_user_id = submit_uid;
	wanted->job_user_id = job_ptr->user_id;
	wanted->time_limit_min = time_limit_of_update(job_desc, job_ptr);
	wanted->time_min_min = OVERLAY(job_desc->time_min, NO_VAL, job_ptr->time_min ? job_ptr->time_min : NO_VAL);
	wanted->het_job_offset = job_ptr->het_job_id ? job_ptr->het_job_offset : NO_VAL;
	wanted->min_cpus = wanted->max_cpus = wanted->min_nodes = wanted->max_nodes = wanted->num_tasks = NO_VAL;
	wanted->cpus_per_task = wanted->ntasks_per_node = wanted->ntasks_per_tres = wanted->pn_min_cpus = NO_VAL16;
	wanted->shared = wanted->core_spec = NO_VAL16;
	wanted->overcommit = NO_VAL8;
	wanted->pn_min_memory = NO_VAL64;
	overlay_layout(job_desc, job_ptr->details, wanted);
	if (job_ptr->details)
		overlay_details(job_desc, job_ptr, wanted);
	if (job_ptr->details && IS_JOB_PENDING(job_ptr))
		cpus_of_more_nodes(job_desc, job_ptr->details, wanted);
	wanted->tres_per_job = OVERLAY(job_desc->tres_per_job, NULL, job_ptr->tres_per_job);
	wanted->tres_per_node = OVERLAY(job_desc->tres_per_node, NULL, job_ptr->tres_per_node);
	wanted->tres_per_socket = OVERLAY(job_desc->tres_per_socket, NULL, job_ptr->tres_per_socket);
	wanted->tres_per_task = OVERLAY(job_desc->tres_per_task, NULL, job_ptr->tres_per_task);
	wanted->cpus_per_tres = OVERLAY(job_desc->cpus_per_tres, NULL, job_ptr->cpus_per_tres);
	wanted->mem_per_tres = OVERLAY(job_desc->mem_per_tres, NULL, job_ptr->mem_per_tres);

	/* a running job is in one partition, whatever list it was submitted to */
	if (!partition || !partition[0])
		partition = (!IS_JOB_PENDING(job_ptr) && job_ptr->part_ptr) ? job_ptr->part_ptr->name :
									       job_ptr->partition;
	if (!qos)
		qos = job_ptr->qos_ptr ? job_ptr->qos_ptr->name : NULL;
	decode_partitions(partition, NULL, owned, wanted);
	decode_association((job_desc->account && job_desc->account[0]) ? job_desc->account : job_ptr->account, qos,
			   owned, wanted);
}

extern void decoded_job_free(decoded_job *owned)
{
	partition_facts **facts = owned->many_facts ? owned->many_facts : owned->few_facts;

	for (uint32_t i = 0; i < owned->facts_count; i++)
		release_facts(facts[i]);
	xfree(owned->many_facts);
	xfree(owned->tres_alloc);
	xfree(owned->user_name);
	xfree(owned->account);
	xfree(owned->qos);
	xfree(owned->partition_names);
	xfree(owned->many);
}
