/* SPDX-License-Identifier: BSD-3-Clause */
#include "tres_alloc.h"

/*
 * The record's own readable text (tres_fmt_alloc_str) has memory in rounded units; its text by TRES number is exact. The
 * array of counts would do as well, but for a moment its length differs from the list's when a TRES is added.
 */
extern char *banking_tres_alloc(const job_record_t *job_ptr)
{
	assoc_mgr_lock_t locks = { .tres = READ_LOCK };
	char *text;

	/* without nodes this would be left from an earlier run */
	if (!job_ptr->nodes || !job_ptr->nodes[0] || !job_ptr->tres_alloc_str || !job_ptr->tres_alloc_str[0])
		return NULL;
	assoc_mgr_lock(&locks);
	text = slurmdb_make_tres_string_from_simple(job_ptr->tres_alloc_str, assoc_mgr_tres_list, NO_VAL,
						    CONVERT_NUM_UNIT_NO, TRES_STR_FLAG_SORT_ID, NULL);
	assoc_mgr_unlock(&locks);
	return text;
}
