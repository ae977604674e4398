/* SPDX-License-Identifier: BSD-3-Clause */
#include "decode.h"

#include <ctype.h>

#define PARTITIONS_MAX 1000
#define NODE_FACTS_CACHED 64
#define NODE_FACTS_AGE_S 300

static char *lower_copy(const char *text)
{
	char *copy = (text && text[0]) ? xstrdup(text) : NULL;

	for (char *c = copy; c && *c; c++)
		*c = (char) tolower((unsigned char) *c);
	return copy;
}

/*
 * Facts of a partition that need a walk over its nodes, kept until slurmctld's partition table changes (a node's
 * configuration only changes with it), since a submission should not walk thousands of nodes.
 */
typedef struct {
	char name[64];
	time_t last_update;
	time_t made;
	uint32_t cpus_min;
	uint32_t threads_max;
	uint64_t memory_max_mb;
} node_facts;

static void walk_nodes(const part_record_t *part_ptr, node_facts *facts)
{
	int64_t first, last;

	if (!part_ptr->node_bitmap || ((first = bit_ffs(part_ptr->node_bitmap)) < 0))
		return;
	last = bit_fls(part_ptr->node_bitmap);
	for (int64_t i = first; (i <= last) && (i < node_record_count); i++) {
		const node_record_t *node_ptr;
		const config_record_t *config_ptr;

		if (!bit_test(part_ptr->node_bitmap, i))
			continue;
		node_ptr = BANKING_NODE(i);
		if (!node_ptr || !(config_ptr = node_ptr->config_ptr))
			continue;
		if (!facts->cpus_min || (config_ptr->cpus < facts->cpus_min))
			facts->cpus_min = config_ptr->cpus;
		if (config_ptr->threads > facts->threads_max)
			facts->threads_max = config_ptr->threads;
		if (config_ptr->real_memory > facts->memory_max_mb)
			facts->memory_max_mb = config_ptr->real_memory;
	}
}

static node_facts facts_of_nodes(const part_record_t *part_ptr)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static node_facts cache[NODE_FACTS_CACHED];
	static unsigned int next = 0;
	node_facts facts = { .last_update = last_part_update, .made = time(NULL) };
	node_facts *slot = NULL;
	bool cacheable = strlen(part_ptr->name) < sizeof(facts.name);

	pthread_mutex_lock(&mutex);
	for (unsigned int i = 0; cacheable && !slot && (i < NODE_FACTS_CACHED); i++) {
		if (!strcmp(cache[i].name, part_ptr->name))
			slot = &cache[i];
	}
	if (slot && (slot->last_update == facts.last_update) && (facts.made - slot->made < NODE_FACTS_AGE_S) &&
	    (facts.made >= slot->made)) {
		facts = *slot;
	} else {
		walk_nodes(part_ptr, &facts);
		if (cacheable) {
			strcpy(facts.name, part_ptr->name);
			if (!slot)
				slot = &cache[next++ % NODE_FACTS_CACHED];
			*slot = facts;
		}
	}
	pthread_mutex_unlock(&mutex);
	return facts;
}

static void decode_partition(char *name, const part_record_t *part_ptr, banking_partition *partition)
{
	node_facts facts;

	memset(partition, 0, sizeof(*partition));
	partition->name = name;
	if (!part_ptr)
		return;
	facts = facts_of_nodes(part_ptr);
	partition->found = 1;
	partition->default_time_min = part_ptr->default_time;
	partition->max_time_min = part_ptr->max_time;
	partition->exclusive = (part_ptr->max_share == 0) ||
			       (slurm_conf.select_type && strstr(slurm_conf.select_type, "linear"));
	partition->node_cpus_max = part_ptr->max_cpu_cnt;
	partition->node_cpus_min = facts.cpus_min;
	partition->max_cpus_per_node = part_ptr->max_cpus_per_node;
	partition->threads_per_core_max = facts.threads_max;
	partition->total_cpus = part_ptr->total_cpus;
	partition->total_nodes = part_ptr->total_nodes;
	partition->def_mem_per_cpu =
		part_ptr->def_mem_per_cpu ? part_ptr->def_mem_per_cpu : slurm_conf.def_mem_per_cpu;
	partition->max_mem_per_cpu =
		part_ptr->max_mem_per_cpu ? part_ptr->max_mem_per_cpu : slurm_conf.max_mem_per_cpu;
	partition->node_memory_max_mb = facts.memory_max_mb;
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
	uint32_t count = 0, most = 1;
	char *save = NULL;

	submission->partitions = partitions;
	submission->partition_count = 1;
	if (!names || !names[0]) {
		part_record_t *part_ptr = partition_when_none_asked(reservation);

		decode_partition(part_ptr ? part_ptr->name : "", part_ptr, partitions);
		return;
	}
	for (const char *c = names; *c; c++)
		most += (*c == ',');
	if (most > PARTITIONS_MAX)
		most = PARTITIONS_MAX;
	if (most > BANKING_FEW_PARTITIONS)
		partitions = owned->many = xcalloc(most, sizeof(banking_partition));
	owned->partition_names = xstrdup(names);
	for (char *name = strtok_r(owned->partition_names, ",", &save); name && (count < most);
	     name = strtok_r(NULL, ",", &save))
		decode_partition(name, find_part_record(name), &partitions[count++]);
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
	banking_hostlist hosts;
	uint32_t count = 0;

	if (!req_nodes || !req_nodes[0] || !(hosts = slurm_hostlist_create((char *) req_nodes)))
		return min_nodes;
	count = (uint32_t) slurm_hostlist_count(hosts);
	slurm_hostlist_destroy(hosts);
	return ((min_nodes == NO_VAL) || (min_nodes < count)) ? count : min_nodes;
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
	submission->ntasks_per_tres = job_desc->ntasks_per_tres;
	submission->pn_min_cpus = job_desc->pn_min_cpus;
	submission->shared = job_desc->shared;
	submission->threads_per_core = job_desc->threads_per_core;
	submission->core_spec = job_desc->core_spec;
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
	       (job_desc->ntasks_per_node != NO_VAL16) || (job_desc->ntasks_per_tres != NO_VAL16) ||
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
	*operator_caller = assoc_mgr_is_user_acct_coord(acct_db_conn, submit_uid, job_ptr->account) &&
			   (!job_desc->account ||
			    assoc_mgr_is_user_acct_coord(acct_db_conn, submit_uid, job_desc->account));
	return *operator_caller;
}

/* A record says 0 where a job description says NO_VAL. */
#define UNSET_IF_ZERO(value, unset) ((value) ? (value) : (unset))
#define OVERLAY(wanted, unset, current) (((wanted) != (unset)) ? (wanted) : (current))

/* EndTime=... moves the limit by the difference (as Slurm's _update_job). */
static uint32_t time_limit_of_update(const job_desc_msg_t *job_desc, const job_record_t *job_ptr)
{
	uint32_t limit = OVERLAY(job_desc->time_limit, NO_VAL, job_ptr->time_limit);

	if (job_desc->end_time && (job_desc->time_limit == NO_VAL) && (limit != INFINITE) && (limit != NO_VAL) &&
	    (job_desc->end_time > job_ptr->end_time))
		limit += (uint32_t) ((job_desc->end_time - job_ptr->end_time + 59) / 60);
	return limit;
}

static uint16_t sharing_of_record(const struct job_details *details)
{
	if ((details->whole_node == WHOLE_NODE_REQUIRED) || (details->share_res == 0))
		return 0;
	if (details->whole_node == WHOLE_NODE_USER)
		return 2;
	if (details->whole_node == WHOLE_NODE_MCS)
		return 3;
	return (details->share_res == 1) ? 1 : NO_VAL16;
}

static void overlay_details(const job_desc_msg_t *job_desc, const struct job_details *details,
			    banking_submission *wanted)
{
	uint16_t threads = NO_VAL16;

	if (details->mc_ptr && (details->mc_ptr->threads_per_core != INFINITE16))
		threads = details->mc_ptr->threads_per_core;
	wanted->min_cpus = OVERLAY(job_desc->min_cpus, NO_VAL, details->min_cpus);
	wanted->max_cpus = OVERLAY(job_desc->max_cpus, NO_VAL, details->max_cpus);
	wanted->min_nodes = at_least_required_nodes(OVERLAY(job_desc->min_nodes, NO_VAL, details->min_nodes),
						    job_desc->req_nodes ? job_desc->req_nodes : details->req_nodes);
	wanted->max_nodes = OVERLAY(job_desc->max_nodes, NO_VAL, UNSET_IF_ZERO(details->max_nodes, NO_VAL));
	wanted->num_tasks = OVERLAY(job_desc->num_tasks, NO_VAL, UNSET_IF_ZERO(details->num_tasks, NO_VAL));
	wanted->cpus_per_task = OVERLAY(job_desc->cpus_per_task, NO_VAL16, details->cpus_per_task);
	wanted->ntasks_per_node = OVERLAY(job_desc->ntasks_per_node, NO_VAL16, UNSET_IF_ZERO(details->ntasks_per_node, NO_VAL16));
	wanted->ntasks_per_tres = OVERLAY(job_desc->ntasks_per_tres, NO_VAL16, UNSET_IF_ZERO(details->ntasks_per_tres, NO_VAL16));
	wanted->pn_min_cpus = OVERLAY(job_desc->pn_min_cpus, NO_VAL16,
				      UNSET_IF_ZERO((uint16_t) details->pn_min_cpus, NO_VAL16));
	wanted->shared = OVERLAY(job_desc->shared, NO_VAL16, sharing_of_record(details));
	wanted->threads_per_core = OVERLAY(job_desc->threads_per_core, NO_VAL16, threads);
	wanted->core_spec = OVERLAY(job_desc->core_spec, NO_VAL16, details->core_spec);
	wanted->overcommit = OVERLAY(job_desc->overcommit, NO_VAL8, details->overcommit);
	wanted->pn_min_memory = OVERLAY(job_desc->pn_min_memory, NO_VAL64, details->pn_min_memory);
}

/* The record of an array stands for all its tasks that have no record of their own. */
static uint32_t tasks_of_record(const job_record_t *job_ptr)
{
	if (job_ptr->array_recs && (job_ptr->array_task_id == NO_VAL) && job_ptr->array_recs->task_cnt)
		return job_ptr->array_recs->task_cnt;
	return 1;
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
	update->operator_caller = operator_caller;
	update->submit_time = job_ptr->details ? job_ptr->details->submit_time : 0;
	update->start_time = job_ptr->start_time;

	wanted->admin_comment = job_ptr->admin_comment;
	wanted->name = job_ptr->name;
	wanted->submit_user_id = submit_uid;
	wanted->job_user_id = job_ptr->user_id;
	wanted->time_limit_min = time_limit_of_update(job_desc, job_ptr);
	wanted->time_min_min = OVERLAY(job_desc->time_min, NO_VAL, job_ptr->time_min ? job_ptr->time_min : NO_VAL);
	wanted->het_job_offset = job_ptr->het_job_id ? job_ptr->het_job_offset : NO_VAL;
	wanted->min_cpus = wanted->max_cpus = wanted->min_nodes = wanted->max_nodes = wanted->num_tasks = NO_VAL;
	wanted->cpus_per_task = wanted->ntasks_per_node = wanted->ntasks_per_tres = wanted->pn_min_cpus = NO_VAL16;
	wanted->shared = wanted->threads_per_core = wanted->core_spec = NO_VAL16;
	wanted->overcommit = NO_VAL8;
	wanted->pn_min_memory = NO_VAL64;
	if (job_ptr->details)
		overlay_details(job_desc, job_ptr->details, wanted);
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
	xfree(owned->user_name);
	xfree(owned->account);
	xfree(owned->qos);
	xfree(owned->partition_names);
	xfree(owned->many);
}
