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

typedef struct {
	char *user_name;
	char *account;
	char *qos;
	char *partition_names;		/* the comma list, cut at its commas */
	banking_partition few[BANKING_FEW_PARTITIONS];
	banking_partition *many;	/* in use if there are more than a few */
} decoded_job;

extern void decode_submission(const job_desc_msg_t *job_desc, uint32_t submit_uid, decoded_job *owned,
			      banking_submission *submission);

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
