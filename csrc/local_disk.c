/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "local_disk.h"

#define LINKS_MAX 40

/* Several hosts may write them, or a server that is away stops whoever touches them; autofs mounts one of those. */
static const char *const network[] = {
	"9p", "acfs", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs",
	"gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs",
	"wekafs",
};
static const char *const local_fuse[] = { "fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs" };

#define ANY_OF(list, text) any_of(list, sizeof(list) / sizeof((list)[0]), text)

static int any_of(const char *const *list, size_t count, const char *text)
{
	for (size_t i = 0; i < count; i++) {
		if (!strcmp(list[i], text))
			return 1;
	}
	return 0;
}

static int is_network(const char *kind)
{
	if (ANY_OF(local_fuse, kind))
		return 0;
	return ANY_OF(network, kind) || !strcmp(kind, "fuse") || !strncmp(kind, "fuse.", 5);
}

/* "\040" in a mount point is a space, and so on. */
static void unescape(char *text)
{
	char *to = text;

	for (char *from = text; *from; from++, to++) {
		unsigned int code;

		if ((*from == '\\') && (sscanf(from + 1, "%3o", &code) == 1)) {
			*to = (char) code;
			from += 3;
		} else {
			*to = *from;
		}
	}
	*to = '\0';
}

static int is_inside(const char *path, const char *mount_point)
{
	size_t length = strlen(mount_point);

	if (length && (mount_point[length - 1] == '/'))
		length--;
	return !strncmp(path, mount_point, length) && (!path[length] || (path[length] == '/'));
}

/* The type of the file system that a path lies on; "" if the kernel does not tell. Of two on one point the later covers. */
static void file_system(const char *path, char *kind, size_t size)
{
	/* ID PARENT MAJOR:MINOR ROOT MOUNT_POINT OPTIONS [OPTIONAL...] - TYPE SOURCE SUPER_OPTIONS */
	FILE *file = fopen("/proc/self/mountinfo", "re");
	size_t room = 0, longest = 0;
	char *line = NULL;

	kind[0] = '\0';
	if (!file)
		return;
	while (getline(&line, &room, file) > 0) {
		char *after = strstr(line, " - "), *mount_point = line, *end = NULL;

		for (int i = 0; mount_point && (i < 4); i++) {
			mount_point = strchr(mount_point, ' ');
			mount_point += mount_point ? 1 : 0;
		}
		if (!after || !mount_point || !(end = strchr(mount_point, ' ')))
			continue;
		*end = '\0';
		unescape(mount_point);
		if ((strlen(mount_point) < longest) || !is_inside(path, mount_point))
			continue;
		longest = strlen(mount_point);
		after += strlen(" - ");
		after[strcspn(after, " \n")] = '\0';
		snprintf(kind, size, "%s", after);
	}
	free(line);
	fclose(file);
}

static int refuse(char *why, size_t size, const char *path, const char *what, const char *detail)
{
	snprintf(why, size, "%.300s %s%s", path, what, detail);
	return -1;
}

/* path, with what a link at its end leads to in place of the link; the steps not yet taken are in rest. */
static int follow(char *path, char *rest, size_t size, char *why, size_t why_size)
{
	char target[PATH_MAX], joined[2 * PATH_MAX];
	ssize_t length = readlink(path, target, sizeof(target) - 1);

	if (length < 0)
		return refuse(why, why_size, path, "cannot be read: ", strerror(errno));
	target[length] = '\0';
	if (snprintf(joined, sizeof(joined), "%s/%s", target, rest) >= (int) size)
		return refuse(why, why_size, path, "leads to a path that is too long", "");
	strcpy(rest, joined);
	*(target[0] == '/' ? path : strrchr(path, '/')) = '\0';
	return 0;
}

extern int banking_local_disk(const char *path, char *why, size_t size)
{
	char done[PATH_MAX] = "", rest[PATH_MAX], step[PATH_MAX], kind[64];
	int links = 0;

	if (snprintf(rest, sizeof(rest), "%s", path) >= (int) sizeof(rest))
		return refuse(why, size, path, "is too long", "");
	while (rest[0]) {
		struct stat status;
		size_t length = strcspn(rest, "/"), used = strlen(done);

		memcpy(step, rest, length);
		step[length] = '\0';
		memmove(rest, rest + length + (rest[length] ? 1 : 0), strlen(rest + length + (rest[length] ? 1 : 0)) + 1);
		if (!step[0] || !strcmp(step, "."))
			continue;
		if (!strcmp(step, "..")) {
			if (used)
				*strrchr(done, '/') = '\0';
			continue;
		}
		if (used + length + 2 > sizeof(done))
			return refuse(why, size, path, "is too long", "");
		done[used] = '/';
		strcpy(done + used + 1, step);
		file_system(done, kind, sizeof(kind));
		if (is_network(kind))
			return refuse(why, size, done, "is on a network file system: ", kind);
		if (lstat(done, &status))
			continue;	/* not there: opening it says so */
		if (!S_ISLNK(status.st_mode))
			continue;
		if (links++ >= LINKS_MAX)
			return refuse(why, size, path, "has too many symbolic links", "");
		if (follow(done, rest, sizeof(rest), why, size))
			return -1;
	}
	return 0;
}
