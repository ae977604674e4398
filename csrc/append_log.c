/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "append_log.h"
#include "local_disk.h"
#include "shim.h"

#define REASON_SIZE 512
#define MODE 0644
/* A file that could not be opened is tried again for the next record after so long. */
#define RETRY_S 1

static struct {
	char path[PATH_MAX];	/* "": off */
	char what[BANKING_WHY_SIZE];
	int descriptor;
	dev_t device;
	ino_t inode;
	int torn;		/* a line was written in part: the next one begins a new line */
	int failing;		/* told already */
	uint64_t left_out;
	struct timespec tried;
} file = { .descriptor = -1 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void tell(int level, const char *text)
{
	char line[BANKING_WHY_SIZE + 2 * REASON_SIZE];

	snprintf(line, sizeof(line), "%s: %s", file.what, text);
	banking_log(level, line);
}

static void leave_out(const char *reason)
{
	char text[REASON_SIZE + 80];

	file.left_out++;
	if (file.failing)
		return;
	file.failing = 1;
	snprintf(text, sizeof(text), "%s: records are left out of it until it can be written", reason);
	tell(BANKING_LOG_ERROR, text);
}

static void written(void)
{
	char text[80];

	if (file.failing || file.left_out) {
		snprintf(text, sizeof(text), "written again; records left out: %llu",
			 (unsigned long long) file.left_out);
		tell(BANKING_LOG_INFO, text);
	}
	file.failing = 0;
	file.left_out = 0;
}

static void close_file(void)
{
	if (file.descriptor >= 0)
		close(file.descriptor);
	file.descriptor = -1;
}

/* 0, or -1 with the reason. */
static int open_file(char *reason, size_t size)
{
	struct stat status;

	clock_gettime(CLOCK_MONOTONIC, &file.tried);
	if (banking_local_disk(file.path, reason, size))
		return -1;
	/* O_NONBLOCK: a pipe without a reader must not be waited for; for a file it says nothing */
	file.descriptor = open(file.path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, MODE);
	if ((file.descriptor < 0) || fstat(file.descriptor, &status)) {
		snprintf(reason, size, "cannot be opened: %s", strerror(errno));
		close_file();
		return -1;
	}
	if (!S_ISREG(status.st_mode)) {
		snprintf(reason, size, "expected a regular file");
		close_file();
		return -1;
	}
	(void) fchmod(file.descriptor, MODE);	/* whatever the umask; somebody else's file keeps its mode */
	file.device = status.st_dev;
	file.inode = status.st_ino;
	file.torn = 0;
	return 0;
}

/* Has another file, or none, its name now? */
static int moved_away(void)
{
	struct stat status;

	if (stat(file.path, &status))
		return errno == ENOENT;
	return (status.st_dev != file.device) || (status.st_ino != file.inode);
}

static int may_try(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec - file.tried.tv_sec >= RETRY_S;
}

extern void append_log_set(const char *path, const char *what)
{
	char reason[REASON_SIZE];

	pthread_mutex_lock(&mutex);
	close_file();
	file.failing = 0;	/* who asks anew is told anew */
	if (strcmp(path, file.path))
		file.left_out = 0;
	snprintf(file.path, sizeof(file.path), "%s", path);
	snprintf(file.what, sizeof(file.what), "%s", what);
	if (file.path[0] && open_file(reason, sizeof(reason))) {
		leave_out(reason);
		file.left_out--;	/* no record yet */
	}
	pthread_mutex_unlock(&mutex);
}

extern int append_log_on(void)
{
	return file.path[0] != '\0';
}

static void append(const char *line, size_t length)
{
	struct iovec parts[2] = { { .iov_base = "\n", .iov_len = file.torn ? 1 : 0 },
				  { .iov_base = (char *) line, .iov_len = length } };
	size_t whole = parts[0].iov_len + length;
	char reason[REASON_SIZE];
	ssize_t count = -1;

	for (int tries = 0; (count < 0) && (tries < 3); tries++) {
		count = writev(file.descriptor, parts, 2);
		if ((count < 0) && (errno != EINTR))
			break;
	}
	if (count == (ssize_t) whole) {
		file.torn = 0;
		written();
		return;
	}
	if (count > 0)
		file.torn = 1;
	snprintf(reason, sizeof(reason), "cannot be written: %s",
		 (count < 0) ? strerror(errno) : "only a part of the line (is the disk full?)");
	leave_out(reason);
}

extern void append_log_line(const char *line, size_t length)
{
	char reason[REASON_SIZE];

	pthread_mutex_lock(&mutex);
	if ((file.descriptor >= 0) && moved_away())
		close_file();
	else if ((file.descriptor < 0) && !may_try()) {
		file.left_out++;
		goto done;
	}
	if ((file.descriptor < 0) && open_file(reason, sizeof(reason)))
		leave_out(reason);
	else
		append(line, length);
done:
	pthread_mutex_unlock(&mutex);
}
