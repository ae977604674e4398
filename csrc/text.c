/* SPDX-License-Identifier: BSD-3-Clause */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "text.h"

/* How many bytes the character at text has (never behind its terminator); 0: it is not UTF-8 as in RFC 3629. */
static size_t utf8_length(const unsigned char *text, uint32_t *code)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t length;

	if (text[0] < 0x80) {
		*code = text[0];
		return 1;
	}
	if ((text[0] & 0xe0) == 0xc0)
		length = 2;
	else if ((text[0] & 0xf0) == 0xe0)
		length = 3;
	else if ((text[0] & 0xf8) == 0xf0)
		length = 4;
	else
		return 0;
	*code = text[0] & (0x7fu >> length);
	for (size_t i = 1; i < length; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		*code = (*code << 6) | (text[i] & 0x3fu);
	}
	if ((*code < least[length]) || (*code > 0x10ffff) || ((*code >= 0xd800) && (*code <= 0xdfff)))
		return 0;
	return length;
}

static int is_control(uint32_t code)
{
	return (code < 0x20) || ((code >= 0x7f) && (code < 0xa0)) || (code == 0x2028) || (code == 0x2029);
}

static void clean(char *text, const char *kept)
{
	unsigned char *c = (unsigned char *) text;

	while (*c) {
		uint32_t code = 0;
		size_t length = utf8_length(c, &code);

		if (length && (!is_control(code) || ((length == 1) && strchr(kept, (int) code)))) {
			c += length;
			continue;
		}
		memset(c, '?', length ? length : 1);
		c += length ? length : 1;
	}
}

extern void banking_clean_line(char *text)
{
	clean(text, "");
}

extern void banking_clean_message(char *text)
{
	clean(text, "\n\t");
}
