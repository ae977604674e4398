/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hostile_slurmctld.c - the fake slurmctld of tests/plugins, with commands that call the plugins as nobody should.
 *
 *   fuzz SEED FIRST COUNT     so many submissions, updates and ends, made of the seed and of their number alone. What a call
 *                             may not do (an unknown return code, a message that is no printable UTF-8, a token that is not
 *                             ours left in place) ends the process, and its number is told.
 *                             -> submitted=N accepted=N liens=N refused=N full=N lengthy=N updated=N ended=N slowest_us=N slowest_at=N
 *   crowd THREADS SECONDS FILE   jobs from so many threads at once, each submitted, updated and ended; a line in FILE for
 *                             each end with a lien: "token job_id seconds cpus"
 *                             -> submitted=N accepted=N liens=N refused=N ended=N wrong=N
 *   heap COUNT key=value ...  so many submissions of one job, each updated and ended -> heap=BYTES, in use afterwards
 *   leaks                     LeakSanitizer's word on what was lost so far -> leaks=0|1 (-1: not built with it)
 *   lose                      loses a few bytes, so that one may see how that is found
 *   table COUNT               fills the job table with so many records, scattered in memory
 *   pace SECONDS key=value ...   submissions for so long -> calls=N median_ns=N worst_ns=N,N,...  (CPU time; the worst five)
 *   touch FILE                opens a file and closes it, as code should not do with the ledger's
 *
 * FUZZ_AT: a file of 16 bytes that always has the seed and the number of the call under way, for whoever outlives us.
 */
#define main fake_slurmctld_main
#include "../plugins/fake_slurmctld.c"
#undef main

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "banking.h"

extern int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}

/* Of this thread alone: what else goes on on the machine does not count. */
static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}

/* --- chance, by seed and number alone ------------------------------------------------------------------------------------ */

static struct {
	uint64_t seed, number, state;
	uint64_t *at;		/* FUZZ_AT */
} chance;

static uint64_t draw(void)
{
	uint64_t z = (chance.state += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint32_t below(uint32_t limit)
{
	return (uint32_t) (draw() % limit);
}

static bool one_in(uint32_t many)
{
	return below(many) == 0;
}

#define PICK(list) (list)[below(sizeof(list) / sizeof((list)[0]))]

static void next_call(uint64_t seed, uint64_t number)
{
	chance.seed = seed;
	chance.number = number;
	chance.state = seed * 0x2545f4914f6cdd1du + number;
	(void) draw();
	if (chance.at) {
		chance.at[0] = seed;
		chance.at[1] = number;
	}
}

static void wrong(const char *what, const char *text)
{
	fprintf(stderr, "WRONG: fuzz %llu %llu 1: %s: [%.300s]\n", (unsigned long long) chance.seed,
		(unsigned long long) chance.number, what, text ? text : "");
	fflush(NULL);
	_exit(99);
}

/* --- hostile values -------------------------------------------------------------------------------------------------------- */

static char *freed_later[64];
static int freed_count = 0;

/* Every byte behind the terminator is out of bounds: the sanitizer sees who reads on. */
static char *exactly(const char *text)
{
	char *copy = xstrdup(text);

	if (freed_count == 64)
		abort();
	return freed_later[freed_count++] = copy;
}

static char *take(char *made)
{
	char *copy = made ? exactly(made) : NULL;

	xfree(made);
	return copy;
}

static void free_later(void)
{
	while (freed_count)
		xfree(freed_later[--freed_count]);
}

static char *repeated(const char *piece, uint32_t bytes)
{
	size_t length = strlen(piece), times = bytes / length + 1;
	char *text = xmalloc(times * length + 1);

	for (size_t i = 0; i < times; i++)
		memcpy(text + i * length, piece, length);
	return text;
}

static char *random_bytes(uint32_t count)
{
	char *text = xmalloc(count + 1);

	for (uint32_t i = 0; i < count; i++)
		text[i] = (char) (1 + below(255));
	return text;
}

static const char *const nasty[] = {
	"", " ", "%s%n%1$s%999999d%n", "'; DROP TABLE entries; --", "\" OR 1=1 --", "x\nslurmctld: slurm_banking: INJECTED",
	"x\r\nINJECTED\r", "\x1b[2J\x1b]0;owned\x07", "\xff\xfe", "\xc0\x80", "\xed\xa0\x80", "\xf0\x9f\x92\xb8", "\xc3\xa9\xc3\xa9",
	"\xe2\x80\xa8", "\xc2\x9b" "31m", "\xef\xbb\xbf" "astro", "../../../etc/passwd", "ledger.sqlite3", "$(touch x)", "{0.__class__}",
	"NULL", "None", "nan", "-1", "1e309", "99999999999999999999999", "0x7f", "\t\v\f", "astro ", "ASTRO", ",,,,", "=", ":::", "[[[", "]",
	"slurm_banking=abab:50:v1", "slurm_banking=", "slurm_banking=ab:slurm_banking=cd:1:v1;;slurm_banking=ef:",
};
static const char *const accounts[] = { "astro", "astro", "astro", "bio", "geo", "nobody" };
static const char *const partitions[] = {
	"normal", "normal", "long", "whole", "many", "normal,long", "nowhere", "long,nowhere,whole", "normal,,long", ",",
	"normal,normal,normal", "many,whole,long,normal,many,whole,long,normal,x",
};
static const char *const tres[] = {
	"gres/gpu:2", "gres/gpu:a100:1", "gpu:2", "gpu:a100:4,gpu:t4:1", "gres/gpu:-1", "gres/gpu:99999999999999999999", "cpu=4",
	"cpu:4,mem:2G", "mem=1T,cpu=", "gres/gpu:", "gres/", ":::,,,", "gpu:2K", "gres/gpu=2", "gpu", "license/matlab:3", "gpu:(S:0-1)",
	"billing=4", "node:2", "energy=18446744073709551614", "gpu:a100:4(S:0-1),gpu", "gpu*2", "gres:gpu:2",
};
static const char *const arrays[] = {
	"0-7", "1,3,5", "0-15:4%3", "0-4000000", "0-4000001", "0-99999999999999999999", "1-0", "0-10:0", "%5", "0%0", "0-", "-5", "[0-3]",
	"0,0,0,0", "1-1000000:2,2-1000000:2", "0-4000000:1,0-4000000:2,0-4000000:3", "a-b", "0-0x7f", "+1", " 1 - 2",
};
static const char *const pieces[] = {
	"gres/", "gpu", ":", ",", "=", "0", "1", "4294967294", "18446744073709551615", "-", "%", "[", "]", "a100", "cpu", "mem", "G", "T",
	"node", "billing", ";", " ", "\n", "\xff", "normal", "astro", "slurm_banking=", "ab", "e9", ".", "(S:", ")", "*", "n[1-9]",
};
static const char *const nodes_named[] = { "n1", "n[1-2]", "n[1-4],m1", "n[", "n[1-99999999]", "n[9-1]", "n1,n1,n1", "localhost" };
static const char *const allocated[] = {
	"1=4,2=8000,4=1,5=4", "1=8,4=2,1001=2,1002=2", "1=0", "3=18446744073709551614,1=4", "cpu=4", "=,=,=", "1", "1=,2=", "999999=1",
	"1=4,1=4,1=4", "-1=-1", "1=4,2=",
};
static const char *const tokens[] = {
	"slurm_banking=00112233445566778899aabbccddeeff:100:v1", "slurm_banking=0:18446744073709551616:", "slurm_banking=ab:-1:v1;slurm_banking=cd:1:v1",
};

#define HOSTILE(list) hostile(list, sizeof(list) / sizeof((list)[0]))

/* Mostly what leads somewhere; else whatever nobody expected. */
static char *hostile(const char *const *likely, size_t count)
{
	char *made = NULL;

	switch (below(24)) {
	case 0 ... 11:
		return exactly(likely[below((uint32_t) count)]);
	case 12 ... 15:
		return exactly(PICK(nasty));
	case 16:
		return take(random_bytes(1 + below(80)));
	case 17 ... 19:
		for (uint32_t i = below(12); i; i--)
			xstrcat(made, PICK(pieces));
		return take(made);
	case 20:
		xstrcat(made, likely[below((uint32_t) count)]);
		xstrcat(made, PICK(nasty));
		return take(made);
	case 21:
		return take(repeated(PICK(nasty)[0] ? PICK(pieces) : ",", below(5000)));
	case 22:
		if (one_in(200))
			return take(repeated(PICK(pieces), 1000000 + below(2000000)));
		return take(repeated(PICK(partitions), below(3000)));
	default:
		/* characters of several bytes, so that what cuts a text may cut one of them */
		xstrcat(made, one_in(2) ? "x" : "");
		for (uint32_t i = below(1500); i; i--)
			xstrcat(made, "\xe2\x82\xac");
		return take(made);
	}
}

static uint64_t hostile_number(uint64_t unset, uint64_t infinite, uint64_t usual)
{
	switch (below(16)) {
	case 0 ... 5:
		return unset;
	case 6 ... 10:
		return 1 + below((uint32_t) usual);
	case 11: {
		const uint64_t edges[] = { unset - 1, unset, infinite, infinite + 1, 0, 1 };

		return PICK(edges);
	}
	case 12: {
		const uint64_t powers[] = { 0x7f, 0x80, 0x7fff, 0x8000, 0x7fffffff, 0x80000000, 0x7fffffffffffffff, 0x8000000000000000 };

		return PICK(powers) + below(3) - 1;
	}
	case 13:
		return draw();
	case 14:
		return 0;
	default:
		return below(1000000);
	}
}

#define ANY32(usual) ((uint32_t) hostile_number(NO_VAL, INFINITE, usual))
#define ANY16(usual) ((uint16_t) hostile_number(NO_VAL16, INFINITE16, usual))
#define ANY8(usual) ((uint8_t) hostile_number(NO_VAL8, INFINITE8, usual))
#define ANY64(usual) hostile_number(NO_VAL64, INFINITE64, usual)

static time_t hostile_time(void)
{
	switch (below(8)) {
	case 0:
		return 0;
	case 1:
		return (time_t) draw();
	case 2:
		return -(time_t) below(1000000);
	default:
		return 1795000000 + (time_t) below(1000000);
	}
}

static time_t slurmctlds_time(void)
{
	return one_in(10) ? 0 : 1795000000 + (time_t) below(1000000);
}

static uint32_t hostile_user(void)
{
	static const uint32_t users_to_be[] = { 1001, 1001, 1001, 1001, 1002, 1003, 1004, 0, 900, 64030, 7777, NO_VAL, INFINITE };

	return PICK(users_to_be);
}

/* What a user may send. Strings of its own, since the plugin may change or replace one. */
static void fill_desc(job_desc_msg_t *desc, bool update)
{
	/* one strange thing is often the whole story; many at once are refused for the first */
	uint32_t rarer = one_in(3) ? 1 : 12;

#define SOMETIMES(field, list, rarely) \
	do { \
		if (one_in((rarely) * rarer)) { \
			char *text = HOSTILE(list); \
			desc->field = xstrdup(text); \
		} \
	} while (0)
	slurm_init_job_desc_msg(desc);
	SOMETIMES(account, accounts, update ? 4 : 2);
	SOMETIMES(partition, partitions, update ? 4 : 2);
	SOMETIMES(qos, accounts, 6);
	SOMETIMES(array_inx, arrays, 6);
	SOMETIMES(admin_comment, tokens, 4);
	SOMETIMES(name, accounts, 2);
	SOMETIMES(reservation, accounts, 12);
	SOMETIMES(req_nodes, nodes_named, 12);
	SOMETIMES(tres_per_job, tres, 8);
	SOMETIMES(tres_per_node, tres, 8);
	SOMETIMES(tres_per_socket, tres, 12);
	SOMETIMES(tres_per_task, tres, 12);
	SOMETIMES(cpus_per_tres, tres, 12);
	SOMETIMES(mem_per_tres, tres, 12);
	SOMETIMES(comment, accounts, 12);
	desc->user_id = one_in(2 * rarer) ? hostile_user() : 1001;
	desc->time_limit = one_in(3 * rarer) ? ANY32(3000) : 1 + below(100);
	desc->time_min = one_in(6 * rarer) ? ANY32(100) : NO_VAL;
	desc->min_cpus = one_in(2 * rarer) ? ANY32(8) : NO_VAL;
	desc->max_cpus = one_in(4 * rarer) ? ANY32(16) : NO_VAL;
	desc->min_nodes = one_in(4 * rarer) ? ANY32(3) : NO_VAL;
	desc->max_nodes = one_in(4 * rarer) ? ANY32(4) : NO_VAL;
	desc->num_tasks = one_in(2 * rarer) ? ANY32(8) : NO_VAL;
	desc->het_job_offset = one_in(8 * rarer) ? ANY32(4) : NO_VAL;
	desc->cpus_per_task = one_in(4 * rarer) ? ANY16(4) : NO_VAL16;
	desc->ntasks_per_node = one_in(6 * rarer) ? ANY16(4) : NO_VAL16;
	desc->ntasks_per_socket = one_in(6 * rarer) ? ANY16(4) : NO_VAL16;
	desc->ntasks_per_core = one_in(6 * rarer) ? ANY16(2) : NO_VAL16;
	desc->ntasks_per_tres = one_in(8 * rarer) ? ANY16(2) : NO_VAL16;
	desc->sockets_per_node = one_in(8 * rarer) ? ANY16(2) : NO_VAL16;
	desc->cores_per_socket = one_in(8 * rarer) ? ANY16(4) : NO_VAL16;
	desc->threads_per_core = one_in(8 * rarer) ? ANY16(2) : NO_VAL16;
	desc->pn_min_cpus = one_in(8 * rarer) ? ANY16(4) : NO_VAL16;
	desc->core_spec = one_in(8 * rarer) ? ANY16(2) : NO_VAL16;
	desc->shared = one_in(4 * rarer) ? ANY16(3) : NO_VAL16;
	desc->overcommit = one_in(6 * rarer) ? ANY8(1) : NO_VAL8;
	desc->pn_min_memory = one_in(3 * rarer) ? ANY64(16000) : NO_VAL64;
	desc->end_time = (update && one_in(6)) ? hostile_time() : 0;
#undef SOMETIMES
}

static void free_desc(job_desc_msg_t *desc)
{
	free_job_desc(desc);
	xfree(desc->tres_per_socket);
	xfree(desc->tres_per_task);
}

/* Longer ones Slurm has refused. */
static char *recorded(char *text)
{
	if (text && (strlen(text) > 1024))
		text[1024] = '\0';
	return text;
}

/* What slurmctld may have made of it, or of its state file. */
static void fill_record(void)
{
	static const uint32_t states[] = { 0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 11, 12, 0xff, 0x400, 0x2001, 0x8003, 0x1403, 0xffffffff };

	new_job();
	job.job_id = one_in(4) ? ANY32(100) : 1 + below(100000);
	job.user_id = hostile_user();
	job.job_state = PICK(states);
	job.account = one_in(8) ? NULL : recorded(HOSTILE(accounts));
	job.partition = one_in(8) ? NULL : recorded(HOSTILE(partitions));
	job.part_ptr = one_in(4) ? NULL : &parts[below(PART_COUNT)];
	job.admin_comment = one_in(2) ? NULL : HOSTILE(tokens);
	job.name = one_in(4) ? NULL : recorded(HOSTILE(accounts));
	job.user_name = one_in(2) ? NULL : recorded(HOSTILE(accounts));
	job.nodes = one_in(3) ? NULL : HOSTILE(nodes_named);
	job.tres_alloc_str = one_in(3) ? NULL : exactly(PICK(allocated));
	job.tres_per_node = one_in(3) ? recorded(HOSTILE(tres)) : NULL;
	job.tres_per_job = one_in(6) ? recorded(HOSTILE(tres)) : NULL;
	job.qos_ptr = one_in(3) ? NULL : &job_qos;
	job.assoc_ptr = one_in(3) ? NULL : &associations[below(ASSOCIATION_COUNT)];
	job.details = one_in(8) ? NULL : &details;
	job.array_recs = one_in(4) ? &array_recs : NULL;
	array_recs.task_cnt = ANY32(100);
	job.array_job_id = one_in(3) ? ANY32(100) : 0;
	job.array_task_id = one_in(3) ? ANY32(100) : NO_VAL;
	job.het_job_id = one_in(6) ? ANY32(100) : 0;
	job.restart_cnt = one_in(4) ? ANY16(3) : 0;
	job.time_limit = one_in(2) ? ANY32(1000) : 60;
	job.time_min = one_in(4) ? ANY32(100) : 0;
	job.total_cpus = 1 + below(64);
	job.node_cnt = one_in(3) ? ANY32(4) : 1;
	job.requid = one_in(3) ? (int) hostile_user() : -1;
	/* times and counts as the clock and select made them, if in no good order; what a user wrote is anything */
	job.start_time = one_in(8) ? 0 : slurmctlds_time();
	job.end_time = one_in(3) ? slurmctlds_time() : job.start_time + (time_t) below(10000);
	job.suspend_time = one_in(6) ? slurmctlds_time() : 0;
	job.pre_sus_time = one_in(6) ? (time_t) below(100000) : 0;
	job.resize_time = one_in(6) ? slurmctlds_time() : 0;
	job.exit_code = ANY32(255);
	details.submit_time = one_in(4) ? slurmctlds_time() : 1795000000;
	if (one_in(2)) {
		details.orig_min_cpus = ANY32(8);
		details.orig_max_cpus = ANY32(8);
		details.min_nodes = ANY32(3);
		details.max_nodes = ANY32(3);
		details.num_tasks = ANY32(8);
		details.cpus_per_task = details.orig_cpus_per_task = ANY16(4);
		details.pn_min_cpus = ANY32(4);
		details.orig_pn_min_memory = ANY64(16000);
		details.req_nodes = one_in(4) ? HOSTILE(nodes_named) : NULL;
		job.bit_flags = one_in(2) ? JOB_MEM_SET : draw();
	}
}

/* --- what no call may do --------------------------------------------------------------------------------------------------- */

static bool printable_utf8(const char *text, const char *kept)
{
	const unsigned char *c = (const unsigned char *) text;

	while (*c) {
		uint32_t code, more = (*c < 0x80) ? 0 : (*c < 0xe0) ? 1 : (*c < 0xf0) ? 2 : 3;

		if (((*c >= 0x80) && (*c < 0xc2)) || (*c > 0xf4))
			return false;
		code = more ? *c & (0x3fu >> more) : *c;
		for (uint32_t i = 1; i <= more; i++) {
			if ((c[i] & 0xc0) != 0x80)
				return false;
			code = (code << 6) | (c[i] & 0x3fu);
		}
		if (((more == 2) && ((code < 0x800) || ((code >= 0xd800) && (code < 0xe000)))) ||
		    ((more == 3) && ((code < 0x10000) || (code > 0x10ffff))))
			return false;
		if (((code < 0x20) || (code == 0x7f)) && !strchr(kept, (int) code))
			return false;
		if ((code >= 0x80) && (code < 0xa0))
			return false;
		c += more + 1;
	}
	return true;
}

/* One token at most, and it is the one that was just given. */
static char *only_token(char *text)
{
	char *found = text ? strstr(text, "slurm_banking=") : NULL;
	size_t id = 0;

	/* "slurm_banking=" that is no token may stay: only hexadecimal digits and a colon behind it make one */
	while (found) {
		id = strspn(found + 14, "0123456789abcdefABCDEF");
		if (id && (found[14 + id] == ':'))
			break;
		found = strstr(found + 1, "slurm_banking=");
	}
	return found;
}

static struct {
	unsigned long submitted, accepted, liens, refused, full, lengthy, updated, ended;
	uint64_t slowest_ns, slowest_at;
} seen;

/* CPU time of the calls into the plugin alone. */
#define TIMED(call) \
	do { \
		uint64_t begun = cpu_ns(); \
		call; \
		begun = cpu_ns() - begun; \
		if (begun > seen.slowest_ns) { \
			seen.slowest_ns = begun; \
			seen.slowest_at = chance.number; \
		} \
	} while (0)

static char last_token[256];
static uint32_t last_user;

static void check_message(const char *message)
{
	if (message && !printable_utf8(message, "\n\t"))
		wrong("the message is no printable UTF-8", message);
	if (message && (strlen(message) > BANKING_MESSAGE_SIZE + 40))
		wrong("the message is too long", message);
}

static void fuzz_submit(void)
{
	job_desc_msg_t desc;
	char *message = one_in(10) ? xstrdup("an earlier plugin's") : NULL, *token;
	uint32_t caller;
	int rc;

	fill_desc(&desc, false);
	caller = one_in(8) ? hostile_user() : desc.user_id;
	TIMED(rc = job_submit_plugin.submit(&desc, caller, &message));
	seen.submitted++;
	check_message(message);
	token = only_token(desc.admin_comment);
	if (rc == SLURM_SUCCESS) {
		seen.accepted++;
		seen.liens += (token != NULL);
		if (token && (!strchr(token, ':') || (strcspn(token, ":") != 14 + 32) || only_token(token + 1) ||
			      !strncmp(token, tokens[0], 46)))
			wrong("a token that is not the one just given", desc.admin_comment);
		if (token) {
			snprintf(last_token, sizeof(last_token), "%s", token);
			last_user = desc.user_id;
		}
	} else if (token) {
		wrong("a refused job has a token", desc.admin_comment);
	} else if (rc == EAGAIN) {
		seen.full++;
	} else if (rc == ESLURM_PATHNAME_TOO_LONG) {
		seen.lengthy++;
	} else if (rc == ESLURM_ACCOUNTING_POLICY) {
		seen.refused++;
		if (!message || !message[0])
			wrong("a refusal without a word", NULL);
	} else {
		wrong("an unknown return code", message);
	}
	xfree(message);
	free_desc(&desc);
}

static void fuzz_update(void)
{
	job_desc_msg_t desc;
	char *message = NULL;
	uint32_t caller;
	int rc;

	fill_record();
	fill_desc(&desc, true);
	caller = one_in(3) ? hostile_user() : job.user_id;
	TIMED(rc = modify(&desc, &job, caller, &message));
	seen.updated++;
	check_message(message);
	xfree(message);
	if ((rc != SLURM_SUCCESS) && (rc != ESLURM_ACCOUNTING_POLICY) && (rc != EAGAIN) && (rc != ESLURM_PATHNAME_TOO_LONG))
		wrong("an unknown return code of an update", NULL);
	free_desc(&desc);
	free_later();
}

static void fuzz_end(void)
{
	int rc;

	fill_record();
	if (last_token[0] && one_in(2)) {	/* the end of a job that has a lien */
		job.admin_comment = last_token;
		job.account = one_in(4) ? job.account : exactly("astro");
		job.user_id = one_in(4) ? job.user_id : last_user;
	}
	if (JOBCOMP_HAS_START && one_in(2) && (record_start(&job) != SLURM_SUCCESS))
		wrong("jobcomp failed at a start", NULL);
	TIMED(rc = record_end(&job));
	if (rc != SLURM_SUCCESS)
		wrong("jobcomp failed", NULL);
	seen.ended++;
	free_later();
}

static void fuzz(const char *text)
{
	unsigned long long seed, first, count;

	if (sscanf(text, "%llu %llu %llu", &seed, &first, &count) != 3)
		abort();
	memset(&seen, 0, sizeof(seen));
	for (uint64_t number = first; number < first + count; number++) {
		next_call(seed, number);
		switch (below(4)) {
		case 0:
			fuzz_update();
			break;
		case 1:
			fuzz_end();
			break;
		default:
			fuzz_submit();
			free_later();
		}
	}
	printf("submitted=%lu accepted=%lu liens=%lu refused=%lu full=%lu lengthy=%lu updated=%lu ended=%lu slowest_us=%llu slowest_at=%llu\n",
	       seen.submitted, seen.accepted, seen.liens, seen.refused, seen.full, seen.lengthy, seen.updated, seen.ended,
	       (unsigned long long) seen.slowest_ns / 1000, (unsigned long long) seen.slowest_at);
}

/* --- many threads ---------------------------------------------------------------------------------------------------------- */

#define CROWD_MAX 64

typedef struct {
	int index;
	unsigned long submitted, accepted, liens, refused, ended, wrong;
	char *lines;		/* for the file */
	pthread_t thread;
} one_of_crowd;

static struct {
	pthread_barrier_t barrier;
	uint64_t until_ns;
} crowd_state;

static void not_mine(one_of_crowd *me, const char *what, const char *text)
{
	if (!me->wrong++)
		fprintf(stderr, "WRONG: thread %d: %s: [%.300s]\n", me->index, what, text ? text : "");
}

/* Cores of "normal" at 1 SU an hour: a whole number of SU that says which thread and which of its jobs this is. */
static void one_job(one_of_crowd *me, uint32_t number)
{
	uint32_t cpus = 1 + number % 4, hours = 1 + (uint32_t) me->index % 47, seconds = 36 * (1 + (uint32_t) me->index);
	bool foreign = (number % 7) == 6;
	banking_job_details my_details = { .submit_time = 1795000000, .min_cpus = cpus, .orig_min_cpus = cpus, .min_nodes = 1,
					  .orig_max_cpus = NO_VAL, .max_cpus = NO_VAL, .num_tasks = cpus, .cpus_per_task = 1,
					  .orig_cpus_per_task = 1, .share_res = NO_VAL8, .core_spec = NO_VAL16 };
	job_record_t mine = { .job_id = 1000000 * (uint32_t) (me->index + 1) + number, .user_id = 1001, .account = "astro",
			      .partition = "normal", .part_ptr = &parts[0], .time_limit = hours * 60, .array_task_id = NO_VAL,
			      .qos_ptr = &job_qos, .assoc_ptr = &associations[0], .details = &my_details, .requid = -1 };
	job_desc_msg_t desc;
	char *message = NULL, *token, expected[64];
	int rc;

	init_job_desc(&desc);
	desc.account = xstrdup("astro");
	desc.partition = xstrdup("normal");
	desc.name = xstrdup_printf("t%d-%u", me->index, number);
	desc.time_limit = hours * 60;
	desc.min_cpus = desc.num_tasks = cpus;
	desc.user_id = foreign ? 1002 : 1001;
	rc = job_submit_plugin.submit(&desc, desc.user_id, &message);
	me->submitted++;
	token = only_token(desc.admin_comment);
	if (foreign) {
		me->refused++;
		if ((rc != ESLURM_ACCOUNTING_POLICY) || token)
			not_mine(me, "another's account was accepted", message);
	} else if (rc != SLURM_SUCCESS) {
		not_mine(me, "refused", message);
	} else {
		me->accepted++;
	}
	if (token) {
		me->liens++;
		if (strtoul(strchr(token, ':') + 1, NULL, 10) != 100ul * cpus * hours)
			not_mine(me, "a lien of another's job", token);
		snprintf(expected, sizeof(expected), "up to %u.00 SU (normal, %u CPU", cpus * hours, cpus);
		if (!message || !strstr(message, expected))
			not_mine(me, "a verdict for another's job", message);
		mine.admin_comment = token;
		mine.name = desc.name;
		{
			job_desc_msg_t change;
			char *told = NULL;

			slurm_init_job_desc_msg(&change);
			change.time_limit = hours * 60 - 1;	/* costs less: never refused */
			if (modify(&change, &mine, 1001, &told) != SLURM_SUCCESS)
				not_mine(me, "an update that costs less was refused", token);
			xfree(told);
		}
		mine.job_state = JOB_COMPLETE;
		mine.nodes = "n1";
		mine.node_cnt = 1;
		mine.total_cpus = cpus;
		mine.tres_alloc_str = "4=1";	/* CPUs from the record */
		mine.start_time = 1795000100;
		mine.end_time = mine.start_time + (time_t) seconds;
		if (record_end(&mine) != SLURM_SUCCESS)
			not_mine(me, "jobcomp failed", token);
		me->ended++;
		xstrfmtcat(me->lines, "%s %u %u %u\n", token, mine.job_id, seconds, cpus);
	}
	xfree(message);
	free_job_desc(&desc);
}

static void *in_crowd(void *arg)
{
	one_of_crowd *me = arg;

	pthread_barrier_wait(&crowd_state.barrier);
	for (uint32_t number = 0; now_ns() < crowd_state.until_ns; number++)
		one_job(me, number);
	return NULL;
}

static void crowd(const char *text)
{
	static one_of_crowd all[CROWD_MAX];
	one_of_crowd sum = { 0 };
	pthread_attr_t attributes;
	int count = 0, seconds = 0;
	char path[512];
	FILE *file;

	if ((sscanf(text, "%d %d %511s", &count, &seconds, path) != 3) || (count > CROWD_MAX) || !(file = fopen(path, "w")))
		abort();
	memset(all, 0, sizeof(all));
	pthread_barrier_init(&crowd_state.barrier, NULL, (unsigned) count);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 1024 * 1024);	/* slurmctld's, up to 24.11 */
	crowd_state.until_ns = now_ns() + (uint64_t) seconds * 1000000000u;
	for (int i = 0; i < count; i++) {
		all[i].index = i;
		if (pthread_create(&all[i].thread, &attributes, in_crowd, &all[i]))
			abort();
	}
	for (int i = 0; i < count; i++) {
		pthread_join(all[i].thread, NULL);
		sum.submitted += all[i].submitted;
		sum.accepted += all[i].accepted;
		sum.liens += all[i].liens;
		sum.refused += all[i].refused;
		sum.ended += all[i].ended;
		sum.wrong += all[i].wrong;
		if (all[i].lines)
			fputs(all[i].lines, file);
		xfree(all[i].lines);
	}
	fclose(file);
	pthread_attr_destroy(&attributes);
	printf("submitted=%lu accepted=%lu liens=%lu refused=%lu ended=%lu wrong=%lu\n", sum.submitted, sum.accepted, sum.liens,
	       sum.refused, sum.ended, sum.wrong);
}

/* --- memory ------------------------------------------------------------------------------------------------------------------ */

static void heap(char *text)
{
	unsigned long count = strtoul(text, &text, 10);
	struct mallinfo2 info;

	while (*text == ' ')
		text++;
	for (unsigned long i = 0; i < count; i++) {
		job_desc_msg_t desc, change;
		char *message = NULL, *pairs = xstrdup(text);

		init_job_desc(&desc);
		for_each_pair(pairs, set_desc_pair, &desc);
		(void) job_submit_plugin.submit(&desc, 1001, &message);
		job.admin_comment = desc.admin_comment;
		slurm_init_job_desc_msg(&change);
		change.time_limit = 60;
		change.admin_comment = xstrdup("a note of the operator's");
		xfree(message);
		(void) modify(&change, &job, 900, &message);
		(void) record_end(&job);
		job.admin_comment = NULL;
		xfree(change.admin_comment);
		xfree(message);
		xfree(pairs);
		free_job_desc(&desc);
	}
	info = mallinfo2();
	printf("heap=%zu\n", (size_t) (info.uordblks + info.hblkhd));
}

static void leaks(void)
{
	printf("leaks=%d\n", __lsan_do_recoverable_leak_check ? __lsan_do_recoverable_leak_check() : -1);
}

static void lose(void)
{
	void *volatile lost = xmalloc(100);

	(void) lost;
	lost = NULL;
	printf("lost\n");
}

/* --- the job table --------------------------------------------------------------------------------------------------------- */

static int by_chance(const void *one, const void *other)
{
	uint64_t a = (uint64_t) *(job_record_t *const *) one, b = (uint64_t) *(job_record_t *const *) other;

	a = (a ^ (a >> 7)) * 0x9e3779b97f4a7c15u;
	b = (b ^ (b >> 7)) * 0x9e3779b97f4a7c15u;
	return (a > b) - (a < b);
}

static void table(const char *text)
{
	unsigned long count = strtoul(text, NULL, 10);
	job_record_t **records = xcalloc(count, sizeof(*records));

	for (unsigned long i = 0; i < count; i++) {
		records[i] = xmalloc(sizeof(job_record_t));
		records[i]->array_task_id = NO_VAL;
		if (i % 10 == 0) {
			records[i]->array_recs = xmalloc(sizeof(job_array_struct_t));
			records[i]->array_recs->task_cnt = 3;
		}
	}
	/* as after weeks of jobs that came and went */
	qsort(records, count, sizeof(*records), by_chance);
	job_list = list_create(NULL);
	for (unsigned long i = 0; i < count; i++)
		list_append(job_list, records[i]);
	xfree(records);
	printf("table=%d\n", list_count(job_list));
}

static int by_size(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *) one, b = *(const uint64_t *) other;

	return (a > b) - (a < b);
}

static void pace(char *text)
{
	uint64_t until = now_ns() + strtoul(text, &text, 10) * 1000000000u, *took;
	static const unsigned most = 1000000;
	unsigned calls = 0;

	while (*text == ' ')
		text++;
	took = xcalloc(most, sizeof(*took));
	while ((now_ns() < until) && (calls < most)) {
		job_desc_msg_t desc;
		char *message = NULL, *pairs = xstrdup(text);
		uint64_t begun;

		init_job_desc(&desc);
		for_each_pair(pairs, set_desc_pair, &desc);
		begun = cpu_ns();
		(void) job_submit_plugin.submit(&desc, 1001, &message);
		took[calls++] = cpu_ns() - begun;
		xfree(message);
		xfree(pairs);
		free_job_desc(&desc);
		usleep(1000);
	}
	qsort(took, calls, sizeof(*took), by_size);
	printf("calls=%u median_ns=%llu worst_ns=", calls, (unsigned long long) took[calls / 2]);
	for (unsigned i = 0; (i < 5) && (i < calls); i++)
		printf(i ? ",%llu" : "%llu", (unsigned long long) took[calls - 1 - i]);
	putchar('\n');
	xfree(took);
}

/* --- files ------------------------------------------------------------------------------------------------------------------- */

static void touch(const char *path)
{
	FILE *file = fopen(path, "r");

	if (file)
		fclose(file);
	printf("touched=%d\n", file != NULL);
}

int main(void)
{
	log_options_t options = LOG_OPTS_STDERR_ONLY;
	const char *at = getenv("FUZZ_AT");
	static char line[65536];

	(void) fake_slurmctld_main;
	options.stderr_level = LOG_LEVEL_INFO;	/* slurmctld's default */
	slurm_conf.cluster_name = "testcluster";
	slurm_conf.slurm_user_id = SLURM_USER;
	slurm_conf.select_type = "select/cons_tres";
	slurm_conf.select_type_param = BANKING_CR_CORE | BANKING_CR_MEMORY;
	slurm_conf.job_submit_plugins = "slurm_banking";
	assoc_mgr_user_list = list_create(NULL);
	assoc_mgr_assoc_list = list_create(NULL);
	assoc_mgr_qos_list = list_create(NULL);
	log_init("slurmctld", options, SYSLOG_FACILITY_DAEMON, NULL);
	make_nodes();
	make_tres();
	new_job();
	if (at) {
		int fd = open(at, O_RDWR | O_CLOEXEC);

		chance.at = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (chance.at == MAP_FAILED)
			abort();
		close(fd);
	}
	while (fgets(line, sizeof(line), stdin)) {
		char *rest = strchr(line, ' ');
		char none[] = "";

		line[strcspn(line, "\n")] = '\0';
		rest = rest ? rest + 1 : none;
		if (!strncmp(line, "fuzz ", 5))
			fuzz(rest);
		else if (!strncmp(line, "crowd ", 6))
			crowd(rest);
		else if (!strncmp(line, "heap ", 5))
			heap(rest);
		else if (!strcmp(line, "leaks"))
			leaks();
		else if (!strcmp(line, "lose"))
			lose();
		else if (!strncmp(line, "table ", 6))
			table(rest);
		else if (!strncmp(line, "pace ", 5))
			pace(rest);
		else if (!strncmp(line, "touch ", 6))
			touch(rest);
		else
			run_line(line);
		fflush(stdout);
	}
	return 0;
}
