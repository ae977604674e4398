/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * banking.h - what crosses between the C shims and the Python policy engine.
 *
 * Plain C types only: no Slurm type, no Python type. The shims fill these structs while slurmctld's locks are held and
 * call once; Python copies what it needs before it returns. Every pointer belongs to the caller and is valid for the
 * duration of the call; a string may be NULL. Slurm's sentinels (NO_VAL, INFINITE, NO_VAL16, ...) are passed as they
 * are: slurm_banking/boundary/convert.py is the one place that knows them.
 *
 * This header is also read by cffi (build_plugins.py): keep it free of anything but declarations, comments and the
 * #define lines of plain integers.
 */
#ifndef SLURM_BANKING_H
#define SLURM_BANKING_H

#include <stdint.h>

#define BANKING_MESSAGE_SIZE 2048
#define BANKING_TOKEN_SIZE 192
#define BANKING_SHAPES_MAX 16

/* verdicts; a reply starts undecided, and only Python changes that; no room: slurmctld's table is full, try again */
#define BANKING_UNDECIDED 0
#define BANKING_ACCEPTED 1
#define BANKING_REFUSED 2
#define BANKING_NO_ROOM 3

/* on_plugin_error */
#define BANKING_ON_ERROR_ACCEPT 0
#define BANKING_ON_ERROR_REJECT 1
#define BANKING_ON_ERROR_ABORT 2

/* log levels for banking_log */
#define BANKING_LOG_ERROR 1
#define BANKING_LOG_INFO 2
#define BANKING_LOG_DEBUG 3

/* Who loads us: filled once in init(). */
typedef struct {
	const char *config_path;	/* bank-config.toml beside slurm.conf */
	const char *cluster;		/* ClusterName */
	const char *plugin;		/* "job_submit" or "jobcomp" */
	uint32_t slurm_user_id;
	uint32_t slurm_version;		/* SLURM_VERSION_NUMBER built against */
} banking_host;

/* Nodes of a partition that are alike, as slurm.conf describes them. */
typedef struct {
	uint32_t count;			/* nodes of this shape */
	uint32_t cpus;
	uint32_t sockets;		/* of the whole node, all boards together */
	uint32_t cores;			/* per socket */
	uint32_t threads;		/* per core */
	uint32_t core_spec;		/* CoreSpecCount, or as many cores as CpuSpecList has */
	uint64_t memory_mb;		/* RealMemory */
	uint64_t memory_spec_mb;	/* MemSpecLimit */
	const char *gres;		/* as Slurm shows it, "gpu:a100:4(S:0-1),gpu:t4:2"; NULL: none */
} banking_node_shape;

/* What select hands out: banking_partition.unit */
#define BANKING_UNIT_CPU 0
#define BANKING_UNIT_CORE 1
#define BANKING_UNIT_SOCKET 2
#define BANKING_UNIT_NODE 3

/* One candidate partition of a job, as slurmctld knows it. */
typedef struct {
	const char *name;
	uint64_t generation;		/* another one whenever anything below may have changed; never used twice */
	uint32_t found;			/* 0: slurmctld has no such partition; the rest is zero */
	uint32_t default_time_min;	/* NO_VAL: none; INFINITE: unlimited */
	uint32_t max_time_min;		/* INFINITE: unlimited */
	uint32_t exclusive;		/* 1: whole nodes always (OverSubscribe=EXCLUSIVE) */
	uint32_t max_cpus_per_node;	/* MaxCPUsPerNode; INFINITE: none */
	uint32_t max_nodes;		/* MaxNodes per job; INFINITE: none */
	uint32_t total_cpus;
	uint32_t total_nodes;
	uint32_t unit;			/* BANKING_UNIT_..., the partition's own SelectTypeParameters if it has any */
	uint32_t memory_tracked;	/* 1: memory is a consumable resource */
	uint32_t one_task_per_core;	/* CR_ONE_TASK_PER_CORE */
	uint64_t def_mem_per_cpu;	/* as in Slurm: MB per node, or per CPU with the highest bit set; 0: none */
	uint64_t max_mem_per_cpu;	/* likewise; a job that asks for more per CPU is given more CPUs; 0: none */
	uint64_t def_cpu_per_gpu;	/* JobDefaults, the partition's, else the cluster's; NO_VAL64: none */
	uint64_t def_mem_per_gpu;	/* likewise, MB */
	const char *billing_weights;	/* TRESBillingWeights as configured; NULL: billing is the number of CPUs */
	uint32_t billing_max;		/* PriorityFlags=MAX_TRES */
	uint32_t slurm_version;		/* SLURM_VERSION_NUMBER: how CPUs are dealt out depends on it */
	uint32_t shape_count;
	const banking_node_shape *shapes;	/* at most BANKING_SHAPES_MAX; the rest is in the last, as large as the largest */
} banking_partition;

/*
 * A job as it was asked for, defaults resolved by C. For an update: as the job would be if Slurm did what was asked.
 */
typedef struct {
	const char *user_name;		/* from the association manager; NULL: not known */
	const char *account;		/* resolved: what was asked for, else the user's default; NULL: none */
	const char *qos;		/* what was asked for, else the association's default; NULL: none */
	const char *array_inx;		/* "0-15:4%3"; NULL: not an array */
	const char *admin_comment;
	const char *name;		/* the job's name */
	uint32_t submit_user_id;	/* who calls */
	uint32_t job_user_id;		/* whose job */
	uint32_t room;			/* jobs and array tasks that slurmctld's table has room for (MaxJobCount); NO_VAL: not known */
	uint32_t associated;		/* 1: this user and account (and partition, if so defined) have an association */
	uint32_t time_limit_min;	/* NO_VAL: not given; INFINITE */
	uint32_t time_min_min;
	uint32_t min_cpus;
	uint32_t max_cpus;
	uint32_t min_nodes;
	uint32_t max_nodes;
	uint32_t num_tasks;
	uint32_t het_job_offset;	/* NO_VAL: not a component */
	uint16_t cpus_per_task;
	uint16_t ntasks_per_node;
	uint16_t ntasks_per_socket;
	uint16_t ntasks_per_core;
	uint16_t ntasks_per_tres;	/* tasks per GPU */
	uint16_t sockets_per_node;
	uint16_t cores_per_socket;
	uint16_t pn_min_cpus;		/* --mincpus */
	uint16_t shared;		/* 0: --exclusive; NO_VAL16: not given */
	uint16_t threads_per_core;
	uint16_t core_spec;
	uint8_t overcommit;
	uint64_t pn_min_memory;
	const char *tres_per_job;
	const char *tres_per_node;
	const char *tres_per_socket;
	const char *tres_per_task;
	const char *cpus_per_tres;	/* --cpus-per-gpu */
	const char *mem_per_tres;	/* --mem-per-gpu */
	uint32_t partition_count;
	const banking_partition *partitions;	/* never empty: the default partition if none was asked for */
} banking_submission;

/* A wanted change of an existing job; only sent when the caller may touch it and something that costs would change. */
typedef struct {
	banking_submission wanted;
	uint32_t job_id;
	uint32_t array_job_id;		/* 0: not an array */
	uint32_t array_task_id;		/* NO_VAL: the array's record of tasks not yet started, or not an array */
	uint32_t het_job_id;		/* 0: not a het job */
	uint32_t restart_count;
	uint32_t job_state;		/* raw, with flags */
	uint32_t task_count;		/* tasks in this record; 1 for ordinary jobs */
	uint32_t total_cpus;		/* allocated, 0 while pending */
	const char *tres_alloc;		/* as in banking_run, of a job that has started; else NULL */
	uint32_t operator_caller;	/* 1: root, SlurmUser, operator, administrator or coordinator */
	int64_t submit_time;
	int64_t start_time;
} banking_update;

/* A run that ended (or, from 25.05 on, one that started). */
typedef struct {
	const char *account;
	const char *partition;		/* the one it ran in */
	const char *qos;
	const char *user_name;
	const char *admin_comment;
	const char *nodes;		/* NULL: it never had any */
	const char *tres_alloc;		/* exact, "cpu=4,mem=8000M,node=1,billing=4,gres/gpu=2,gres/gpu:a100=2" */
	const char *name;
	uint32_t job_id;
	uint32_t array_job_id;
	uint32_t array_task_id;
	uint32_t het_job_id;
	uint32_t het_job_offset;
	uint32_t user_id;
	uint32_t restart_count;
	uint32_t job_state;		/* raw, with flags; see convert.py */
	uint32_t state_reason;
	uint32_t task_count;		/* pending array cancelled whole: its tasks; else 1 */
	uint32_t total_cpus;
	uint32_t node_count;
	uint32_t time_limit_min;
	uint32_t exit_code;
	uint32_t requeue;		/* 1: Slurm will run it again (JOB_REQUEUE set) */
	uint32_t cancelled_by_admin;	/* 1: root, SlurmUser or an operator or administrator ended it, not the job's user */
	int64_t submit_time;		/* unix seconds, all of these */
	int64_t start_time;
	int64_t end_time;
	int64_t suspend_time;
	int64_t pre_suspend_s;		/* seconds run before the last suspend */
	int64_t resize_time;
} banking_run;

typedef struct {
	int32_t verdict;			/* BANKING_UNDECIDED until Python says otherwise */
	int32_t elapsed_us;
	uint32_t tasks;				/* that an accepted submission adds to slurmctld's table; 0: not known */
	char message[BANKING_MESSAGE_SIZE];	/* for the user; may hold several lines; "" is none */
	char token[BANKING_TOKEN_SIZE];		/* to append to admin_comment; "" is none */
} banking_reply;

#endif
