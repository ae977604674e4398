/* SPDX-License-Identifier: BSD-3-Clause */
#include <ctype.h>
#include <string.h>

#include "token.h"

#define TOKEN_KEY "slurm_banking="
#define TOKEN_SEPARATOR ';'

static int ends_token(char c)
{
	return (c == '\0') || (c == TOKEN_SEPARATOR) || isspace((unsigned char) c);
}

extern const char *banking_token_find(const char *text, size_t *length)
{
	const char *start = text;

	if (!text)
		return NULL;
	while ((start = strstr(start, TOKEN_KEY))) {
		const char *p = start + strlen(TOKEN_KEY);
		const char *id = p;

		while (isxdigit((unsigned char) *p))
			p++;
		if ((p > id) && (*p == ':')) {
			while (!ends_token(*p))
				p++;
			*length = (size_t) (p - start);
			return start;
		}
		start = id;
	}
	return NULL;
}

extern int banking_token_strip(char *text)
{
	const char *found;
	size_t length;
	int count = 0;

	while ((found = banking_token_find(text, &length))) {
		char *start = text + (found - text);
		char *rest = start + length;

		/* one of the two separators goes with it */
		if (*rest == TOKEN_SEPARATOR)
			rest++;
		else if ((start > text) && (start[-1] == TOKEN_SEPARATOR))
			start--;
		memmove(start, rest, strlen(rest) + 1);
		count++;
	}
	return count;
}
