/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * policy_scan.h - the few keys of bank-config.toml that C must know before there is a Python: read line by line.
 *
 * The whole file is read and judged in Python (slurm_banking/config.py). Here only [section] headers and simple
 * "key = value" lines are understood, and everything else is skipped.
 */
#ifndef BANKING_POLICY_SCAN_H
#define BANKING_POLICY_SCAN_H

#include <stddef.h>

#define BANKING_VALUE_SIZE 512

/* Of a path that C reads: as much as config.py allows. */
#define BANKING_PATH_MAX 500

/* A value that must be a string: written as one, in quotes, without an escape, and nothing but a comment behind it. */
typedef struct {
	char text[BANKING_VALUE_SIZE];
	int plain;
} banking_text;

typedef struct {
	int file_found;			/* 0: the file cannot be read; everything else is a default */
	int on_plugin_error;		/* BANKING_ON_ERROR_* */
	char bad_value[BANKING_VALUE_SIZE];	/* an unusable [Policy] on_plugin_error; "" is none */
	int enable_job_submit;		/* [Enable] enable_job_submit_plugin */
	int enable_job_complete;	/* [Enable] enable_job_complete_plugin */
	int enable_spank;		/* [Enable] enable_spank_plugin */
	char node_token_file[BANKING_VALUE_SIZE];	/* [API] node_token_file; "" is none: nodes report nothing */
	banking_text jobcomp_log;	/* [JobComp] log; "" is none */
	banking_text jobcomp_pass_on;	/* [JobComp] pass_on; "" is none */
} banking_policy;

extern void banking_policy_scan(const char *path, banking_policy *policy);
extern const char *banking_on_error_name(int on_plugin_error);

/* What was expected of such a value instead, as slurm_banking/config.py says it; NULL: it is as it should be. */
extern const char *banking_wrong_log(const banking_text *value);
extern const char *banking_wrong_pass_on(const banking_text *value);

#endif
