/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slurm_compat.h - Slurm's headers, and every difference between its releases (20.11 to 26.05).
 *
 * No other file has an #if on the Slurm version.
 */
#ifndef BANKING_SLURM_COMPAT_H
#define BANKING_SLURM_COMPAT_H

#include "config.h"

/* First: maps error, xstrdup, ... to their slurm_ aliases. A bare "error" would bind to glibc's error(3). */
#include "src/common/slurm_xlator.h"

#include "slurm/slurm.h"
#include "slurm/slurm_errno.h"
#include "slurm/slurmdb.h"

#include "src/common/assoc_mgr.h"
#include "src/common/bitstring.h"
#include "src/common/list.h"
#include "src/common/log.h"
#include "src/common/read_config.h"
#include "src/common/slurm_protocol_api.h"
#include "src/common/slurmdb_defs.h"
#include "src/common/plugin.h"
#include "src/common/uid.h"
#include "src/common/xmalloc.h"
#include "src/common/xstring.h"
#include "src/slurmctld/slurmctld.h"
#include "src/slurmctld/reservation.h"

#define BANKING_SINCE(major, minor) (SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(major, minor, 0))

/* job_modify can answer the user from 23.02 on. */
#if BANKING_SINCE(23, 2)
#define JOB_MODIFY_PARAMETERS \
	job_desc_msg_t *job_desc, job_record_t *job_ptr, uint32_t submit_uid, char **err_msg
#define JOB_MODIFY_ARGUMENTS job_desc, job_ptr, submit_uid, err_msg
#define JOB_MODIFY_ERR_MSG err_msg
#else
#define JOB_MODIFY_PARAMETERS job_desc_msg_t *job_desc, job_record_t *job_ptr, uint32_t submit_uid
#define JOB_MODIFY_ARGUMENTS job_desc, job_ptr, submit_uid
#define JOB_MODIFY_ERR_MSG NULL
#endif

/* The table of nodes: an array of records, from 22.05 on an array of pointers (with holes). */
#if BANKING_SINCE(22, 5)
#define BANKING_NODE(index) (node_record_table_ptr[index])
#else
#define BANKING_NODE(index) (&node_record_table_ptr[index])
#endif

/* The rule by which Slurm picks a QOS when none is asked for. */
#if BANKING_SINCE(22, 5)
#define banking_default_qos(assoc_ptr, qos_rec) assoc_mgr_get_default_qos_info(assoc_ptr, qos_rec)
#else
#define banking_default_qos(assoc_ptr, qos_rec) \
	do { \
		if (assoc_ptr) \
			(qos_rec)->id = (assoc_ptr)->def_qos_id; \
	} while (0)
#endif

/* A list is a "List" (a pointer type) before 23.11 and a "list_t *" since; both are this. */
#if BANKING_SINCE(23, 11)
typedef list_t *banking_list;
#else
typedef List banking_list;
#endif

/* What select hands out: the bits stayed, their names did not. */
#ifdef CR_CPU
#define BANKING_CR_CPU CR_CPU
#define BANKING_CR_SOCKET CR_SOCKET
#define BANKING_CR_CORE CR_CORE
#define BANKING_CR_MEMORY CR_MEMORY
#define BANKING_CR_ONE_TASK_PER_CORE CR_ONE_TASK_PER_CORE
#else
#define BANKING_CR_CPU SELECT_CPU
#define BANKING_CR_SOCKET SELECT_SOCKET
#define BANKING_CR_CORE SELECT_CORE
#define BANKING_CR_MEMORY SELECT_MEMORY
#define BANKING_CR_ONE_TASK_PER_CORE SELECT_ONE_TASK_PER_CORE
#endif

/* select/cray_aries was linear unless told otherwise; the bits left one after the other (23.11, 24.05). */
#if defined(CR_OTHER_CONS_RES)
#define BANKING_CR_OTHER (CR_OTHER_CONS_RES | CR_OTHER_CONS_TRES)
#elif defined(CR_OTHER_CONS_TRES)
#define BANKING_CR_OTHER CR_OTHER_CONS_TRES
#else
#define BANKING_CR_OTHER 0
#endif
#define banking_select_linear() \
	(slurm_conf.select_type && \
	 (strstr(slurm_conf.select_type, "linear") || \
	  (strstr(slurm_conf.select_type, "cray") && !(slurm_conf.select_type_param & BANKING_CR_OTHER))))

/* Its bit stayed, its name did not. */
#ifdef CTL_CONF_ASRU
#define BANKING_CONF_SPEC_CORES CTL_CONF_ASRU
#else
#define BANKING_CONF_SPEC_CORES CONF_FLAG_ASRU
#endif

/*
 * Whether somebody coordinates an account. Some release up to 24.11 began to ask whether the caller holds assoc_mgr's
 * locks (never here), so the header itself is asked, and not the version.
 */
typedef bool banking_coordinator_asked(void *, uint32_t, char *);
typedef bool banking_coordinator_asked_locked(void *, uint32_t, char *, bool);
#define BANKING_COORDINATOR_LOCKED \
	__builtin_types_compatible_p(__typeof__(assoc_mgr_is_user_acct_coord), banking_coordinator_asked_locked)
#define banking_is_coordinator(uid, account) \
	(BANKING_COORDINATOR_LOCKED ? \
		 __builtin_choose_expr(BANKING_COORDINATOR_LOCKED, assoc_mgr_is_user_acct_coord, \
				       (banking_coordinator_asked_locked *) NULL)(acct_db_conn, uid, account, false) : \
		 __builtin_choose_expr(BANKING_COORDINATOR_LOCKED, (banking_coordinator_asked *) NULL, \
				       assoc_mgr_is_user_acct_coord)(acct_db_conn, uid, account))
_Static_assert(BANKING_COORDINATOR_LOCKED ||
		       __builtin_types_compatible_p(__typeof__(assoc_mgr_is_user_acct_coord), banking_coordinator_asked),
	       "assoc_mgr_is_user_acct_coord() has parameters that no release known here has");

/* Loading a plugin from a file asks, from some release up to 25.11 on, whether it is required: what fails is an error as before. */
typedef int banking_plugin_loader_required(plugin_handle_t *, const char *, bool);
#define BANKING_PLUGIN_REQUIRED \
	__builtin_types_compatible_p(__typeof__(plugin_load_from_file), banking_plugin_loader_required)
#define banking_plugin_load(handle, path) \
	(BANKING_PLUGIN_REQUIRED ? \
		 (int) __builtin_choose_expr(BANKING_PLUGIN_REQUIRED, plugin_load_from_file, \
					     (banking_plugin_loader_required *) NULL)(handle, path, true) : \
		 (int) __builtin_choose_expr(BANKING_PLUGIN_REQUIRED, (int (*)(plugin_handle_t *, const char *)) NULL, \
					     plugin_load_from_file)(handle, path))

/* Why a plugin cannot be loaded had numbers of its own once, and words (slurm_xlator.h maps them where they are). */
#ifdef plugin_strerror
#define banking_plugin_error(rc) plugin_strerror((plugin_err_t) (rc))
#else
#define banking_plugin_error(rc) slurm_strerror(rc)
#endif

/* Who ended a job, where somebody did: -1 in whatever type it has is nobody. */
#define BANKING_NOBODY ((uint32_t) -1)
#define banking_requid(job_ptr) ((uint32_t) (job_ptr)->requid)

/* A walk over a list that changes nothing. */
#if BANKING_SINCE(21, 8)
#define banking_list_walk list_for_each_ro
#else
#define banking_list_walk list_for_each
#endif

/* Names, parameters and number of jobcomp's functions. */
#if BANKING_SINCE(21, 8)
#define JOBCOMP_SET_LOCATION jobcomp_p_set_location
#define JOBCOMP_GET_JOBS jobcomp_p_get_jobs
#else
#define JOBCOMP_SET_LOCATION slurm_jobcomp_set_location
#define JOBCOMP_GET_JOBS slurm_jobcomp_get_jobs
#endif

#if BANKING_SINCE(25, 5)
#define JOBCOMP_RECORD_END jobcomp_p_record_job_end
#define JOBCOMP_RECORD_PARAMETERS job_record_t *job_ptr, uint32_t event
#define JOBCOMP_RECORD_IGNORE ((void) event)
#define JOBCOMP_HAS_START 1
#elif BANKING_SINCE(21, 8)
#define JOBCOMP_RECORD_END jobcomp_p_log_record
#define JOBCOMP_RECORD_PARAMETERS job_record_t *job_ptr
#define JOBCOMP_RECORD_IGNORE ((void) 0)
#define JOBCOMP_HAS_START 0
#else
#define JOBCOMP_RECORD_END slurm_jobcomp_log_record
#define JOBCOMP_RECORD_PARAMETERS job_record_t *job_ptr
#define JOBCOMP_RECORD_IGNORE ((void) 0)
#define JOBCOMP_HAS_START 0
#endif

#if BANKING_SINCE(23, 2)
#define JOBCOMP_SET_LOCATION_PARAMETERS void
#define JOBCOMP_SET_LOCATION_IGNORE ((void) 0)
#else
#define JOBCOMP_SET_LOCATION_PARAMETERS char *location
#define JOBCOMP_SET_LOCATION_IGNORE ((void) location)
#endif

/* struct job_details, and later job_details_t */
typedef __typeof__(*((job_record_t *) 0)->details) banking_job_details;

/* The same of another plugin, once that is loaded: what to look up, and what it is called with. */
#define BANKING_QUOTE_(text) #text
#define BANKING_QUOTE(name) BANKING_QUOTE_(name)
#if BANKING_SINCE(23, 2)
#define JOBCOMP_SET_LOCATION_ARGUMENT
#else
#define JOBCOMP_SET_LOCATION_ARGUMENT location
#endif
#if JOBCOMP_HAS_START
#define JOBCOMP_RECORD_ARGUMENTS job_ptr, event
#define JOBCOMP_SYMBOLS \
	BANKING_QUOTE(JOBCOMP_SET_LOCATION), BANKING_QUOTE(JOBCOMP_GET_JOBS), BANKING_QUOTE(JOBCOMP_RECORD_END), \
		"jobcomp_p_record_job_start"
#else
#define JOBCOMP_RECORD_ARGUMENTS job_ptr
#define JOBCOMP_SYMBOLS \
	BANKING_QUOTE(JOBCOMP_SET_LOCATION), BANKING_QUOTE(JOBCOMP_GET_JOBS), BANKING_QUOTE(JOBCOMP_RECORD_END)
#endif

/* How jobcomp/filetxt names people: cut to 31 bytes and "nobody" before 23.02, later whole, and from a client's own ids. */
#if BANKING_SINCE(23, 2)
#define BANKING_NAME_BYTES 255
#define banking_look_up_user uid_to_string_or_null
#define banking_look_up_group gid_to_string_or_null
#else
#define BANKING_NAME_BYTES 31
#define banking_look_up_user uid_to_string
#define banking_look_up_group gid_to_string
#endif
#if BANKING_SINCE(24, 11)
#include "src/common/identity.h"
#define banking_identity(job_ptr) ((job_ptr)->id)
#else
typedef struct {
	char *pw_name;
	int ngids;
	gid_t *gids;
	char **gr_names;
} banking_no_identity;
#define banking_identity(job_ptr) ((void) (job_ptr), (const banking_no_identity *) NULL)
#endif

/* What jobcomp/filetxt calls the partition: as asked for, perhaps several, before 25.11; then the one that it ran in. */
#if BANKING_SINCE(25, 11)
#define banking_logged_partition(job_ptr) ((job_ptr)->part_ptr ? (job_ptr)->part_ptr->name : (job_ptr)->partition)
#else
#define banking_logged_partition(job_ptr) ((job_ptr)->partition)
#endif

/* What the select plugin has to add at the end of such a line; nothing on any cluster but Cray's. */
#if BANKING_SINCE(23, 2)
#define BANKING_HAS_SELECT_TEXT 0
#define banking_select_text(job_ptr, text, size) ((void) (job_ptr), (void) (size), (text)[0] = '\0')
#else
#define BANKING_HAS_SELECT_TEXT 1
#define banking_select_text(job_ptr, text, size) \
	do { \
		(text)[0] = '\0'; \
		if ((job_ptr)->select_jobinfo) \
			select_g_select_jobinfo_sprint((job_ptr)->select_jobinfo, text, size, SELECT_PRINT_MIXED); \
	} while (0)
#endif

#if BANKING_SINCE(22, 5)
#define JOBCOMP_ARCHIVE_FUNCTION
#elif BANKING_SINCE(21, 8)
#define JOBCOMP_ARCHIVE_FUNCTION \
	extern int jobcomp_p_archive(slurmdb_archive_cond_t *archive_cond); \
	extern int jobcomp_p_archive(slurmdb_archive_cond_t *archive_cond) \
	{ \
		(void) archive_cond; \
		return SLURM_SUCCESS; \
	}
#else
#define JOBCOMP_ARCHIVE_FUNCTION \
	extern int slurm_jobcomp_archive(slurmdb_archive_cond_t *archive_cond); \
	extern int slurm_jobcomp_archive(slurmdb_archive_cond_t *archive_cond) \
	{ \
		(void) archive_cond; \
		return SLURM_SUCCESS; \
	}
#endif

#endif
