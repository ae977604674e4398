/* SPDX-License-Identifier: BSD-3-Clause */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "banking.h"
#include "policy_scan.h"

#define LINE_SIZE 4096
#define LINES_MAX 20000

static char *trim(char *text)
{
	char *end;

	while (isspace((unsigned char) *text))
		text++;
	end = text + strlen(text);
	while ((end > text) && isspace((unsigned char) end[-1]))
		*--end = '\0';
	return text;
}

/* A TOML value: a quoted string without its quotes, or a bare word without a comment behind it. */
static void read_value(const char *text, char *value, size_t size)
{
	size_t length = 0;
	char quote = ((*text == '"') || (*text == '\'')) ? *text++ : '\0';

	while (*text && (length + 1 < size)) {
		if (quote ? (*text == quote) : (isspace((unsigned char) *text) || (*text == '#')))
			break;
		value[length++] = *text++;
	}
	value[length] = '\0';
}

static void read_on_error(const char *value, banking_policy *policy)
{
	if (!strcmp(value, "accept"))
		policy->on_plugin_error = BANKING_ON_ERROR_ACCEPT;
	else if (!strcmp(value, "reject"))
		policy->on_plugin_error = BANKING_ON_ERROR_REJECT;
	else if (!strcmp(value, "abort"))
		policy->on_plugin_error = BANKING_ON_ERROR_ABORT;
	else
		snprintf(policy->bad_value, sizeof(policy->bad_value), "%s", *value ? value : "(empty)");
}

static void read_pair(const char *section, const char *key, const char *text, banking_policy *policy)
{
	char value[BANKING_VALUE_SIZE];

	read_value(text, value, sizeof(value));
	if (!strcmp(section, "Policy") && !strcmp(key, "on_plugin_error")) {
		read_on_error(value, policy);
	} else if (!strcmp(section, "API") && !strcmp(key, "node_token_file")) {
		snprintf(policy->node_token_file, sizeof(policy->node_token_file), "%s", value);
	} else if (!strcmp(section, "Enable")) {
		int on = strcmp(value, "false") != 0;

		if (!strcmp(key, "enable_job_submit_plugin"))
			policy->enable_job_submit = on;
		else if (!strcmp(key, "enable_job_complete_plugin"))
			policy->enable_job_complete = on;
		else if (!strcmp(key, "enable_spank_plugin"))
			policy->enable_spank = on;
	}
}

extern void banking_policy_scan(const char *path, banking_policy *policy)
{
	char line[LINE_SIZE], section[64] = "";
	FILE *file;

	memset(policy, 0, sizeof(*policy));
	policy->on_plugin_error = BANKING_ON_ERROR_ACCEPT;
	policy->enable_job_submit = 1;
	policy->enable_job_complete = 1;
	policy->enable_spank = 1;

	if (!path || !(file = fopen(path, "re")))
		return;
	policy->file_found = 1;
	for (int i = 0; (i < LINES_MAX) && fgets(line, sizeof(line), file); i++) {
		char *text = trim(line), *equals;

		if (*text == '[') {
			char *close = strchr(text, ']');

			if (close)
				*close = '\0';
			snprintf(section, sizeof(section), "%.60s", trim(text + 1));
		} else if (isalpha((unsigned char) *text) && (equals = strchr(text, '='))) {
			*equals = '\0';
			read_pair(section, trim(text), trim(equals + 1), policy);
		}
	}
	fclose(file);
}

extern const char *banking_on_error_name(int on_plugin_error)
{
	switch (on_plugin_error) {
	case BANKING_ON_ERROR_REJECT:
		return "reject";
	case BANKING_ON_ERROR_ABORT:
		return "abort";
	default:
		return "accept";
	}
}
