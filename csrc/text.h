/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * text.h - what leaves us for a log or a terminal is printable UTF-8, whatever a user put into a job.
 *
 * Both change the text in place and never make it longer. What is not UTF-8, and what controls a terminal or breaks a
 * line, becomes '?'. Neither Slurm nor Python is known here.
 */
#ifndef BANKING_TEXT_H
#define BANKING_TEXT_H

/* One line of a log. */
extern void banking_clean_line(char *text);

/* A message to a user: newlines and tabs stay. */
extern void banking_clean_message(char *text);

#endif
