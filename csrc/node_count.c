/* SPDX-License-Identifier: BSD-3-Clause */
#include <ctype.h>
#include <string.h>

#include "node_count.h"

#define COUNT_MAX 0x7fffffffu	/* two of them can be multiplied */
#define DIGITS_MAX 15

static uint64_t capped(uint64_t count)
{
	return (count > COUNT_MAX) ? COUNT_MAX : count;
}

/* Moves on behind the number; -1: there is none. */
static int64_t read_number(const char **text)
{
	int64_t number = 0;
	int digits = 0;

	for (; isdigit((unsigned char) **text); (*text)++) {
		if (++digits > DIGITS_MAX)
			return -1;
		number = 10 * number + (**text - '0');
	}
	return digits ? number : -1;
}

/* "1-4,7]": how many numbers. Moves on behind the bracket; 0: malformed. */
static uint64_t count_in_brackets(const char **text)
{
	uint64_t count = 0;

	while (1) {
		int64_t first = read_number(text), last = first;

		if ((first >= 0) && (**text == '-')) {
			(*text)++;
			last = read_number(text);
		}
		if ((first < 0) || (last < first))
			return 0;
		count = capped(count + capped((uint64_t) (last - first) + 1));
		if (**text == ']') {
			(*text)++;
			return count;
		}
		if (*(*text)++ != ',')
			return 0;
	}
}

extern uint32_t banking_node_count(const char *node_list)
{
	uint64_t total = 0, of_name = 0;	/* 0: nothing of the next name was read */
	const char *c = node_list;

	if (!node_list)
		return 0;
	while (*c) {
		if (strchr(", \t\n", *c)) {
			total = capped(total + of_name);
			of_name = 0;
			c++;
		} else if (*c == '[') {
			uint64_t count;

			c++;
			count = count_in_brackets(&c);
			if (!count)
				return 0;
			of_name = capped((of_name ? of_name : 1) * count);
		} else if (*c == ']') {
			return 0;
		} else {
			of_name = of_name ? of_name : 1;
			c++;
		}
	}
	return (uint32_t) capped(total + of_name);
}
