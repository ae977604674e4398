/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * opens.c - preloaded, it writes down who opens the ledger's files: closing a file drops SQLite's locks on it, so in a
 * process that has the ledger open nobody but SQLite may open them.
 *
 * OPENS_LOG: where to, a line for each: "LIBRARY COUNT PATH" - the object that called, and how many descriptors of that file
 * the process then has. OPENS_LEDGER: the ledger's path. What counts is the file itself, whatever name it was opened by.
 */
#define _GNU_SOURCE

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_file(int fd, const char *suffix)
{
	const char *ledger = getenv("OPENS_LEDGER");
	struct stat opened, known;
	char path[4096];

	if (!ledger || fstat(fd, &opened) || !S_ISREG(opened.st_mode))
		return 0;
	snprintf(path, sizeof(path), "%s%s", ledger, suffix);
	return !stat(path, &known) && (known.st_dev == opened.st_dev) && (known.st_ino == opened.st_ino);
}

/* /proc/self/fd, without opening anything through ourselves */
static int descriptors_of(int fd)
{
	struct stat mine, other;
	int count = 0;

	if (fstat(fd, &mine))
		return -1;
	for (int number = 0; number < 1024; number++)
		count += !fstat(number, &other) && (other.st_dev == mine.st_dev) && (other.st_ino == mine.st_ino);
	return count;
}

static void note(int fd, const void *caller)
{
	static const char *const suffixes[] = { "", "-wal", "-shm", "-journal" };
	const char *log_path = getenv("OPENS_LOG"), *library = "?";
	int before = errno, log;
	char line[4096];
	Dl_info info;

	if ((fd < 0) || !log_path)
		return;
	for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
		if (!is_file(fd, suffixes[i]))
			continue;
		if (dladdr(caller, &info) && info.dli_fname)
			library = strrchr(info.dli_fname, '/') ? strrchr(info.dli_fname, '/') + 1 : info.dli_fname;
		snprintf(line, sizeof(line), "%s %d ledger.sqlite3%s\n", library, descriptors_of(fd), suffixes[i]);
		log = (int) syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
		if ((log < 0) || (write(log, line, strlen(line)) < 0))
			abort();
		syscall(SYS_close, log);
	}
	errno = before;
}

#define REAL(name) (__typeof__(&name)) dlsym(RTLD_NEXT, #name)

#define MODE_OF(flags) \
	mode_t mode = 0; \
	if ((flags) & (O_CREAT | __O_TMPFILE)) { \
		va_list arguments; \
		va_start(arguments, flags); \
		mode = va_arg(arguments, mode_t); \
		va_end(arguments); \
	}

#define OPEN(name) \
	extern int name(const char *path, int flags, ...) \
	{ \
		MODE_OF(flags) \
		int fd = (REAL(name))(path, flags, mode); \
		note(fd, __builtin_return_address(0)); \
		return fd; \
	}
#define OPENAT(name) \
	extern int name(int at, const char *path, int flags, ...) \
	{ \
		MODE_OF(flags) \
		int fd = (REAL(name))(at, path, flags, mode); \
		note(fd, __builtin_return_address(0)); \
		return fd; \
	}
#define CREAT(name) \
	extern int name(const char *path, mode_t mode) \
	{ \
		int fd = (REAL(name))(path, mode); \
		note(fd, __builtin_return_address(0)); \
		return fd; \
	}
#define FOPEN(name) \
	extern FILE *name(const char *path, const char *how) \
	{ \
		FILE *file = (REAL(name))(path, how); \
		if (file) \
			note(fileno(file), __builtin_return_address(0)); \
		return file; \
	}
#define FREOPEN(name) \
	extern FILE *name(const char *path, const char *how, FILE *old) \
	{ \
		FILE *file = (REAL(name))(path, how, old); \
		if (file) \
			note(fileno(file), __builtin_return_address(0)); \
		return file; \
	}

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
CREAT(creat)
CREAT(creat64)
FOPEN(fopen)
FOPEN(fopen64)
FREOPEN(freopen)
FREOPEN(freopen64)
