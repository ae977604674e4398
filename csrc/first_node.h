/* SPDX-License-Identifier: BSD-3-Clause */
/* first_node.h - the first host of a Slurm node list; a small parser, so that spank needs no symbol of Slurm's for it. */
#ifndef BANKING_FIRST_NODE_H
#define BANKING_FIRST_NODE_H

#include <stddef.h>

/* "n[03-05,9],m1" -> "n03", "r[1-2]n[0-3]" -> "r1n0". Returns 0, or -1 if the list is malformed or the name too long. */
extern int banking_first_node(const char *node_list, char *name, size_t size);

#endif
