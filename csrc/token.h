/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * token.h - our token in a job's admin_comment: "slurm_banking=<hex>:<digits>:<version>", separated by ';' from other text.
 */
#ifndef BANKING_TOKEN_H
#define BANKING_TOKEN_H

#include <stddef.h>

/* The first token in text, or NULL; *length is its length. */
extern const char *banking_token_find(const char *text, size_t *length);

/*
 * Take every token out of text, in place; what else it holds stays as it is. Returns how many were taken out.
 * A token that appears only when another is taken out goes too.
 */
extern int banking_token_strip(char *text);

#endif
