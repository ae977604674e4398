/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * decode.h - from Slurm's structs to banking.h's, under slurmctld's locks and without the GIL.
 *
 * What Slurm would fill in later (default partition, account, QOS) is settled here through slurmctld's own records.
 * Strings in the results are borrowed from Slurm's structs, or owned by the decoded_job and freed with it.
 */
#ifndef BANKING_DECODE_H
#define BANKING_DECODE_H

#include "slurm_compat.h"

#include "banking.h"

#define BANKING_FEW_PARTITIONS 8

typedef struct partition_facts partition_facts;

typedef struct {
	char *user_name;
	char *account;
	char *qos;
	char *tres_alloc;
	char *partition_names;		/* the comma list, cut at its commas */
	banking_partition few[BANKING_FEW_PARTITIONS];
	banking_partition *many;	/* in use if there are more than a few */
	uint32_t facts_count;		/* references to the facts of as many partitions; NULL where there is no such one */
	partition_facts *few_facts[BANKING_FEW_PARTITIONS];
	partition_facts **many_facts;
} decoded_job;

/*
 * Is a text of this job longer than any that Slurm takes (up to 22.05 from 1 to 4 KiB, which it checks only after the
 * plugins)? Nobody should hold slurmctld's locks with a megabyte of them.
 */
extern bool text_too_long(const job_desc_msg_t *job_desc);

extern void decode_submission(const job_desc_msg_t *job_desc, uint32_t submit_uid, decoded_job *owned,
			      banking_submission *submission);

/*
 * How many more jobs and array tasks slurmctld takes. It refuses what has no room only after the plugin, and sbatch then
 * tries again: what was set aside each time would add up. The table is walked once a minute while there is room for
 * the largest array (MaxArraySize), then once a second, and while it seems full every 50 ms at most; between two walks
 * the accepted ones are added to what the last one found.
 */
extern uint32_t room_in_job_table(void);
extern void took_room_in_job_table(uint32_t tasks);

/* Does this update set anything that the price depends on? */
extern bool update_could_cost(const job_desc_msg_t *job_desc);

/* May this user change this job, by the rules that Slurm applies (up to 22.05 only after job_modify)? */
extern bool may_update(const job_desc_msg_t *job_desc, const job_record_t *job_ptr, uint32_t submit_uid,
		       bool *operator_caller);

/* The job as it would be if Slurm did all that was asked. */
extern void decode_update(const job_desc_msg_t *job_desc, const job_record_t *job_ptr, uint32_t submit_uid,
			  bool operator_caller, decoded_job *owned, banking_update *update);

extern void decoded_job_free(decoded_job *owned);

#endif
