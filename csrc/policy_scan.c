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

static void read_text(const char *raw, banking_text *value)
{
	size_t length;

	read_value(raw, value->text, sizeof(value->text));
	length = strlen(value->text);
	value->plain = ((*raw == '"') || (*raw == '\'')) && (raw[1 + length] == *raw) && !strchr(value->text, '\\');
	if (value->plain) {
		const char *rest = raw + length + 2;

		while (isspace((unsigned char) *rest))
			rest++;
		value->plain = !*rest || (*rest == '#');
	}
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
	} else if (!strcmp(section, "JobComp") && !strcmp(key, "log")) {
		read_text(text, &policy->jobcomp_log);
	} else if (!strcmp(section, "JobComp") && !strcmp(key, "pass_on")) {
		read_text(text, &policy->jobcomp_pass_on);
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
	policy->jobcomp_log.plain = 1;
	policy->jobcomp_pass_on.plain = 1;

	if (!path || !(file = fopen(path, "re")))
		return;
	policy->file_found = 1;
	for (int i = 0; (i < LINES_MAX) && fgets(line, sizeof(line), file); i++) {
		/* UTF-8 may begin with a mark that says so */
		char *text = trim(line + ((!i && !strncmp(line, "\xef\xbb\xbf", 3)) ? 3 : 0)), *equals;

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

extern const char *banking_wrong_log(const banking_text *value)
{
	const char *text = value->text;
	int wrong = !value->plain || (*text && (*text != '/')) || (strlen(text) > BANKING_PATH_MAX);

	for (; *text && !wrong; text++)
		wrong = ((unsigned char) *text < 0x20) || strchr("\"'\\\x7f", *text);
	if (!wrong)
		wrong = (text > value->text) && (text[-1] == '/');
	return wrong ? "expected \"\" or the absolute path of a file in quotes, at most 500 bytes, without quotes or backslashes" :
		       NULL;
}

extern const char *banking_wrong_pass_on(const banking_text *value)
{
	static const char type[] = "jobcomp/", allowed[] = "abcdefghijklmnopqrstuvwxyz0123456789_";
	const char *name = value->text + sizeof(type) - 1;

	if (value->plain && !value->text[0])
		return NULL;
	if (!value->plain || strncmp(value->text, type, sizeof(type) - 1) || !*name || (strlen(name) > 64) ||
	    (strspn(name, allowed) != strlen(name)))
		return "expected \"\" or another plugin in quotes as JobCompType would name it, like \"jobcomp/elasticsearch\"";
	if (!strcmp(name, "slurm_banking"))
		return "expected another plugin than this one";
	return NULL;
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
