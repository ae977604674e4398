/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * jobcomp_line.h - the line that Slurm's own jobcomp/filetxt writes of a record.
 */
#ifndef BANKING_JOBCOMP_LINE_H
#define BANKING_JOBCOMP_LINE_H

#include "slurm_compat.h"

/*
 * With its newline; the caller frees it with free(). NULL: no memory.
 *
 * Byte by byte what the plugin of this release writes, but for two of its faults: a long line is whole (before 24.05.2 it
 * ends after 1023 bytes, without a newline), and a control character, a newline in a job's name among them, is a "?".
 */
extern char *jobcomp_line(const job_record_t *job_ptr, size_t *length);

#endif
