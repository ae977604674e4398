/* SPDX-License-Identifier: BSD-3-Clause */
#include "first_node.h"

#include <string.h>

extern int banking_first_node(const char *node_list, char *name, size_t size)
{
	size_t length = 0;

	if (!node_list)
		return -1;
	for (const char *c = node_list; *c && (*c != ','); c++) {
		if (*c == '[') {
			/* the first number of the range; then on behind the bracket */
			for (c++; *c && !strchr("-,]", *c); c++) {
				if (length + 1 >= size)
					return -1;
				name[length++] = *c;
			}
			if (!(c = strchr(c, ']')))
				return -1;
			continue;
		}
		if ((*c == ']') || (length + 1 >= size))
			return -1;
		name[length++] = *c;
	}
	name[length] = '\0';
	return length ? 0 : -1;
}
