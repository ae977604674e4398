/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * node_count.h - how many hosts a Slurm node list has, without making them.
 *
 * Slurm's own parser makes every host of a list with several brackets: "n[1-9]n[1-9]n[1-9]..." from a user keeps it busy for
 * ever, and a malformed list loses some memory. This one takes as long as the list is.
 */
#ifndef BANKING_NODE_COUNT_H
#define BANKING_NODE_COUNT_H

#include <stdint.h>

/* "n[1-4,7],m1" -> 6, "r[1-2]n[0-3]" -> 8; hosts named twice count twice, as in Slurm; 0: malformed or empty. */
extern uint32_t banking_node_count(const char *node_list);

#endif
