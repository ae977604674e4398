/* SPDX-License-Identifier: BSD-3-Clause */
/* print_policy.c - what policy_scan.c finds in a file: each of [JobComp]'s keys with its value, or what is wrong. */
#include <stdio.h>

#include "policy_scan.h"

static void print(const char *key, const banking_text *value, const char *wrong)
{
	printf("%s %s %s\n", key, wrong ? "wrong" : "right", wrong ? wrong : value->text);
}

int main(int argc, char **argv)
{
	static banking_policy policy;

	for (int i = 1; i < argc; i++) {
		banking_policy_scan(argv[i], &policy);
		print("log", &policy.jobcomp_log, banking_wrong_log(&policy.jobcomp_log));
		print("pass_on", &policy.jobcomp_pass_on, banking_wrong_pass_on(&policy.jobcomp_pass_on));
	}
	return 0;
}
