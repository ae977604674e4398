/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * append_log.h - one text file that lines are appended to, and that others rotate.
 *
 * A local, regular file, 0644; each line is one write. A line that cannot be written is left out: the first is told in
 * slurmctld's log, the others are counted, and what was left out is told when one can be written again. Nothing here waits
 * for anything but the local disk. Neither Slurm nor Python is known here.
 */
#ifndef BANKING_APPEND_LOG_H
#define BANKING_APPEND_LOG_H

#include <stddef.h>

/* Opens it anew, also if it is the same, and tells anew if that fails; "" closes it. what: how messages name it; copied. */
extern void append_log_set(const char *path, const char *what);

extern int append_log_on(void);

/* One line with its newline at the end. A file that was moved away or removed is made anew first. */
extern void append_log_line(const char *line, size_t length);

#endif
